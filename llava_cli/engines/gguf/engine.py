"""The GGUF engine: llama.cpp's low-level API behind the `Engine` protocol.

Prompt ids and pixels are made here in Python, the same way as in the PyTorch engine; llama.cpp
only computes. Features of pictures are kept, and a prompt that begins like the last one is read
only from where it differs.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llava_cli.conversation import Conversation
from llava_cli.engines import answer
from llava_cli.engines.base import ImageInfo, Sampling, Stats, Token
from llava_cli.engines.formats import choose_format
from llava_cli.engines.gguf import binding
from llava_cli.engines.gguf.language import Cell, ContextSettings, LanguageModel, Logits
from llava_cli.engines.gguf.vision import ImageEncoder
from llava_cli.engines.tokenise import Piece, flat, tokenise
from llava_cli.errors import LlavaError, ModelInvalid
from llava_cli.images import Image
from llava_cli.models.files import ModelFiles
from llava_cli.pixels import prepare
from llava_cli.prompts import render, runs

_BYTES_A_THREAD = 24 * 1024 * 1024
_KEPT_BYTES = 256 * 1024 * 1024
"""Features of pictures that are kept for later turns."""


@dataclass(frozen=True)
class Features:
    """A picture as the language model reads it."""

    key: str
    """Identity of its prepared pixels."""
    rows: npt.NDArray[np.float32]
    """(N, D)"""
    width: int
    height: int


class GgufEngine:
    """A text model and its mmproj, loaded."""

    name = "gguf"

    def __init__(
        self,
        files: ModelFiles,
        *,
        device: str = "auto",
        threads: int | None = None,
        prompt_format: str | None = None,
        context: int | None = None,
        kv_type: str | None = None,
        flash_attention: bool | None = None,
        repack: bool = False,
    ) -> None:
        """Load; `kv_type` and `flash_attention` default to exactness for float32 models.

        `repack` makes llama.cpp rearrange the weights for this processor: slower to load, sometimes
        quicker afterwards.
        """
        started = time.perf_counter()
        self._language: LanguageModel | None = None
        self._vision: ImageEncoder | None = None
        self.files = files
        self._format = choose_format(files, prompt_format)
        self.prompt_format = self._format.name
        if files.mmproj is None:
            raise ModelInvalid(f"{files.reference} has no mmproj", "give it with --mmproj FILE")
        self.device, gpu = _device(device)
        exact = files.config.get("general.file_type") == 0  # all float32
        settings = ContextSettings(
            threads=threads or default_threads(files.path.stat().st_size),
            kv_type=kv_type or ("f32" if exact else "f16"),
            flash_attention=not exact if flash_attention is None else flash_attention,
            use_gpu=self.device != "cpu",
        )
        self._kept: OrderedDict[tuple[str, str], Features] = OrderedDict()
        try:
            self._language = LanguageModel(files.path, settings, gpu=gpu, repack=repack)
            self._vision = ImageEncoder(
                files.mmproj,
                self._language.model,
                threads=settings.threads,
                use_gpu=settings.use_gpu,
                width=self._language.width,
            )
        except BaseException:
            self.close()
            raise
        if context is not None:
            self._language.limit = min(self._language.limit, context)
        self._load_s = time.perf_counter() - started

    def generate(self, conversation: Conversation, sampling: Sampling) -> Iterator[Token]:
        """Stream the answer to the last user turn; a last assistant turn is continued."""
        prompt = self._read(conversation, sampling)
        yield from answer.answer(
            prompt,
            self._advance,
            self._text.vocabulary,
            self._format,
            sampling,
            continued=answer.is_continued(conversation),
        )

    def generate_batch(
        self, conversations: Sequence[Conversation], sampling: Sampling
    ) -> Iterator[tuple[int, Token]]:
        """Answer many conversations, one after the other."""
        for index, conversation in enumerate(conversations):
            for token in self.generate(conversation, sampling):
                yield index, token

    def prompt_ids(self, conversation: Conversation) -> list[int | str]:
        """Ids of the prompt, with the string "image" at each image slot."""
        return flat(self._pieces(conversation))

    def first_logits(self, conversation: Conversation) -> Logits:
        """Logits (V,) of the answer's first token, for parity checks."""
        return np.array(self._read(conversation, Sampling(max_tokens=1)).logits, np.float32)

    def image_features(self, image: Image) -> npt.NDArray[np.float32]:
        """A picture's features (N, D), for parity checks."""
        return self._features(image)[0].rows

    def close(self) -> None:
        """Free what the engine holds; a second call does nothing."""
        if self._vision is not None:
            self._vision.close()
            self._vision = None
        if self._language is not None:
            self._language.close()
            self._language = None

    @property
    def _text(self) -> LanguageModel:
        if self._language is None:
            raise LlavaError("the engine was closed")
        return self._language

    def _pieces(self, conversation: Conversation) -> tuple[Piece, ...]:
        return tokenise(runs(render(conversation, self._format)), self._text.vocabulary)

    def _read(self, conversation: Conversation, sampling: Sampling) -> answer.Prefilled:
        """Read a prompt as far as it is not in the context already."""
        started = time.perf_counter()
        text = self._text
        pieces = self._pieces(conversation)
        found = [self._features(image) for image in conversation.images]
        pictures = [features for features, _ in found]
        seen = time.perf_counter()
        cells = _cells(pieces, pictures)
        text.reserve(answer.room_for(len(cells), sampling, text.limit, self.files.reference))
        reused = text.keep(cells[:-1])  # at least one position is read: it gives the logits
        logits = self._read_from(reused, pieces, pictures)
        image_tokens = sum(len(pictures[p.image].rows) for p in pieces if p.image is not None)
        stats = Stats(
            prompt_tokens=len(cells) - image_tokens,
            image_tokens=image_tokens,
            load_s=self._load_s,
            image_s=seen - started,
            prefill_s=time.perf_counter() - seen,
            cache_image="off" if not found else "hit" if all(hit for _, hit in found) else "miss",
            prefix_tokens_reused=reused,
            images=tuple(
                ImageInfo(image.source, picture.width, picture.height, len(picture.rows))
                for image, picture in zip(conversation.images, pictures, strict=True)
            ),
        )
        return answer.Prefilled(logits, started, stats)

    def _read_from(
        self, reused: int, pieces: Sequence[Piece], pictures: Sequence[Features]
    ) -> Logits:
        """Read the pieces behind the first `reused` positions."""
        text, place = self._text, 0
        logits: Logits | None = None
        for piece in pieces:
            picture = pictures[piece.image] if piece.image is not None else None
            length = len(piece.ids) if picture is None else len(picture.rows)
            skip = min(max(reused - place, 0), length)
            place += length
            if skip == length:
                continue
            if picture is None:
                logits = text.read_tokens(piece.ids[skip:])
            else:
                logits = text.read_rows(picture.rows, picture.key, skip)
        if logits is None:
            raise LlavaError("the prompt is empty", "ask something")
        return logits

    def _advance(self, token: int) -> Logits | None:
        text = self._text
        if len(text.cells) >= text.capacity:
            return None
        return text.read_tokens((token,))

    def _features(self, image: Image) -> tuple[Features, bool]:
        """A picture's features, and whether they were kept from before."""
        identity = (image.sha256, image.background)
        if identity in self._kept:
            self._kept.move_to_end(identity)
            return self._kept[identity], True
        if self._vision is None:
            raise LlavaError("the engine was closed")
        picture = image.open()
        pixels = prepare(picture, self._vision.pixels)
        key = hashlib.sha256(pixels.tobytes()).hexdigest()
        features = Features(key, self._vision.encode(pixels), *picture.size)
        self._kept[identity] = features
        while sum(f.rows.nbytes for f in self._kept.values()) > _KEPT_BYTES and len(self._kept) > 1:
            self._kept.popitem(last=False)
        return features, False


def default_threads(size: int) -> int:
    """Processor cores for a model of so many bytes.

    Threads wait for each other at every operation, which costs a small model more than they give,
    above all on a busy machine. Large machines do not gain from their cores' second threads.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    cores = cores if cores <= 4 else max(4, cores // 2)
    return max(1, min(cores, size // _BYTES_A_THREAD))


def _cells(pieces: Sequence[Piece], pictures: Sequence[Features]) -> list[Cell]:
    """What will stand at each position of the context."""
    cells: list[Cell] = []
    for piece in pieces:
        if piece.image is None:
            cells += piece.ids
        else:
            picture = pictures[piece.image]
            cells += [(picture.key, row) for row in range(len(picture.rows))]
    return cells


def _device(wanted: str) -> tuple[str, int]:
    """The device's name and number."""
    binding.start()
    there = binding.offload_device()
    if wanted in ("auto", "cpu"):
        return (there if wanted == "auto" else "cpu"), 0
    name, _, number = wanted.partition(":")
    if name != there:
        raise LlavaError(
            f"this llama-cpp-python computes on {there}, not on {wanted}",
            "use --device auto, or install a llama-cpp-python that was built for it",
        )
    if number and not number.isdigit():
        raise LlavaError(f"{wanted} names no device", "write it like cuda:0")
    return wanted, int(number or 0)
