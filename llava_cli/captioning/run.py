"""One run of captioning: find, decode ahead, answer in batches, keep.

Yields what became of each picture; prints nothing. Memory holds a batch of pictures and no list.
"""

from __future__ import annotations

import errno
import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal

from llava_cli.captioning.keepers import Keeper
from llava_cli.captioning.sources import Item, Sources
from llava_cli.captioning.wording import Finish, Template, Variables, one_line, variables
from llava_cli.conversation import Conversation
from llava_cli.engines.base import Engine, Sampling
from llava_cli.errors import LlavaError, OutOfMemory
from llava_cli.images import Image

Existing = Literal["skip", "overwrite", "append", "prepend"]
AHEAD = 4
"""Pictures that are decoded while others are answered."""
BATCH = 8
"""Pictures that are answered together unless somebody says otherwise."""
BATCH_PIXELS = 100_000_000
"""A batch of larger pictures is smaller: its pixels wait in memory."""
_FATAL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
"""What makes writing the next caption as vain as this one."""


@dataclass(frozen=True)
class Job:
    """What is asked about every picture and what becomes of the answers."""

    sources: Sources
    prompt: Template
    sampling: Sampling
    finish: Finish = Finish()
    existing: Existing = "skip"
    system: str | None = None
    prefill: str = ""
    background: str = "white"
    batch_size: int | None = None
    """None chooses."""
    limit: int | None = None
    """Most pictures that are tried."""
    only_failed: bool = False

    def fingerprint(self, model: str) -> str:
        """Settings that make two runs the same one, continued."""
        same = replace(self, batch_size=None, limit=None, only_failed=False)
        return hashlib.sha256(repr((same, model)).encode("utf-8", "replace")).hexdigest()


@dataclass(frozen=True)
class Outcome:
    """What became of one picture."""

    item: Item
    kind: Literal["written", "skipped", "failed"]
    caption: str = ""
    error: str = ""


@dataclass(frozen=True)
class _Work:
    item: Item
    old: str
    name: str


@dataclass(frozen=True)
class _Asked:
    """A picture that is decoded, with its question."""

    work: _Work
    conversation: Conversation
    variables: Variables
    data: bytes
    pixels: int


def select(job: Job, keeper: Keeper) -> Iterator[Outcome | _Work | None]:
    """Each picture once: what has to be captioned, and what need not or cannot be.

    None comes before pictures that take long to look at: what was found need not wait for them.
    """
    chosen = 0
    for found in _in_order(job, keeper):
        if isinstance(found, _Work) or (found is not None and found.kind == "failed"):
            chosen += 1
        yield found
        if job.limit is not None and chosen >= job.limit:
            return


def _in_order(job: Job, keeper: Keeper) -> Iterator[Outcome | _Work | None]:
    """Pictures that lack a caption first, then all that were not among these.

    So work begins at once where all but a few of 100,000 pictures are done. The second pass knows
    the pictures of the first by their claim to a place.
    """
    if job.existing == "skip" and not job.only_failed:
        for item in job.sources.some(keeper.bare):
            found = _looked_at(job, keeper, item)
            if isinstance(found, _Work) or (found is not None and found.kind == "skipped"):
                yield found  # what is refused has no place: it is refused again, and said then
        yield None
    for item in job.sources.items():
        again = _looked_at(job, keeper, item)
        if again is not None:
            yield again


def _looked_at(job: Job, keeper: Keeper, item: Item) -> Outcome | _Work | None:
    """None for a picture that was named twice, or is not wanted again."""
    journal = keeper.journal
    try:
        if item.problem:
            raise LlavaError(f"{item.shown}: {item.problem}")
        place = keeper.place(item)
        if job.only_failed and not journal.has_failed(place.name):
            return None
        other = journal.claim(place.key, place.name)
        if other == place.name:
            return None
        if other is not None:
            raise LlavaError(f"{item.shown}: would share {place.shown} with {other}")
        old = keeper.caption(item)
    except LlavaError as error:
        journal.failed(item.shown, error.message)
        return Outcome(item, "failed", error=error.message)
    captioned = old is not None and job.existing == "skip"
    if captioned or journal.is_done(place.name):
        journal.forgive(place.name)
        return Outcome(item, "skipped", caption=old or "")
    return _Work(item, old or "", place.name)


class Run:
    """Captions what a job names, with an engine that is loaded when the first picture needs it."""

    def __init__(self, job: Job, keeper: Keeper, load: Callable[[], Engine]) -> None:
        self._job = job
        self._keeper = keeper
        self._load = load
        self._engine: Engine | None = None
        self._size = job.batch_size or BATCH

    def outcomes(self) -> Iterator[Outcome]:
        """What becomes of each picture, as it becomes known."""
        batch: list[_Asked] = []
        for found in self._asked():
            if isinstance(found, Outcome):
                yield found
                continue
            if found is not None:
                batch.append(found)
            pixels = sum(asked.pixels for asked in batch)
            if found is None or len(batch) >= self._size or pixels > BATCH_PIXELS:
                yield from self._answered(batch)
                batch = []
        yield from self._answered(batch)

    def _asked(self) -> Iterator[Outcome | _Asked | None]:
        """Decode some pictures ahead of the engine; None as in `select`."""
        pool = ThreadPoolExecutor(2, thread_name_prefix="decode")
        waiting: deque[Future[Outcome | _Asked]] = deque()
        try:
            for found in select(self._job, self._keeper):
                if isinstance(found, Outcome):
                    yield found
                    continue
                if found is not None:
                    waiting.append(pool.submit(self._ask, found))
                while len(waiting) > (0 if found is None else AHEAD):
                    yield self._noted(waiting.popleft().result())
                if found is None:
                    yield None
            while waiting:
                yield self._noted(waiting.popleft().result())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _ask(self, work: _Work) -> Outcome | _Asked:
        """Read and decode one picture; runs in a thread and touches no journal."""
        from llava_cli.decode import exif_date

        job, item = self._job, work.item
        try:
            data = item.read()
            image = Image.from_bytes(data, item.shown, "file", job.background).loaded()
            if image.pixels is None:
                raise LlavaError(f"{item.shown}: was not decoded")
        except OSError as error:
            return Outcome(item, "failed", error=f"{item.shown}: {error.strerror or error}")
        except LlavaError as error:
            return Outcome(item, "failed", error=error.message)
        filled = variables(item.relative, item.shown, work.old, lambda: exif_date(data))
        conversation = Conversation()
        if job.system is not None:
            conversation = conversation.add("system", job.system)
        conversation = conversation.add("user", image, job.prompt.fill(filled))
        if job.prefill:
            conversation = conversation.add("assistant", job.prefill)
        return _Asked(work, conversation, filled, data, image.pixels.width * image.pixels.height)

    def _noted(self, found: Outcome | _Asked) -> Outcome | _Asked:
        """A picture that could not be decoded is remembered."""
        if isinstance(found, Outcome):
            self._keeper.journal.failed(self._keeper.place(found.item).name, found.error)
        return found

    def _answered(self, batch: Sequence[_Asked]) -> Iterator[Outcome]:
        """Answers to one batch; a batch that does not fit into memory is halved."""
        if not batch:
            return
        if self._engine is None:
            self._engine = self._load()
        answers = ["" if not self._job.prefill else self._job.prefill for _ in batch]
        left = dict(enumerate(batch))
        conversations = [asked.conversation for asked in batch]
        try:
            tokens = self._engine.generate_batch(conversations, self._job.sampling)
            for index, token in tokens:
                answers[index] += token.text
                if token.finish_reason is not None:
                    yield self._kept(left.pop(index), answers[index])
        except OutOfMemory:
            if len(left) < 2:
                raise
            self._size = max(1, len(batch) // 2)
            rest = list(left.values())
            half = (len(rest) + 1) // 2
            yield from self._answered(rest[:half])
            yield from self._answered(rest[half:])
        except LlavaError as error:
            if len(left) == 1:
                ((_, asked),) = left.items()
                yield self._failed(asked, error.message)
            else:  # whichever it was: the others shall have their captions
                for asked in left.values():
                    yield from self._answered([asked])

    def _kept(self, asked: _Asked, answer: str) -> Outcome:
        """The finished caption, in its place."""
        job, item = self._job, asked.work.item
        caption = job.finish.apply(answer, asked.variables)
        if not caption:
            return self._failed(asked, "the model said nothing")
        old = asked.work.old if job.existing in ("append", "prepend") else ""
        if old:
            caption = _joined(old, caption, job.existing, flat=self._keeper.one_line)
        if self._keeper.one_line:
            caption = one_line(caption)
        try:
            replaces = job.existing != "skip"
            written = self._keeper.store(item, caption, asked.data, replace=replaces)
        except OSError as error:
            if error.errno in _FATAL:
                raise
            return self._failed(asked, f"cannot be written: {error.strerror or error}")
        except LlavaError as error:
            return self._failed(asked, error.message)
        return Outcome(item, "written" if written else "skipped", caption)

    def _failed(self, asked: _Asked, error: str) -> Outcome:
        shown = asked.work.item.shown
        text = error if error.startswith(shown) else f"{shown}: {error}"
        self._keeper.journal.failed(asked.work.name, text)
        return Outcome(asked.work.item, "failed", error=text)

    def close(self) -> None:
        """Free the engine, if one was needed."""
        if self._engine is not None:
            self._engine.close()


def _joined(old: str, new: str, existing: Existing, *, flat: bool) -> str:
    """Two captions as one: sentences by a blank, tags by a comma, lines by lines."""
    first, second = (old, new) if existing == "append" else (new, old)
    if not flat:
        return f"{first}\n{second}"
    return f"{first} {second}" if first.endswith((".", "!", "?")) else f"{first}, {second}"
