"""The GGUF engine: llama.cpp's low-level API behind the `Engine` protocol.

Prompt ids and pixels are made here in Python, the same way as in the PyTorch engine; llama.cpp
only computes. Nothing is computed twice that is still known: a prompt is read from where it differs
from the last one, or from behind its last picture where an earlier run left that on the disk.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from llava_cli.cache import DiskCache, file_identity
from llava_cli.conversation import Conversation
from llava_cli.engines import answer
from llava_cli.engines.base import ImageInfo, Sampling, Stats, Token
from llava_cli.engines.formats import choose_format
from llava_cli.engines.gguf.context import Cell, Context, Logits
from llava_cli.engines.gguf.interrupt import Interrupt
from llava_cli.engines.gguf.language import LanguageModel
from llava_cli.engines.gguf.pictures import Picture, Pictures
from llava_cli.engines.gguf.setup import Setup, versions
from llava_cli.engines.gguf.states import States, picture_ends
from llava_cli.engines.gguf.vision import ImageEncoder
from llava_cli.engines.tokenise import Piece, flat, tokenise
from llava_cli.engines.tuning import Tuning
from llava_cli.errors import LlavaError, ModelInvalid
from llava_cli.images import Image
from llava_cli.models.files import ModelFiles
from llava_cli.prompts import render, runs


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
        tuning: Tuning | None = None,
        cache: DiskCache | None = None,
        progress: Callable[[float], None] = lambda _: None,
    ) -> None:
        """Load; `kv_type` and `flash_attention` default to exactness for float32 models.

        `cache` keeps pictures and what was read up to them for later runs; `progress` hears the
        fraction of the weights that is loaded.
        """
        started = time.perf_counter()
        self._language: LanguageModel | None = None
        self.files = files
        self._format = choose_format(files, prompt_format)
        self.prompt_format = self._format.name
        if files.mmproj is None:
            raise ModelInvalid(f"{files.reference} has no mmproj", "give it with --mmproj FILE")
        self.setup = Setup.choose(
            files,
            device=device,
            threads=threads,
            kv_type=kv_type,
            flash_attention=flash_attention,
            tuning=tuning or Tuning(),
        )
        self.device = self.setup.device
        self._interrupt = Interrupt()
        self._language = LanguageModel(
            files.path, self.setup.load, self._interrupt, progress
        )
        if context is not None:
            self._language.limit = min(self._language.limit, context)
        self._context = Context(self._language, self.setup.context, self._interrupt)
        vision: dict[str, Any] = {}
        self._states: States | None = None
        if cache is not None:
            cache = cache.of_versions(versions())
            vision = {"mmproj": file_identity(files.mmproj), "device": self.device}
            text = {"model": file_identity(files.path), **self.setup.identity()}
            self._states = States(cache, {**vision, **text})
        self._pictures = Pictures(files.mmproj, self._encoder, cache, vision)
        self._load_s = time.perf_counter() - started

    def generate(self, conversation: Conversation, sampling: Sampling) -> Iterator[Token]:
        """Stream the answer to the last user turn; a last assistant turn is continued."""
        prompt, unkept = self._read(conversation, sampling)
        yield from answer.answer(
            prompt,
            self._advance,
            self._text.vocabulary,
            self._format,
            sampling,
            continued=answer.is_continued(conversation),
        )
        if unkept is not None and self._states is not None:  # the person has the answer already
            self._states.keep(self._context, *unkept)

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
        prompt, _ = self._read(conversation, Sampling(max_tokens=1))
        return np.array(prompt.logits, np.float32)

    def image_features(self, image: Image) -> npt.NDArray[np.float32]:
        """A picture's features (N, D), for parity checks."""
        return self._pictures.rows(image)

    def close(self) -> None:
        """Free what the engine holds; a second call does nothing."""
        if self._language is None:
            return
        self._pictures.close()
        self._context.close()
        self._interrupt.close()
        self._language.close()
        self._language = None

    @property
    def _text(self) -> LanguageModel:
        if self._language is None:
            raise LlavaError("the engine was closed")
        return self._language

    def _encoder(self) -> ImageEncoder:
        if self.files.mmproj is None:
            raise LlavaError("the engine has no mmproj")
        return ImageEncoder(
            self.files.mmproj,
            self._text.model,
            self._interrupt,
            threads=self.setup.context.threads,
            use_gpu=self.setup.context.use_gpu,
            width=self._text.width,
        )

    def _pieces(self, conversation: Conversation) -> tuple[Piece, ...]:
        return tokenise(runs(render(conversation, self._format)), self._text.vocabulary)

    def _read(
        self, conversation: Conversation, sampling: Sampling
    ) -> tuple[answer.Prefilled, tuple[int, float] | None]:
        """Read a prompt as far as it is not known already.

        Also what `States.keep` is to write afterwards: the position behind the last picture and the
        seconds a position took.
        """
        started = time.perf_counter()
        text, context = self._text, self._context
        spent, loading, encoded = self._pictures.spent
        pieces = self._pieces(conversation)
        seen = [self._pictures.look(image) for image in conversation.images]
        cells = cells_of(pieces, seen)
        context.limit = text.limit
        context.reserve(answer.room_for(len(cells), sampling, text.limit, self.files.reference))
        known = context.keep(cells[:-1])  # at least one position is read: it gives the logits
        restored = known
        if self._states is not None and conversation.images:
            restored = self._states.restore(context, cells[:-1], known)
        logits = self._read_from(restored, pieces, seen, conversation.images)
        image_s = self._pictures.seconds - spent
        waited = image_s + self._pictures.load_s - loading
        prefill_s = time.perf_counter() - started - waited
        hit = self._pictures.encoded == encoded
        stats = replace(
            count_tokens(cells, conversation.images, seen),
            load_s=self._load_s + self._pictures.load_s,
            image_s=image_s,
            prefill_s=prefill_s,
            cache_image="off" if not seen else "hit" if hit else "miss",
            prefix_tokens_reused=restored,
        )
        ends = picture_ends(cells)
        unkept = None
        if ends and ends[-1] > restored:
            unkept = ends[-1], prefill_s / (len(cells) - restored)
        return answer.Prefilled(logits, started, stats), unkept

    def _read_from(
        self,
        known: int,
        pieces: Sequence[Piece],
        seen: Sequence[Picture],
        images: Sequence[Image],
    ) -> Logits:
        """Read the pieces behind the first `known` positions."""
        place = 0
        logits: Logits | None = None
        for piece in pieces:
            picture = seen[piece.image] if piece.image is not None else None
            length = len(piece.ids) if picture is None else picture.count
            skip = min(max(known - place, 0), length)
            place += length
            if skip == length:
                continue
            if picture is None or piece.image is None:
                logits = self._context.read_tokens(piece.ids[skip:])
            else:
                rows = self._pictures.rows(images[piece.image])
                logits = self._context.read_rows(rows, picture.key, skip)
        if logits is None:
            raise LlavaError("the prompt is empty", "ask something")
        return logits

    def _advance(self, token: int) -> Logits | None:
        context = self._context
        if self._language is None or len(context.cells[0]) >= context.capacity:
            return None
        return context.read_tokens((token,))


def cells_of(pieces: Sequence[Piece], seen: Sequence[Picture]) -> list[Cell]:
    """What will stand at each position of the context."""
    cells: list[Cell] = []
    for piece in pieces:
        if piece.image is None:
            cells += piece.ids
        else:
            picture = seen[piece.image]
            cells += [(picture.key, row) for row in range(picture.count)]
    return cells


def count_tokens(cells: Sequence[Cell], images: Sequence[Image], seen: Sequence[Picture]) -> Stats:
    """The counts of a prompt."""
    image_tokens = sum(picture.count for picture in seen)
    infos: list[Any] = [
        ImageInfo(image.source, picture.width, picture.height, picture.count)
        for image, picture in zip(images, seen, strict=True)
    ]
    return Stats(
        prompt_tokens=len(cells) - image_tokens, image_tokens=image_tokens, images=tuple(infos)
    )
