"""The one thread that uses the engine: takes what waits, answers it together.

Requests that sample alike share a call of `generate_batch`. A request that nobody waits for any
more is dropped before its turn; a batch that nobody waits for is ended at once.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from llava_cli.conversation import Conversation
from llava_cli.engines.base import Engine, Sampling, Token
from llava_cli.errors import LlavaError

MOST_WAITING = 256
MOST_TOGETHER = 16


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
    finished: bool = False

    def give(self, token: Token | LlavaError) -> None:
        """Hand something to the waiting request, from the worker's thread."""
        self.finished = isinstance(token, LlavaError) or token.finish_reason is not None
        try:
            self.loop.call_soon_threadsafe(self.tokens.put_nowait, token)
        except RuntimeError:  # the loop is closed: the server has ended
            self.cancelled = True


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
                job.give(LlavaError("the server is stopping"))
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

    def _answer(self, jobs: list[Job]) -> None:
        """One batch; what one request breaks does not take the others with it."""
        jobs = [job for job in jobs if not job.cancelled]
        if not jobs:
            return
        self.active = len(jobs)
        tokens = self.engine.generate_batch([job.conversation for job in jobs], jobs[0].sampling)
        try:
            for index, token in tokens:
                jobs[index].begun = True
                jobs[index].give(token)
                self.active = sum(not (job.finished or job.cancelled) for job in jobs)
                if self.active == 0 or self._stopping:
                    break
        except LlavaError as error:
            self._separately(jobs, error)
        except Exception as error:  # noqa: BLE001 - the server outlives a defect
            self._separately(jobs, LlavaError(f"{type(error).__name__}: {error}"))
        finally:
            close = getattr(tokens, "close", None)
            if close is not None:
                close()
            self.active = 0
            self._rested = time.monotonic()
        for job in jobs:
            if not job.finished and not job.cancelled and (self._stopping or job.begun):
                job.give(LlavaError("the answer was cut short: the server is stopping"))

    def _separately(self, jobs: list[Job], error: LlavaError) -> None:
        """After an error: requests that were not begun get a turn of their own."""
        left = [job for job in jobs if not job.finished]
        for job in left:
            if job.begun or len(jobs) == 1:
                job.give(error)
            else:
                self._answer([job])
