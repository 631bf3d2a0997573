"""The GGUF engine: llama.cpp's low-level API behind the `Engine` protocol.

Prompt ids and pixels are made here in Python, the same way as in the PyTorch engine; llama.cpp
only computes. Nothing is computed twice that is still known: a prompt is read from where it differs
from the last one, or from behind its last picture where an earlier run left that on the disk.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llava_cli.cache import DiskCache, file_identity
from llava_cli.conversation import Conversation
from llava_cli.engines import answer
from llava_cli.engines.base import Audience, Sampling, Token
from llava_cli.engines.chat_template import prompt_form, writer_of
from llava_cli.engines.choices import Choice
from llava_cli.engines.gguf.adapter import gguf_adapter
from llava_cli.engines.gguf.batch import Batch, attended
from llava_cli.engines.gguf.context import Context, Logits
from llava_cli.engines.gguf.families import FamilyEncoder
from llava_cli.engines.gguf.interrupt import Interrupt
from llava_cli.engines.gguf.language import LanguageModel
from llava_cli.engines.gguf.layout import Cell
from llava_cli.engines.gguf.memory import slots_for
from llava_cli.engines.gguf.pictures import Pictures
from llava_cli.engines.gguf.prompt import Reader
from llava_cli.engines.gguf.setup import Setup, versions
from llava_cli.engines.gguf.states import States
from llava_cli.engines.gguf.vision import ImageEncoder
from llava_cli.engines.tokenise import flat
from llava_cli.engines.tuning import Tuning
from llava_cli.errors import LlavaError, ModelInvalid
from llava_cli.images import Image
from llava_cli.models.files import ModelFiles
from llava_cli.models.gguf_header import read_header
from llava_cli.models.mmproj import is_llava


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
        image_tokens: int | None = None,
        adapter: Path | None = None,
        progress: Callable[[float], None] = lambda _: None,
    ) -> None:
        """Load; `kv_type` and `flash_attention` default to exactness for float32 models.

        `cache` keeps pictures and what was read up to them for later runs; `image_tokens` bounds
        the tokens of one picture (of a LLaVA's so many are chosen, others see a smaller one);
        `adapter` is a LoRA, llama.cpp's file or peft's folder; `progress` hears the fraction of the
        weights that is loaded.
        """
        started = time.perf_counter()
        self._language: LanguageModel | None = None
        self.files = files
        form = prompt_form(files, prompt_format)
        self.prompt_format = form.name
        if files.mmproj is None:
            raise ModelInvalid(f"{files.reference} has no mmproj", "give it with --mmproj FILE")
        self._most = image_tokens
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
        self._states: States | None = None
        with gguf_adapter(adapter, files) as lora:
            vision = self._keeping(cache, lora)
            self._pictures = Pictures(files.mmproj, self._encoder, *vision, image_tokens)
            self._language = LanguageModel(files.path, self.setup.load, self._interrupt, progress)
            if lora is not None and adapter is not None:
                self._language.adapt(lora, adapter)
        if context is not None:
            self._language.limit = min(self._language.limit, context)
        self._context = Context(self._language, self.setup.context, self._interrupt)
        if not self._language.can_be_cut:  # a state is kept up to a picture, not to the end
            self._states = None
        write = writer_of(files, form, self._language.vocabulary)
        load_s = time.perf_counter() - started
        self._reader = Reader(self._language, form, write, self._pictures, files.reference, load_s)

    def generate(self, conversation: Conversation, sampling: Sampling) -> Generator[Token]:
        """Stream the answer to the last user turn; a last assistant turn is continued."""
        self._check_open()
        tokens: Iterator[Token]
        if sampling.choices:
            choice = Choice(conversation, sampling, lambda c: self._reader.prompt(c).cells)
            room = replace(sampling, max_tokens=max(choice.longest, 1))
            prompt, unkept = self._read(conversation, room)
            tokens = choice.answer(prompt, self._behind, self._text.vocabulary)
        else:
            prompt, unkept = self._read(conversation, sampling)
            writer = self._reader.writer(prompt, conversation, sampling)
            tokens = answer.written(writer, prompt.logits, self._advance)
        if unkept is not None and self._states is not None:
            tokens = self._states.beside(tokens, self._context, *unkept)
        yield from tokens

    def generate_batch(
        self,
        conversations: Sequence[Conversation],
        sampling: Sampling,
        audience: Audience | None = None,
    ) -> Iterator[tuple[int, Token]]:
        """Answer many conversations at once; the order in which they end is not theirs.

        One alone goes on from what was read before, as in `generate`; others may join it.
        """
        text = self._text
        if sampling.choices:  # a choice takes few steps or none
            for index, conversation in enumerate(conversations):
                for token in self.generate(conversation, sampling):
                    yield index, token
            return

        def make(slots: int) -> tuple[Context, Context | None]:
            settings = self.setup.context_for(slots)
            context = Context(text, settings, self._interrupt, sequences=slots, unified=False)
            if settings == self.setup.context:
                return context, None
            return context, Context(text, self.setup.context, self._interrupt, sequences=1)

        def slots(positions: int) -> int:
            return slots_for(positions, self.setup.context, self.files)

        asked = [(i, conversation, sampling) for i, conversation in enumerate(conversations)]
        alone = self.generate(conversations[0], sampling) if len(asked) == 1 else None
        batch = Batch(self._reader, make, [] if alone else asked, slots, audience)
        if audience is not None:
            yield from attended(batch, alone, audience, len(asked))
        elif alone is not None:
            yield from ((0, token) for token in alone)
        else:
            yield from batch.run()

    def prompt_ids(self, conversation: Conversation) -> list[int | str]:
        """Ids of the prompt, with the string "image" at each image slot."""
        self._check_open()
        return flat(self._reader.pieces(conversation))

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

    def _keeping(
        self, cache: DiskCache | None, lora: Path | None
    ) -> tuple[DiskCache | None, dict[str, Any]]:
        """The cache for pictures, and what decides their features; sets up the one of states.

        A state depends on the adapter, too; a picture's features do not: they are the mmproj's.
        """
        if cache is None or self.files.mmproj is None:
            return None, {}
        cache = cache.of_versions(versions())
        vision = {"mmproj": file_identity(self.files.mmproj), "device": self.device}
        text = {"model": file_identity(self.files.path), **self.setup.identity()}
        if lora is not None:
            from llava_cli.engines.layouts.gguf_lora import file_digest

            text["adapter"] = file_digest(lora)
        self._states = States(cache, {**vision, **text})
        return cache, vision

    def _check_open(self) -> None:
        if self._language is None:
            raise LlavaError("the engine was closed")

    @property
    def _text(self) -> LanguageModel:
        if self._language is None:
            raise LlavaError("the engine was closed")
        return self._language

    def _encoder(self) -> ImageEncoder | FamilyEncoder:
        if self.files.mmproj is None:
            raise LlavaError("the engine has no mmproj")
        model, context = self._text, self.setup.context
        settings: dict[str, Any] = {
            "threads": context.threads,
            "use_gpu": context.use_gpu,
            "width": model.width,
        }
        if is_llava(read_header(self.files.mmproj)):
            return ImageEncoder(self.files.mmproj, model.model, self._interrupt, **settings)
        settings["most"] = self._most
        return FamilyEncoder(self.files.mmproj, model.model, self._interrupt, **settings)

    def _read(
        self, conversation: Conversation, sampling: Sampling
    ) -> tuple[answer.Prefilled, tuple[int, float] | None]:
        """Read a prompt as far as it is not known already.

        Also what `States.beside` is to write: the position behind the last picture and the
        seconds a position took.
        """
        started = time.perf_counter()
        text, context, reader = self._text, self._context, self._reader
        spent, loading, encoded = self._pictures.spent
        prompt = reader.prompt(conversation)
        context.limit = text.limit
        context.reserve(reader.room_for(len(prompt.cells), sampling), prompt.tiles)
        known = context.keep(prompt.cells[:-1])  # at least one position is read, for its logits
        if self._states is not None and prompt.images:
            known = self._states.restore(context, prompt, known)
        logits = reader.read(context, 0, prompt, known)
        image_s = self._pictures.seconds - spent
        waited = image_s + self._pictures.load_s - loading
        prefill_s = time.perf_counter() - started - waited
        stats = reader.stats(
            prompt,
            image_s=image_s,
            prefill_s=prefill_s,
            hit=self._pictures.encoded == encoded,
            reused=known,
        )
        unkept = None
        if prompt.last_picture_end > known:
            unkept = prompt.last_picture_end, prefill_s / (len(prompt.cells) - known)
        return answer.Prefilled(logits, started, stats), unkept

    def _behind(self, cells: Sequence[Cell]) -> Logits:
        """Logits (V,) behind cells that begin like what was read and end in text."""
        known = self._context.keep(cells[:-1])
        return self._context.read_tokens([c for c in cells[known:] if isinstance(c, int)])

    def _advance(self, token: int) -> Logits | None:
        context = self._context
        if self._language is None or len(context.cells[0]) >= context.capacity:
            return None
        return context.read_tokens((token,))
