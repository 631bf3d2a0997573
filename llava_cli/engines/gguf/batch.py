"""Many conversations at once: continuous batching in one context.

Every conversation gets a slot, a sequence with room of its own. Pictures are read one after the
other, for they fill the processor on their own; question tails and single tokens of all slots are
read together, which is what costs little more for sixteen than for one. When an answer ends, the
next conversation takes its slot while the others go on. What all conversations begin with is read
once; a slot that begins like another (two questions about one picture) copies its state.

Not here: what a prompt is made of (`engine.py`), how a token is chosen (`answer.py`).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from llava_cli.conversation import Conversation
from llava_cli.engines import answer
from llava_cli.engines.base import Sampling, Token
from llava_cli.engines.gguf.context import Context, Logits
from llava_cli.engines.gguf.layout import Cell
from llava_cli.engines.gguf.prompt import Prompt, Reader
from llava_cli.errors import LlavaError

MOST_SLOTS = 16
_WORTH_COPYING = 8
"""Positions; fewer are read sooner than copied."""


@dataclass
class _Slot:
    """One conversation that is being answered."""

    index: int
    prompt: Prompt
    tail: tuple[int, ...]
    """Token ids that are to be read next; their logits choose the next token."""
    started: float
    image_s: float
    hit: bool
    reused: int
    writer: answer.Writer | None = None


@dataclass
class _Shared:
    """The beginning of all prompts, once it was read."""

    cells: list[Cell] = field(default_factory=list)
    state: memoryview | None = None


class Batch:
    """One run of `generate_batch`."""

    def __init__(
        self,
        reader: Reader,
        make_context: Callable[[int], Context],
        conversations: Sequence[Conversation],
        sampling: Sampling,
        slots: Callable[[int], int],
    ) -> None:
        """`slots` tells how many sequences of so many positions memory bears."""
        self._reader = reader
        self._make_context = make_context
        self._sampling = sampling
        self._conversations = conversations
        self._waiting = deque(range(len(conversations)))
        self._slots_for = slots
        self._context: Context | None = None
        self._active: dict[int, _Slot] = {}
        self._prompts: dict[int, Prompt] = {}
        self._shared = _Shared()

    def run(self) -> Iterator[tuple[int, Token]]:
        """Tokens of all answers as they come; an error comes when it is its conversation's turn."""
        try:
            failure: LlavaError | None = None
            while self._waiting or self._active:
                try:
                    if failure is None:
                        self._fill()
                except LlavaError as error:  # raised when those before it have their answers
                    failure = error
                if failure is not None and not self._active:
                    raise failure
                yield from self._step()
        finally:
            if self._context is not None:
                self._context.close()

    def _fill(self) -> None:
        """Give every free slot the next conversation, read up to its tail."""
        while self._waiting:
            index = self._waiting[0]
            prompt = self._prompt(index)
            room = self._reader.room_for(len(prompt.cells), self._sampling)
            context = self._room(room, prompt)
            if context is None:  # everything is taken, or too narrow while others are at work
                return
            free = next(s for s in range(len(context.cells)) if s not in self._active)
            self._waiting.popleft()
            self._prompts.pop(index)
            self._active[free] = self._begin(context, free, index, prompt)

    def _room(self, positions: int, prompt: Prompt) -> Context | None:
        """The context with a free slot of so many positions; None where one must be waited for."""
        context = self._context
        if context is not None and positions <= context.capacity:
            return context if len(self._active) < len(context.cells) else None
        if self._active:
            return None
        if context is not None:
            context.close()
        self._shared = _Shared()
        ahead = [self._reader.room_for(len(p.cells), self._sampling) for p in self._ahead()]
        positions = max(positions, *ahead)
        slots = max(1, min(len(self._waiting), MOST_SLOTS, self._slots_for(positions)))
        self._context = self._make_context(slots)
        self._context.reserve(positions, prompt.tiles)
        return self._context

    def _begin(self, context: Context, slot: int, index: int, prompt: Prompt) -> _Slot:
        """Read a prompt up to its tail of text."""
        started = time.perf_counter()
        before = self._reader.pictures.spent
        context.reserve(context.capacity, prompt.tiles)
        reused = self._copied_beginning(context, slot, prompt)
        end = prompt.last_picture_end
        if end > reused:
            self._reader.read(context, slot, prompt, reused, end)
        done = max(end, reused)
        after = self._reader.pictures.spent
        return _Slot(
            index=index,
            prompt=prompt,
            tail=tuple(c for c in prompt.cells[done:] if isinstance(c, int)),
            started=started,
            image_s=after[0] - before[0],
            hit=after[2] == before[2],
            reused=reused,
        )

    def _copied_beginning(self, context: Context, slot: int, prompt: Prompt) -> int:
        """Let a slot begin like another one or like all of them; how many positions that are."""
        wanted = prompt.cells[:-1]  # one position is read at least: it gives the logits
        lengths = [_common(cells, wanted) for cells in context.cells]
        source = max(range(len(lengths)), key=lambda other: (lengths[other], other == slot))
        if lengths[source] < _WORTH_COPYING:
            self._read_shared(context, slot, prompt)
        shared = _common(self._shared.cells, wanted)
        if context.cells[slot] and _common(context.cells[slot], wanted) >= lengths[source]:
            return context.keep(wanted, slot)
        state, cells = self._shared.state, self._shared.cells
        if lengths[source] - shared >= max(_WORTH_COPYING, len(context.cells[source]) // 8):
            state, cells = context.state(source), context.cells[source]
        context.forget(slot)
        if state is not None:
            context.restore(slot, state, cells)
        return context.keep(wanted, slot)

    def _read_shared(self, context: Context, slot: int, prompt: Prompt) -> None:
        """Read what this prompt and those after it begin with, once."""
        if self._shared.state is not None:
            return
        cells = prompt.cells[: min(prompt.text_in_front, len(prompt.cells) - 1)]
        for following in self._ahead():
            cells = cells[: _common(cells, following.cells)]
        if len(cells) < _WORTH_COPYING or not self._waiting:
            return
        context.forget(slot)
        context.read_tokens([cell for cell in cells if isinstance(cell, int)], slot)
        self._shared = _Shared(cells, context.state(slot))

    def _ahead(self) -> Iterator[Prompt]:
        """The prompts that come next, as far as they are good."""
        for index in [*islice(self._waiting, MOST_SLOTS)]:
            try:
                prompt = self._prompt(index)
                self._reader.room_for(len(prompt.cells), self._sampling)
            except LlavaError:
                return
            yield prompt

    def _prompt(self, index: int) -> Prompt:
        if index not in self._prompts:
            self._prompts[index] = self._reader.prompt(self._conversations[index])
        return self._prompts[index]

    def _step(self) -> Iterator[tuple[int, Token]]:
        """Read the tail of every slot at once, and one token more of each answer."""
        context = self._context
        if context is None or not self._active:
            return
        order = sorted(self._active)
        found = context.read_many([(slot, self._active[slot].tail) for slot in order])
        for slot, logits in zip(order, found, strict=True):
            yield from self._advance(context, slot, logits)

    def _advance(
        self, context: Context, number: int, logits: Logits
    ) -> Iterator[tuple[int, Token]]:
        slot = self._active[number]
        if slot.writer is None:
            slot.writer = self._writer(slot, logits)
        token = slot.writer.take(logits)
        if token is not None:
            yield slot.index, token
        following = slot.writer.token
        if following is None or len(context.cells[number]) >= context.capacity:
            yield slot.index, slot.writer.close()
            del self._active[number]
        else:
            slot.tail = (following,)

    def _writer(self, slot: _Slot, logits: Logits) -> answer.Writer:
        """The prompt is read: its answer begins."""
        conversation = self._conversations[slot.index]
        prefill_s = time.perf_counter() - slot.started - slot.image_s
        stats = self._reader.stats(
            slot.prompt, image_s=slot.image_s, prefill_s=prefill_s, hit=slot.hit, reused=slot.reused
        )
        return self._reader.writer(
            answer.Prefilled(logits, slot.started, stats), conversation, self._sampling
        )


def _common(cells: Sequence[Cell], others: Sequence[Cell]) -> int:
    """Length of the common beginning."""
    length = 0
    for one, other in zip(cells, others, strict=False):
        if one != other:
            break
        length += 1
    return length
