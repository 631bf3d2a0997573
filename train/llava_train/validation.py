"""The samples held out: the loss on them, and what the model answers to a few, for people to read.

Nothing here changes the run: no random number is drawn, no weight moves.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from llava_train.assemble import Parts
from llava_train.dataset import EncodedData
from llava_train.labels import IGNORE_INDEX
from llava_train.loader import Batch, Loader
from llava_train.parallel import Group
from llava_train.recipe import Recipe
from llava_train.stepping import answer_loss, autocast, embedded

_LONGEST = 96
"""Tokens of an answer that is shown."""


@dataclass(frozen=True)
class Answer:
    """One sample held out, and what the model says to its first question."""

    sample: str
    pictures: tuple[str, ...]
    question: str
    expected: str
    answer: str


@dataclass(frozen=True)
class ValidationLog:
    """One line of RUN/validation.jsonl."""

    step: int
    loss: float
    """Mean over the answer tokens of all samples held out."""
    answer_tokens: int
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Validation:
    """Measures the model of a run."""

    parts: Parts
    recipe: Recipe
    data: EncodedData
    rows: npt.NDArray[np.int64]
    """The samples held out."""
    loader: Loader
    group: Group

    @torch.no_grad()
    def measure(self, step: int) -> ValidationLog:
        """The loss over all, and some answers."""
        self.parts.model.eval()
        total, tokens = 0.0, 0
        for batch in self._batches():
            with autocast(self.recipe, self.group.device):
                loss = answer_loss(self.parts.model, batch.to(self.group.device))
            total += float(loss)
            tokens += batch.answer_tokens
        chosen = [int(row) for row in self.rows if int(row) not in self.loader.broken]
        answers = tuple(self._answer(row) for row in chosen[: self.recipe.val_answers])
        return ValidationLog(step, total / max(1, tokens), tokens, answers)

    def _batches(self) -> Iterator[Batch]:
        rows = self.rows[np.argsort(-self.data.lengths[self.rows], kind="stable")]
        size = 1 if self.recipe.pack else self.recipe.micro_batch
        for start in range(0, len(rows), size):
            batch = self.loader.batch(rows[start : start + size])
            if batch.samples:
                yield batch

    def _answer(self, row: int) -> Answer:
        """Greedy, from the sample's first question."""
        ids, labels = self.data.row(row)
        bears = labels != IGNORE_INDEX
        first = int(np.argmax(bears))
        rest = np.flatnonzero(~bears[first:])
        last = first + int(rest[0]) if len(rest) else len(ids)
        batch = self.loader.batch(np.array([row]))
        prompt = replace(batch, ids=batch.ids[:, :first], positions=None)
        ends = {int(ids[last - 1]), self.parts.tokenizer.eos_token_id}
        with autocast(self.recipe, self.group.device):
            said = _greedy(self.parts.model, prompt.to(self.group.device), ends)
        words = ids[:first][ids[:first] != self.data.image_token_id]
        pictures = tuple(str(picture) for picture in self.data.images[row])
        texts = (self._text(part) for part in (words, ids[first:last], said))
        return Answer(self.data.names[row], pictures, *texts)

    def _text(self, ids: Any) -> str:
        text: str = self.parts.tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)
        return text.strip()


def _greedy(model: Any, prompt: Batch, ends: set[int]) -> list[int]:
    """Ids of an answer, without the one that ends it."""
    inputs = embedded(model, prompt)  # (1, S, D)
    past: Any = None
    said: list[int] = []
    while len(said) < _LONGEST:
        out = model.model.language_model(inputs_embeds=inputs, past_key_values=past, use_cache=True)
        past = out.past_key_values
        token = model.lm_head(out.last_hidden_state[:, -1]).argmax(-1)  # (1,)
        if int(token) in ends:
            break
        said.append(int(token))
        inputs = model.get_input_embeddings()(token[None])  # (1, 1, D)
    return said
