"""Many conversations at once in PyTorch: prompts padded on the left, one step for all answers.

Greedy answers are those of one by one: padding is masked and positions are counted from each
prompt's own beginning. B conversations, S positions of the longest prompt, D width, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from llava_cli.conversation import Conversation
from llava_cli.engines import answer
from llava_cli.engines.base import Audience, Sampling, Stats, Token
from llava_cli.engines.pytorch_setup import out_of_memory
from llava_cli.errors import LlavaError, OutOfMemory

if TYPE_CHECKING:
    from llava_cli.engines.pytorch import Cell, TorchEngine

MOST_ROWS = 8


@dataclass(frozen=True)
class Row:
    """One prompt, ready to be read."""

    rows: torch.Tensor
    """(1, S, D)"""
    cells: Sequence[Cell]
    """What stands at each position."""
    room: int
    """Positions for prompt and answer."""
    started: float
    stats: Stats
    continued: bool
    """Whether the answer goes on from a prefill."""


@dataclass
class _Answering:
    """A row of the batch."""

    index: int
    row: Row
    writer: answer.Writer
    length: int
    """Positions read so far."""


class Batch:
    """One run of `generate_batch`."""

    def __init__(
        self,
        engine: TorchEngine,
        sampling: Sampling,
        most: int = MOST_ROWS,
        audience: Audience | None = None,
    ) -> None:
        self._engine = engine
        self._audience = audience
        self._sampling = sampling
        self._most = most
        self._begun = False
        """Whether the group has given its first tokens, so that it cannot be begun again."""

    def run(self, conversations: Sequence[Conversation]) -> Iterator[tuple[int, Token]]:
        """Tokens of all answers as they come; an error comes when it is its conversation's turn."""
        at = 0
        while at < len(conversations):
            rows, failure = self._prepare(conversations[at : at + self._most])
            if rows:
                try:
                    yield from self._group(at, rows)
                except OutOfMemory:
                    if len(rows) == 1 or self._begun:
                        raise
                    self._most = max(1, len(rows) // 2)  # the same once more, in smaller groups
                    continue
            if failure is not None:
                raise failure
            at += len(rows)

    def _prepare(self, wanted: Sequence[Conversation]) -> tuple[list[Row], LlavaError | None]:
        """Rows up to the first conversation that cannot be answered, and why not."""
        rows: list[Row] = []
        for conversation in wanted:
            try:
                rows.append(self._engine.row(conversation, self._sampling))
            except LlavaError as error:
                return rows, error
        return rows, None

    @torch.inference_mode()
    def _group(self, first: int, rows: Sequence[Row]) -> Iterator[tuple[int, Token]]:
        from transformers import DynamicCache

        self._begun = False
        longest = max(row.rows.shape[1] for row in rows)
        embeds, mask = _padded([row.rows for row in rows], longest)
        cache = DynamicCache()
        began = time.perf_counter()
        logits = self._forward(embeds, mask, _positions(mask), cache)  # (B, V)
        prefill_s = time.perf_counter() - began
        active = []
        for place, row in enumerate(rows):
            stats = replace(row.stats, prefill_s=prefill_s)
            prompt = answer.Prefilled(logits[place].cpu().numpy(), row.started, stats)
            writer = self._engine.writer(prompt, self._sampling, row)
            active.append(_Answering(first + place, row, writer, len(row.cells)))
        self._begun = True
        while active:
            going = []
            for place, one in enumerate(active):
                if self._audience is not None and self._audience.gone(one.index):
                    continue
                token = one.writer.take(logits[place].cpu().numpy())
                if token is not None:
                    yield one.index, token
                if one.writer.token is None or one.length >= one.row.room:
                    yield one.index, one.writer.close()
                else:
                    going.append(place)
            if 0 < len(going) < len(active):
                cache.batch_select_indices(torch.tensor(going, device=mask.device))
                mask = mask[going]
            active = [active[place] for place in going]
            if active:
                logits, mask = self._step(active, mask, cache)

    def _step(
        self, active: Sequence[_Answering], mask: torch.Tensor, cache: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Read one more token of every answer: logits (B, V) and the longer mask."""
        ids = torch.tensor([[one.writer.token] for one in active], device=mask.device)
        mask = torch.cat([mask, mask.new_ones(len(active), 1)], dim=1)
        positions = torch.tensor([[one.length] for one in active], device=mask.device)
        for one in active:
            one.length += 1
        embeds = self._engine.model.get_input_embeddings()(ids)
        return self._forward(embeds, mask, positions, cache), mask

    def _forward(
        self, embeds: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Any
    ) -> torch.Tensor:
        with out_of_memory(self._engine.files.reference):
            output = self._engine.model(
                inputs_embeds=embeds,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
        logits: torch.Tensor = output.logits[:, -1].float()
        return logits


def _padded(rows: Sequence[torch.Tensor], longest: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows (1, S, D) with nothing in front as (B, S, D), and where something is (B, S)."""
    embeds = rows[0].new_zeros(len(rows), longest, rows[0].shape[-1])
    mask = torch.zeros(len(rows), longest, dtype=torch.long, device=embeds.device)
    for place, row in enumerate(rows):
        embeds[place, longest - row.shape[1] :] = row[0]
        mask[place, longest - row.shape[1] :] = 1
    return embeds, mask


def _positions(mask: torch.Tensor) -> torch.Tensor:
    """Each prompt's own count (B, S); padding stands at 0, where nobody looks."""
    return (mask.cumsum(dim=1) - 1).clamp(min=0)
