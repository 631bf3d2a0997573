"""Pictures -> features, through llama.cpp's multimodal library (mtmd) and the graph guard.

mtmd only ever sees raw RGB of exactly the tower's size, prepared by `pixels.py`. Legend: N picture
tokens, D width of the language model, T width of the tower, P patch side, S picture side.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from llava_cli.engines.gguf import binding
from llava_cli.engines.gguf.binding import mtmd
from llava_cli.engines.gguf.guard import GraphGuard
from llava_cli.engines.gguf.interrupt import Interrupt
from llava_cli.engines.gguf.language import LoadWatch
from llava_cli.engines.gguf.layout import Part, Tile
from llava_cli.engines.gguf.stock import loadable
from llava_cli.errors import LlavaError, ModelInvalid, OutOfMemory
from llava_cli.models.gguf_header import BF16, F16, F32, GGUFHeader, read_header
from llava_cli.models.mmproj import newline_name
from llava_cli.pixels import PixelConfig, Pixels, normalise, prepare
from llava_cli.tiles import Grid

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

Rows = npt.NDArray[np.float32]
_FLASH_AUTO, _FLASH_OFF = -1, 0


class Squares:
    """How a LLaVA's picture becomes tokens, known from the mmproj's metadata alone."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self.grid = Grid.from_metadata(metadata)
        config = PixelConfig.from_metadata(metadata)
        self.how = [asdict(config), self.grid and self.grid.pinpoints]
        """Identity of the preparation."""
        side = metadata["clip.vision.image_size"] // metadata["clip.vision.patch_size"]
        self._tokens = int(side**2)

    def layout(self, width: int, height: int) -> tuple[Part, ...]:
        """What stands in the prompt for a picture of so many pixels."""
        return (Tile.plain(self.grid.count(width, height) if self.grid else self._tokens),)


class ImageEncoder:
    """A LLaVA's mmproj, loaded for one text model."""

    def __init__(
        self,
        path: Path,
        model: int,
        interrupt: Interrupt | None = None,
        *,
        threads: int,
        use_gpu: bool,
        width: int,
    ) -> None:
        """`model` is llama.cpp's text model, `width` its embedding width D."""
        self._context: Any = None
        header = read_header(path)
        self.pixels = PixelConfig.from_metadata(header.metadata)
        self.width = width
        self._embed = PatchEmbedding(header)
        newline = newline_name(header)
        self.newline = None if newline is None else _tensor(header, newline)
        """(D,), which ends a row of tiles."""
        self._squares = Squares(header.metadata)
        self._interrupt = interrupt or Interrupt()
        self._guard = GraphGuard(
            self._interrupt,
            has_class="v.class_embd" in header.tensors,
            erf_layers=_erf_layers(header),
        )
        self._context = opened(
            header, model, self._interrupt, self._guard, threads=threads, use_gpu=use_gpu
        )

    def layout(self, width: int, height: int) -> tuple[Part, ...]:
        """What stands in the prompt for a picture of so many pixels."""
        return self._squares.layout(width, height)

    def features(self, picture: PILImage) -> Rows:
        """An upright RGB picture's rows (N, D): of its one square, or of its tiles, packed."""
        grid = self._squares.grid
        if grid is None or self.newline is None:
            return self.encode(prepare(picture, self.pixels))
        rows = [self.encode(square) for square in grid.squares(picture, self.pixels)]
        return grid.pack(rows, self.newline, *picture.size)

    def encode(self, pixels: Pixels) -> Rows:
        """Prepared pixels uint8 (S, S, 3) as float32 (N, D)."""
        side = self.pixels.size
        if pixels.shape != (side, side, 3):
            raise ValueError(f"pixels of shape {pixels.shape}")
        self._guard.expect(self._embed(normalise(pixels, self.pixels)))
        raw = np.ascontiguousarray(pixels)
        data = raw.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        bitmap = mtmd.mtmd_bitmap_init(side, side, data)  # copies
        chunks = mtmd.mtmd_input_chunks_init()
        try:
            return self._encode(bitmap, chunks)
        finally:
            mtmd.mtmd_bitmap_free(bitmap)
            mtmd.mtmd_input_chunks_free(chunks)

    def _encode(self, bitmap: Any, chunks: Any) -> Rows:
        part = mtmd.mtmd_input_part()
        part.bitmap = bitmap
        parts = (ctypes.POINTER(mtmd.mtmd_input_part) * 1)(ctypes.pointer(part))
        code = mtmd.mtmd_tokenize_from_parts(self._context, chunks, parts, 1, False)
        if code != 0 or mtmd.mtmd_input_chunks_size(chunks) != 1:
            raise LlavaError(f"llama.cpp did not take the picture (code {code})", REPORT)
        chunk = mtmd.mtmd_input_chunks_get(chunks, 0)
        return encoded(self._context, chunk, self._interrupt, self._guard, self.width)

    def close(self) -> None:
        """Free the encoder; a second call does nothing."""
        if self._context:
            mtmd.mtmd_free(self._context)
            self._context = None


class PatchEmbedding:
    """The tower's first step in float32: a convolution whose stride is its kernel's side."""

    def __init__(self, header: GGUFHeader) -> None:
        self.kernel = _tensor(header, "v.patch_embd.weight")  # (T, 3, P, P)
        bias = "v.patch_embd.bias"
        self.bias = _tensor(header, bias) if bias in header.tensors else None

    def __call__(self, pixels: Rows) -> Rows:
        """Normalised pixels (3, S, S) -> (N, T), patches row by row."""
        width, channels, patch, _ = self.kernel.shape
        grid = pixels.shape[1] // patch
        cut = pixels[:, : grid * patch, : grid * patch]
        patches = cut.reshape(channels, grid, patch, grid, patch).transpose(1, 3, 0, 2, 4)
        rows = patches.reshape(grid * grid, -1) @ self.kernel.reshape(width, -1).T
        return np.ascontiguousarray(rows if self.bias is None else rows + self.bias)


REPORT = "run again with --debug and report this"


def opened(
    header: GGUFHeader,
    model: int,
    interrupt: Interrupt,
    guard: GraphGuard,
    *,
    threads: int,
    use_gpu: bool,
) -> Any:
    """mtmd's context of a mmproj that reads pictures for a text model."""
    path = header.path
    parameters = mtmd.mtmd_context_params_default()
    parameters.warmup = False
    parameters.print_timings = False
    parameters.use_gpu = use_gpu
    parameters.n_threads = threads
    parameters.flash_attn_type = _FLASH_OFF if _all_f32(header) else _FLASH_AUTO
    parameters.cb_eval = guard.callback
    binding.forget_errors()
    watch = LoadWatch(interrupt)
    parameters.progress_callback = mtmd.mtmd_progress_callback(watch.on_progress)
    with loadable(header) as file, interrupt.deferred():
        context = mtmd.mtmd_init_from_file(str(file).encode(), model, parameters)
    if not context:
        if binding.ran_out_of_memory():
            raise OutOfMemory(f"{path.name} does not fit into memory", "use a smaller model")
        reasons = "; ".join(binding.last_errors()[-2:]) or "llama.cpp gives no reason"
        raise ModelInvalid(f"cannot load {path}: {reasons}", "convert the model again")
    if not mtmd.mtmd_support_vision(context):
        mtmd.mtmd_free(context)
        raise ModelInvalid(f"{path} cannot read pictures", "give another mmproj")
    return context


def encoded(context: Any, chunk: Any, interrupt: Interrupt, guard: GraphGuard, width: int) -> Rows:
    """The rows (N, D) of one of mtmd's chunks of a picture."""
    with interrupt.deferred():
        code = mtmd.mtmd_encode_chunk(context, chunk)
    guard.check()
    if code != 0:
        raise LlavaError(f"llama.cpp could not encode the picture (code {code})", REPORT)
    count = mtmd.mtmd_input_chunk_get_n_tokens(chunk)
    output = mtmd.mtmd_get_output_embd(context)
    rows = np.ctypeslib.as_array(output, (count, width)).copy()  # the buffer is reused
    if not np.isfinite(rows).all():
        raise LlavaError("the picture's features are not numbers", "the mmproj may be damaged")
    return rows


def _erf_layers(header: GGUFHeader) -> int:
    """Layers that run with an exact GELU; ggml's own is the tanh form."""
    if header.metadata.get("llava.vision_hidden_act") not in ("gelu", "gelu_python"):
        return 0
    layers: list[int] = header.metadata.get("clip.vision.feature_layer") or [0]
    return max(layers)


def _all_f32(header: GGUFHeader) -> bool:
    return all(tensor.type == F32 for tensor in header.tensors.values())


def _tensor(header: GGUFHeader, name: str) -> Rows:
    """An unquantised tensor in torch's order of dimensions."""
    info = header.tensors[name]
    shape = info.shape[::-1]
    if info.type not in (F32, F16, BF16):
        raise ModelInvalid(
            f"{header.path} has a quantised {name}", "convert the model again with: llava convert"
        )
    kind = {F32: np.float32, F16: np.float16, BF16: np.uint16}[info.type]
    raw = np.fromfile(header.path, kind, int(np.prod(shape)), offset=info.offset)
    if info.type == BF16:
        raw = (raw.astype(np.uint32) << 16).view(np.float32)
    return np.asarray(raw, np.float32).reshape(shape)
