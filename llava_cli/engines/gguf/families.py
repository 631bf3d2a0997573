"""Pictures for models of other families than LLaVA: laid out and computed by llama.cpp's mtmd.

mtmd resizes, cuts and encodes the upright RGB picture that it is given, and knows which token ids
stand around its tiles, which places M-RoPE gives their rows, and whether the rows see each other.
What it says is only written down here. Legend: N rows, D width of the language model's input.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from llava_cli.engines.gguf.binding import mtmd
from llava_cli.engines.gguf.guard import GraphGuard
from llava_cli.engines.gguf.interrupt import Interrupt
from llava_cli.engines.gguf.layout import Part, Places, Tile
from llava_cli.engines.gguf.vision import REPORT, Rows, encoded, opened
from llava_cli.errors import LlavaError, UsageError
from llava_cli.models.gguf_header import read_header
from llava_cli.models.mmproj import LLAVA_GRAPHS, projector_of

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

_TEXT, _IMAGE = 0, 1
"""Kinds of mtmd's chunks."""
_HALVINGS = 12
"""Steps towards the largest picture that is small enough."""


class FamilyEncoder:
    """A mmproj of any family, loaded for one text model."""

    def __init__(
        self,
        path: Path,
        model: int,
        interrupt: Interrupt | None = None,
        *,
        threads: int,
        use_gpu: bool,
        width: int,
        most: int | None = None,
    ) -> None:
        """`model` is llama.cpp's text model, `width` that of its input D.

        `most`: tokens of one picture at most; a larger picture is made smaller before it is read.
        """
        header = read_header(path)
        self._name, self._most = path.name, most
        self.width = width
        self._interrupt = interrupt or Interrupt()
        has_class = projector_of(header) in LLAVA_GRAPHS and "v.class_embd" in header.tensors
        self._guard = GraphGuard(self._interrupt, has_class=has_class, erf_layers=None)
        self._context: Any = opened(
            header, model, self._interrupt, self._guard, threads=threads, use_gpu=use_gpu
        )
        self._planar = bool(mtmd.mtmd_decode_use_mrope(self._context))

    def layout(self, width: int, height: int) -> tuple[Part, ...]:
        """What stands in the prompt for a picture of so many pixels."""
        with self._chunks(*self._fitted(width, height), None) as chunks:
            return tuple(self._part(chunk) for chunk in chunks)

    def features(self, picture: PILImage) -> Rows:
        """An upright RGB picture's rows, those of all its tiles one behind the other: (N, D)."""
        width, height = self._fitted(*picture.size)
        if (width, height) != picture.size:
            picture = picture.resize((width, height))  # bicubic
        pixels = np.ascontiguousarray(np.asarray(picture, np.uint8))
        rows = []
        with self._chunks(width, height, pixels) as chunks:
            for chunk in chunks:
                if mtmd.mtmd_input_chunk_get_type(chunk) == _IMAGE:
                    self._guard.expect(None)
                    rows.append(
                        encoded(self._context, chunk, self._interrupt, self._guard, self.width)
                    )
        return np.concatenate(rows)

    def _fitted(self, width: int, height: int) -> tuple[int, int]:
        """The size, or the largest one like it whose tokens are few enough."""
        most = self._most
        if most is None or self._count(width, height) <= most:
            return width, height
        found: tuple[int, int] | None = None
        low, high = 0.0, 1.0
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            size = max(1, round(width * middle)), max(1, round(height * middle))
            if self._count(*size) <= most:
                low, found = middle, size
            else:
                high = middle
        if found is None:
            raise UsageError(
                f"{self._name} reads no picture in {most} tokens", "ask for more --image-tokens"
            )
        return found

    def _count(self, width: int, height: int) -> int:
        """Tokens of a picture of so many pixels."""
        with self._chunks(width, height, None) as chunks:
            kinds = [(mtmd.mtmd_input_chunk_get_type(chunk), chunk) for chunk in chunks]
            return sum(mtmd.mtmd_input_chunk_get_n_tokens(c) for kind, c in kinds if kind == _IMAGE)

    @contextmanager
    def _chunks(
        self, width: int, height: int, pixels: npt.NDArray[np.uint8] | None
    ) -> Iterator[list[Any]]:
        """mtmd's chunks of a picture; without pixels they cannot be encoded."""
        data = None if pixels is None else pixels.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        bitmap = mtmd.mtmd_bitmap_init(width, height, data)  # copies
        chunks = mtmd.mtmd_input_chunks_init()
        try:
            part = mtmd.mtmd_input_part()
            part.bitmap = bitmap
            parts = (ctypes.POINTER(mtmd.mtmd_input_part) * 1)(ctypes.pointer(part))
            code = mtmd.mtmd_tokenize_from_parts(self._context, chunks, parts, 1, False)
            if code != 0:
                raise LlavaError(f"llama.cpp did not take the picture (code {code})", REPORT)
            count = mtmd.mtmd_input_chunks_size(chunks)
            yield [mtmd.mtmd_input_chunks_get(chunks, place) for place in range(count)]
        finally:
            mtmd.mtmd_bitmap_free(bitmap)
            mtmd.mtmd_input_chunks_free(chunks)

    def _part(self, chunk: Any) -> Part:
        kind = mtmd.mtmd_input_chunk_get_type(chunk)
        if kind == _TEXT:
            count = ctypes.c_size_t()
            ids = mtmd.mtmd_input_chunk_get_tokens_text(chunk, ctypes.byref(count))
            return tuple(int(ids[place]) for place in range(count.value))
        if kind != _IMAGE:
            raise LlavaError(f"llama.cpp made something else of a picture ({kind})", REPORT)
        tokens = int(mtmd.mtmd_input_chunk_get_n_tokens(chunk))
        places = moves = None
        if self._planar:
            image = mtmd.mtmd_input_chunk_get_tokens_image(chunk)
            places = _places(image, tokens, 0)
            moves = _places(image, tokens, 1) - places
        return Tile(
            tokens,
            int(mtmd.mtmd_input_chunk_get_n_pos(chunk)),
            places,
            moves,
            causal=not mtmd.mtmd_decode_use_non_causal(self._context, chunk),
        )

    def close(self) -> None:
        """Free the encoder; a second call does nothing."""
        if self._context:
            mtmd.mtmd_free(self._context)
            self._context = None


def _places(image: Any, count: int, start: int) -> Places:
    """M-RoPE's places (4, N) of a tile that begins at a position: time, row, column, and one more.

    The order is that in which llama.cpp reads them.
    """
    found = (mtmd.mtmd_decoder_pos * count)()
    mtmd.mtmd_helper_image_get_decoder_pos(image, start, found)
    return np.array([[p.t, p.y, p.x, p.z] for p in found], np.int64).T.astype(np.int32)
