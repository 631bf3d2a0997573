"""The PyTorch engine for every other model of `AutoModelForImageTextToText`.

Prompt and pixels are the model's own: its processor and chat template make them, its `generate`
runs it (tiles, M-RoPE and what else a family has are its business). Tokens are chosen, ended and
turned into text by the same code as everywhere. LLaVA-1.5 has an engine of its own (`pytorch.py`),
which agrees with llama.cpp to the id. B conversations, S positions, V vocabulary.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from llava_cli.conversation import Conversation
from llava_cli.engines import answer
from llava_cli.engines.base import ImageInfo, Sampling, Stats, Token
from llava_cli.engines.hf_vocabulary import HfVocabulary
from llava_cli.engines.pytorch_prompts import Prompts
from llava_cli.engines.pytorch_setup import Setup, check_type, load_model, out_of_memory
from llava_cli.errors import LlavaError, UsageError
from llava_cli.models.files import ModelFiles
from llava_cli.prompts import PromptFormat

MOST_ROWS = 8
_OWN = PromptFormat("chat_template")
"""The answer ends where the model's own ids say so; no text of a format does."""


@dataclass
class _Row:
    """One conversation of a batch."""

    conversation: Conversation
    stats: Stats
    started: float
    writer: answer.Writer | None = None
    done: bool = False


class AnyTorchEngine:
    """A vision-language model of transformers, loaded."""

    name = "torch"
    prompt_format = _OWN.name

    def __init__(
        self,
        files: ModelFiles,
        *,
        threads: int | None = None,
        prompt_format: str | None = None,
        context: int | None = None,
        setup: Setup = Setup(),  # noqa: B008 - frozen
    ) -> None:
        started = time.perf_counter()
        if prompt_format is not None:
            raise UsageError(
                f"{files.reference} writes its prompts by its own template",
                "leave out --prompt-format",
            )
        self.files = files
        if threads:
            torch.set_num_threads(threads)
        check_type(files)
        self._prompts = Prompts(files)
        self._model, self.device = load_model(files, setup)
        self._ends = _end_ids(self._model)
        self._vocabulary = HfVocabulary.from_folder(files.path, self._ends)
        text = self._model.config.get_text_config()
        limit = int(getattr(text, "max_position_embeddings", None) or 4096)
        self._limit = min(limit, context or limit)
        self._load_s = time.perf_counter() - started

    def generate(self, conversation: Conversation, sampling: Sampling) -> Iterator[Token]:
        """Stream the answer to the last user turn; a last assistant turn is continued."""
        for _, token in self.generate_batch([conversation], sampling):
            yield token

    def generate_batch(
        self, conversations: Sequence[Conversation], sampling: Sampling
    ) -> Iterator[tuple[int, Token]]:
        """Answer many conversations, several at a time."""
        if sampling.schema is not None or sampling.choices:
            raise UsageError(
                "the PyTorch engine cannot bind this model's answers", "use a GGUF model for that"
            )
        for at in range(0, len(conversations), MOST_ROWS):
            group = conversations[at : at + MOST_ROWS]
            for place, token in self._group(group, sampling):
                yield at + place, token

    def prompt_ids(self, conversation: Conversation) -> list[int | str]:
        """Ids of the prompt, with the string "image" at each run of picture tokens."""
        image = self._prompts.image_id
        ids: list[int | str] = []
        for token in self._inputs([conversation])["input_ids"][0].tolist():
            if token != image:
                ids.append(token)
            elif ids[-1:] != ["image"]:
                ids.append("image")
        return ids

    def close(self) -> None:
        """Free what the engine holds; a second call does nothing."""
        self._model = None
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()

    def _group(
        self, conversations: Sequence[Conversation], sampling: Sampling
    ) -> Iterator[tuple[int, Token]]:
        if self._model is None:
            raise LlavaError("the engine was closed")
        started = time.perf_counter()
        with out_of_memory(self.files.reference):
            inputs = self._inputs(conversations)
        rows = self._rows(conversations, inputs, started)
        longest = int(inputs["input_ids"].shape[1])
        room = answer.room_for(longest, sampling, self._limit, self.files.reference)
        run = _Run(self, rows, sampling)
        yield from run.tokens(inputs, room - longest)

    def _inputs(self, conversations: Sequence[Conversation]) -> dict[str, Any]:
        """Prompts, padded on the left, and their pixels, where the model is."""
        floats = self._model.dtype if self._model is not None else torch.float32
        return {
            name: value.to(self.device, floats if value.is_floating_point() else value.dtype)
            for name, value in self._prompts.inputs(conversations).items()
        }

    def _rows(
        self, conversations: Sequence[Conversation], inputs: dict[str, Any], started: float
    ) -> list[_Row]:
        image = self._prompts.image_id
        image_s = time.perf_counter() - started
        rows = []
        for conversation, ids, mask in zip(
            conversations, inputs["input_ids"], inputs["attention_mask"], strict=True
        ):
            pictures = conversation.images
            there = int((ids == image).sum()) if image is not None else 0
            opened = [(picture.source, picture.open().size) for picture in pictures]
            stats = Stats(
                prompt_tokens=int(mask.sum()) - there,
                image_tokens=there,
                load_s=self._load_s,
                image_s=image_s,
                images=tuple(
                    ImageInfo(source, *size, there // len(pictures)) for source, size in opened
                ),
            )
            rows.append(_Row(conversation, stats, started))
        return rows


class _Run:
    """`generate` in a thread of its own, its steps handed over as tokens."""

    def __init__(self, engine: AnyTorchEngine, rows: Sequence[_Row], sampling: Sampling) -> None:
        self._engine = engine
        self._rows = rows
        self._sampling = sampling
        self._said: queue.Queue[tuple[int, Token] | BaseException | None] = queue.Queue()
        self._unwanted = threading.Event()

    def tokens(self, inputs: dict[str, Any], room: int) -> Iterator[tuple[int, Token]]:
        """Tokens of all rows as they come; who stops listening stops the model."""
        thread = threading.Thread(target=self._generate, args=(inputs, room), daemon=True)
        thread.start()
        try:
            while (said := self._said.get()) is not None:
                if isinstance(said, BaseException):
                    raise said
                yield said
        finally:
            self._unwanted.set()
            thread.join()

    def _generate(self, inputs: dict[str, Any], room: int) -> None:
        from transformers import GenerationConfig

        try:
            with out_of_memory(self._engine.files.reference):
                self._engine._model.generate(
                    **inputs,
                    generation_config=GenerationConfig(
                        max_new_tokens=max(room, 1), do_sample=False, pad_token_id=0
                    ),
                    logits_processor=[self._choose],
                    stopping_criteria=[self._ended],
                )
            for place, row in enumerate(self._rows):
                if not row.done and row.writer is not None:
                    self._close(place, row)
        except Exception as error:  # noqa: BLE001 - raised again where the tokens are read
            self._said.put(error)
        self._said.put(None)

    def _choose(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Our own choice of each row's token; scores (B, V) that leave no other."""
        now = time.perf_counter()
        forced = torch.full_like(scores, -torch.inf)
        for place, row in enumerate(self._rows):
            token = 0
            if not row.done:
                logits = scores[place].float().cpu().numpy()
                if row.writer is None:
                    prompt = answer.Prefilled(logits, row.started, row.stats)
                    row.writer = self._writer(prompt, row, now)
                said = row.writer.take(logits)
                if said is not None:
                    self._said.put((place, said))
                if row.writer.token is None:
                    self._close(place, row)
                else:
                    token = row.writer.token
            forced[place, token] = 0
        return forced

    def _writer(self, prompt: answer.Prefilled, row: _Row, now: float) -> answer.Writer:
        prefill_s = now - row.started - row.stats.image_s
        prompt = replace(prompt, stats=replace(row.stats, prefill_s=max(prefill_s, 0.0)))
        continued = answer.is_continued(row.conversation)
        vocabulary = self._engine._vocabulary
        return answer.Writer(prompt, vocabulary, _OWN, self._sampling, continued=continued)

    def _close(self, place: int, row: _Row) -> None:
        row.done = True
        if row.writer is not None:
            self._said.put((place, row.writer.close()))

    def _ended(self, ids: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
        """Which rows (B,) are done."""
        over = self._unwanted.is_set()
        ended = [over or row.done for row in self._rows]
        return torch.tensor(ended, dtype=torch.bool, device=ids.device)


def _end_ids(model: Any) -> set[int]:
    """All ids with which the model's own settings end an answer; taken from `generate`."""
    ends: set[int | None] = set()
    for config in (model.generation_config, model.config, model.config.get_text_config()):
        found = getattr(config, "eos_token_id", None)
        ends.update(found if isinstance(found, (list, tuple)) else [found])
    model.generation_config = type(model.generation_config)()  # nothing but what we ask for
    return {end for end in ends if end is not None}
