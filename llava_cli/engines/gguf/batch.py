"""Many conversations at once: continuous batching in one context.

Every conversation gets a slot, a sequence with room of its own. Pictures are read one after the
other, for they fill the processor on their own; question tails and single tokens of all slots are
read together, which is what costs little more for sixteen than for one. When an answer ends, or
nobody waits for it any more, the next conversation takes its slot while the others go on. What all
conversations begin with is read once; a slot that begins like another (two questions about one
picture) copies its state. Where another kind of context reads prompts quicker than the slots' own,
they are read there and moved.

Not here: what a prompt is made of (`engine.py`), how a token is chosen (`answer.py`).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from llava_cli.conversation import Conversation
from llava_cli.engines import answer
from llava_cli.engines.base import Audience, Sampling, Token
from llava_cli.engines.gguf.context import Context, Logits
from llava_cli.engines.gguf.layout import Cell
from llava_cli.engines.gguf.prompt import Prompt, Reader
from llava_cli.engines.gguf.transposed import Mover
from llava_cli.errors import LlavaError, OutOfMemory

MOST_SLOTS = 16
_LEAST_SLOTS = 4
"""Where others may come while these are answered."""
_WORTH_COPYING = 8
"""Positions; fewer are read sooner than copied."""


@dataclass
class _Slot:
    """One conversation that is being answered."""

    index: int
    prompt: Prompt
    conversation: Conversation
    sampling: Sampling
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
        make_contexts: Callable[[int], tuple[Context, Context | None]],
        asked: Sequence[tuple[int, Conversation, Sampling]],
        slots: Callable[[int], int],
        audience: Audience | None = None,
    ) -> None:
        """`make_contexts`: one of so many slots, and one of one sequence where prompts are read
        quicker, if there is such; `asked`: each with its index; `slots` tells how many sequences of
        so many positions memory bears.
        """
        self._reader = reader
        self._make_contexts = make_contexts
        self._slots_for = slots
        self._audience = audience
        self._waiting = deque(asked)
        self._context: Context | None = None
        self._apart: Context | None = None
        """Where prompts are read that are then moved to their slot."""
        self._mover = Mover()
        self._active: dict[int, _Slot] = {}
        self._prompts: dict[int, Prompt] = {}
        self._shared = _Shared()
        self._failure: LlavaError | None = None

    def add(self, index: int, conversation: Conversation, sampling: Sampling) -> None:
        """One more, behind those that wait."""
        self._waiting.append((index, conversation, sampling))

    @property
    def busy(self) -> bool:
        """Whether anything is left to do."""
        return bool(self._waiting or self._active)

    def run(self) -> Iterator[tuple[int, Token]]:
        """Tokens of all answers as they come; an error comes when it is its conversation's turn."""
        try:
            while self.busy:
                yield from self.round()
        finally:
            self.close()

    def round(self) -> Iterator[tuple[int, Token]]:
        """Fill what is free, then one token more of every answer."""
        self._drop_unwanted()
        while self._failure is None:
            try:
                self._fill()
                break
            except LlavaError as error:
                self._refuse(error)
        if self._failure is not None and not self._active:
            raise self._failure
        yield from self._step()

    def close(self) -> None:
        """Free the context; a second call does nothing."""
        for context in (self._context, self._apart):
            if context is not None:
                context.close()
        self._context = self._apart = None

    def _drop_unwanted(self) -> None:
        """Whoever has gone leaves slot and place; what its slot has read may serve another."""
        audience = self._audience
        if audience is None:
            return
        for number in [n for n, slot in self._active.items() if audience.gone(slot.index)]:
            del self._active[number]
        for entry in [entry for entry in self._waiting if audience.gone(entry[0])]:
            self._waiting.remove(entry)
            self._prompts.pop(entry[0], None)

    def _refuse(self, error: LlavaError) -> None:
        """What the next conversation cannot have: said at its turn, or to the audience at once."""
        if self._audience is None:
            self._failure = error  # raised when those before it have their answers
            return
        index, _, _ = self._waiting.popleft()
        self._prompts.pop(index, None)
        self._audience.failed(index, error)

    def _fill(self) -> None:
        """Give free slots the next conversations, read up to their tails."""
        while self._waiting:
            index, _, sampling = self._waiting[0]
            prompt = self._prompt(*self._waiting[0])
            room = self._reader.room_for(len(prompt.cells), sampling)
            context = self._room(room, prompt)
            if context is None:  # everything is taken, or too narrow while others are at work
                return
            free = next(s for s in range(len(context.cells)) if s not in self._active)
            self._active[free] = self._begin(context, free, index, prompt)
            self._waiting.popleft()
            self._prompts.pop(index)
            if self._audience is not None:  # a picture takes long: those who listen hear on
                return

    def _room(self, positions: int, prompt: Prompt) -> Context | None:
        """The context with a free slot of so many positions; None where one must be waited for."""
        context = self._context
        if context is not None and positions <= context.capacity and not self._outgrown(context):
            return context if len(self._active) < len(context.cells) else None
        if self._active:
            return None
        self.close()
        self._shared = _Shared()
        positions = max([positions, *(room for _, room in self._ahead())])
        slots = self._slots(positions)
        while True:
            self._context, self._apart = self._make_contexts(slots)
            try:
                self._context.reserve(positions, prompt.tiles)
                return self._context
            except OutOfMemory:
                if slots == 1:
                    raise
                slots //= 2

    def _outgrown(self, context: Context) -> bool:
        """Whether more ask now than the context was made for, and memory bears twice as many."""
        slots = len(context.cells)
        if self._audience is None or slots >= min(self._asking, MOST_SLOTS):
            return False
        return 2 * slots <= self._slots(context.capacity)

    @property
    def _asking(self) -> int:
        return len(self._waiting) + len(self._active)

    def _slots(self, positions: int) -> int:
        """Sequences of so many positions, for those who ask now."""
        wanted = self._asking if self._audience is None else max(self._asking, _LEAST_SLOTS)
        return max(1, min(wanted, MOST_SLOTS, self._slots_for(positions)))

    def _begin(self, context: Context, slot: int, index: int, prompt: Prompt) -> _Slot:
        """Read the prompt of the conversation whose turn it is, up to its tail of text."""
        started = time.perf_counter()
        before = self._reader.pictures.spent
        reused = self._read_apart(context, slot, prompt)
        if reused is None:
            context.reserve(context.capacity, prompt.tiles)
            reused = self._copied_beginning(context, slot, prompt)
            end = prompt.last_picture_end
            if end > reused:
                self._reader.read(context, slot, prompt, reused, end)
        done = len(context.cells[slot])
        after = self._reader.pictures.spent
        return _Slot(
            index=index,
            prompt=prompt,
            conversation=self._waiting[0][1],
            sampling=self._waiting[0][2],
            tail=tuple(c for c in prompt.cells[done:] if isinstance(c, int)),
            started=started,
            image_s=after[0] - before[0],
            hit=after[2] == before[2],
            reused=reused,
        )

    def _read_apart(self, context: Context, slot: int, prompt: Prompt) -> int | None:
        """Read all but the last position where that is quicker, and move it to the slot.

        How many positions were known there; None where the slot itself is to read.
        """
        apart, cells = self._apart, prompt.cells[:-1]
        if apart is None or not cells:
            return None
        known = max(_common(others, cells) for others in context.cells)
        if known >= max(prompt.last_picture_end, _WORTH_COPYING):  # little is left to read
            return None
        try:
            apart.reserve(len(cells), prompt.tiles)
            known = apart.keep(cells)
            if known < len(cells):
                self._reader.read(apart, 0, prompt, known, len(cells))
            if self._mover.move(apart, context, slot):
                return known
        except (OutOfMemory, MemoryError):  # the slots can do without
            pass
        apart.close()
        self._apart = None
        return None

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
        for following, _ in self._ahead():
            cells = cells[: _common(cells, following.cells)]
        if len(cells) < _WORTH_COPYING or len(self._waiting) < 2:
            return
        context.forget(slot)
        context.read_tokens([cell for cell in cells if isinstance(cell, int)], slot)
        self._shared = _Shared(cells, context.state(slot))

    def _ahead(self) -> Iterator[tuple[Prompt, int]]:
        """The prompts that come next and the positions they take, as far as they are good."""
        for entry in [*islice(self._waiting, MOST_SLOTS)]:
            try:
                prompt = self._prompt(*entry)
                room = self._reader.room_for(len(prompt.cells), entry[2])
            except LlavaError:
                return
            yield prompt, room

    def _prompt(self, index: int, conversation: Conversation, _: Sampling) -> Prompt:
        if index not in self._prompts:
            self._prompts[index] = self._reader.prompt(conversation)
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
        prefill_s = time.perf_counter() - slot.started - slot.image_s
        stats = self._reader.stats(
            slot.prompt, image_s=slot.image_s, prefill_s=prefill_s, hit=slot.hit, reused=slot.reused
        )
        return self._reader.writer(
            answer.Prefilled(logits, slot.started, stats), slot.conversation, slot.sampling
        )


def attended(
    batch: Batch, alone: Generator[Token] | None, audience: Audience, count: int
) -> Iterator[tuple[int, Token]]:
    """A batch whose audience comes and goes; `count` conversations were asked to begin with.

    `alone` answers the first of them outside the batch: it goes on from what was read before.
    """
    try:
        while True:
            for conversation, sampling in audience.more():
                batch.add(count, conversation, sampling)
                count += 1
            if alone is not None and audience.gone(0):
                alone.close()
                alone = None
            if alone is None and not batch.busy:
                return
            try:
                token = None if alone is None else next(alone, None)
            except LlavaError as error:
                token = None
                audience.failed(0, error)
            if token is None:
                alone = None
            else:
                yield 0, token
            if batch.busy:
                yield from batch.round()
    finally:
        batch.close()


def _common(cells: Sequence[Cell], others: Sequence[Cell]) -> int:
    """Length of the common beginning."""
    length = 0
    for one, other in zip(cells, others, strict=False):
        if one != other:
            break
        length += 1
    return length
