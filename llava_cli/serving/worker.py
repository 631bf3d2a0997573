"""The one thread that uses the engine: takes what waits, answers it together.

Requests that are there share a call of `generate_batch`; those that come while it runs join it
where the engine can take them, and get the next turn otherwise. A request that nobody waits for any
more loses its place at once, before its turn or amid its answer; the others go on.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from llava_cli.conversation import Conversation
from llava_cli.engines.base import Engine, Sampling, Token
from llava_cli.errors import LlavaError

MOST_WAITING = 256
MOST_TOGETHER = 16
_AGAIN = "ask again when it has been started anew"


class Full(Exception):
    """Too many requests wait already."""


@dataclass(eq=False)
class Job:
    """One request on its way through the engine."""

    conversation: Conversation
    sampling: Sampling
    loop: asyncio.AbstractEventLoop
    tokens: asyncio.Queue[Token | LlavaError] = field(default_factory=asyncio.Queue)
    cancelled: bool = False
    """Set by the event loop, read by the worker."""
    begun: bool = False
    tried: bool = False
    """Whether it was in a batch that failed."""
    finished: bool = False

    def give(self, token: Token | LlavaError) -> None:
        """Hand something to the waiting request, from the worker's thread."""
        self.finished = isinstance(token, LlavaError) or token.finish_reason is not None
        try:
            self.loop.call_soon_threadsafe(self.tokens.put_nowait, token)
        except RuntimeError:  # the loop is closed: the server has ended
            self.cancelled = True


class _Table:
    """The requests of one batch, by the engine's index: the batch's `Audience`."""

    def __init__(self, jobs: Sequence[Job], more: Callable[[int], list[Job]]) -> None:
        """`more` takes requests that wait, at most so many."""
        self._more = more
        self.jobs = dict(enumerate(jobs))
        """Those that are not finished."""
        self._count = len(jobs)

    def more(self) -> Sequence[tuple[Conversation, Sampling]]:
        """Requests that have come."""
        self.clear()
        found = self._more(len(self.jobs))
        for job in found:
            self.jobs[self._count] = job
            self._count += 1
        return [(job.conversation, job.sampling) for job in found]

    def gone(self, index: int) -> bool:
        """Whether the client has hung up."""
        return index not in self.jobs or self.jobs[index].cancelled

    def failed(self, index: int, error: LlavaError) -> None:
        """A request that cannot be answered."""
        if index in self.jobs:
            self.jobs.pop(index).give(error)

    def clear(self) -> None:
        """Forget those who have gone."""
        self.jobs = {index: job for index, job in self.jobs.items() if not job.cancelled}


class Worker:
    """Feeds one engine; `close` waits until it is at rest."""

    def __init__(self, load: Callable[[], Engine], together: int = MOST_TOGETHER) -> None:
        """`load` runs in the worker's thread: engines belong to the thread that made them."""
        self._load = load
        self._together = together
        self._waiting: deque[Job] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self.active = 0
        """Requests that are being answered."""
        self._rested = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> Engine:
        """Load the engine; what goes wrong there is raised here."""
        self._thread.start()
        self._ready.wait()
        if self._failure is not None:
            raise self._failure
        return self.engine

    @property
    def waiting(self) -> int:
        """Requests whose turn has not come."""
        return len(self._waiting)

    @property
    def idle_s(self) -> float:
        """Seconds since the last request was answered; 0 while there is work."""
        if self._waiting or self.active:
            return 0.0
        return time.monotonic() - self._rested

    @property
    def alive(self) -> bool:
        """Whether requests are answered."""
        return self._thread.is_alive()

    def submit(self, job: Job) -> None:
        """Queue a request; Full where too many wait."""
        with self._wake:
            if self._stopping or not self.alive:
                raise Full("the server is stopping")
            if len(self._waiting) >= MOST_WAITING:
                raise Full("too many requests are waiting")
            self._waiting.append(job)
            self._wake.notify()

    def cancel(self, job: Job) -> None:
        """Nobody waits for this one any more."""
        job.cancelled = True
        with self._wake:
            if job in self._waiting:
                self._waiting.remove(job)

    def close(self) -> None:
        """Finish nothing more, free the engine."""
        with self._wake:
            self._stopping = True
            for job in self._waiting:
                job.give(LlavaError("the server is stopping", _AGAIN))
            self._waiting.clear()
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        try:
            self.engine = self._load()
        except BaseException as error:  # noqa: BLE001 - raised again by start, in its thread
            self._failure = error
            return
        finally:
            self._ready.set()
        try:
            while (jobs := self._take()) is not None:
                self._answer(jobs)
        finally:
            self.engine.close()

    def _take(self) -> list[Job] | None:
        """The next requests that sample alike, in order; None at the end."""
        with self._wake:
            while not self._waiting and not self._stopping:
                self._wake.wait()
            if self._stopping:
                return None
            first = self._waiting[0].sampling
            jobs = [job for job in self._waiting if job.sampling == first][: self._together]
            for job in jobs:
                self._waiting.remove(job)
            return jobs

    def _more(self, present: int) -> list[Job]:
        """Those who may sit down with so many."""
        with self._wake:
            room = max(0, self._together - present)
            found = [self._waiting.popleft() for _ in range(min(room, len(self._waiting)))]
        self.active = present + len(found)
        return found

    def _answer(self, jobs: list[Job]) -> None:
        """One batch; what one request breaks does not take the others with it."""
        table = _Table([job for job in jobs if not job.cancelled], self._more)
        if not table.jobs:
            return
        self.active = len(table.jobs)
        asked = [job.conversation for job in table.jobs.values()]
        tokens = self.engine.generate_batch(asked, jobs[0].sampling, table)
        failure: LlavaError | None = None
        try:
            for index, token in tokens:
                self._hand_over(table, index, token)
                if self._stopping or not table.jobs:
                    break
        except LlavaError as error:
            failure = error
        except Exception as error:  # noqa: BLE001 - the server outlives a defect
            hint = "this should not happen: please report it"
            failure = LlavaError(f"{type(error).__name__}: {error}", hint)
        finally:
            close = getattr(tokens, "close", None)
            if close is not None:
                close()
            self.active = 0
            self._rested = time.monotonic()
        self._left(table, failure)

    def _hand_over(self, table: _Table, index: int, token: Token) -> None:
        """One token, to whom it belongs."""
        job = table.jobs.get(index)
        if job is not None:
            job.begun = True
            job.give(token)
            if job.finished:
                del table.jobs[index]
        table.clear()
        self.active = len(table.jobs)

    def _left(self, table: _Table, failure: LlavaError | None) -> None:
        """What becomes of those without an answer: a turn of their own, where that can help."""
        table.clear()
        alone = len(table.jobs) == 1
        for job in table.jobs.values():
            if failure is None or self._stopping:
                job.give(LlavaError("the answer was cut short: the server is stopping", _AGAIN))
            elif job.begun or job.tried or alone:
                job.give(failure)
            else:
                job.tried = True
                self._answer([job])
