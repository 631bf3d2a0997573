"""Requests to an endpoint: so many at a time, paced, within a budget, journalled, until all answer.

The order of things around one request is what makes a kill harmless: hold back its cost, wait for
its turn, mark it as sent (on the disk), send, store the answer (on the disk), only then count it.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from llava_cli.errors import DataError, LlavaError
from llava_train.datagen.endpoint import Endpoint, Refused
from llava_train.datagen.journal import Journal
from llava_train.datagen.pacing import Pace
from llava_train.datagen.prices import Budget, prompt_tokens

TOO_MANY_REFUSALS = 20
"""Requests in a row that an endpoint refuses for good, before anything was answered."""
TOO_MANY_TOO_LONG = 8
"""Requests of one kind that the model's context does not hold, before one of them was answered."""
SHORTER = (
    "leave worked examples out with --few-shot 0, shorten the texts with --prompts,"
    " or start the server with a longer context"
)
"""What a person can do about requests that are too long."""
_LIMITED_ATTEMPTS = 100
"""Waiting out `too many requests` is no failure; only an endpoint that never stops saying it is."""


@dataclass(frozen=True)
class Request:
    """A body and its name in the journal."""

    key: str
    body: dict[str, Any]
    max_tokens: int
    kind: str = ""
    """Requests of one kind are about as long as each other."""


@dataclass
class Sent:
    """What became of the requests of a run."""

    answered: int = 0
    failed: int = 0
    cached: int = 0
    """Answered before, by this run or an earlier one."""
    too_long: int = 0
    """Refused because the model's context does not hold them; among `failed`."""
    over_budget: bool = False
    interrupted: bool = False


@dataclass
class Sender:
    """Sends requests that have no answer yet."""

    endpoint: Endpoint
    journal: Journal
    budget: Budget
    pace: Pace
    concurrency: int = 8
    attempts: int = 6
    progress: Callable[[Sent], None] = lambda sent: None
    sent: Sent = field(default_factory=Sent)
    _flying: set[str] = field(default_factory=set)
    _pending: set[asyncio.Task[None]] = field(default_factory=set)
    _asking: set[asyncio.Task[Any] | None] = field(default_factory=set)
    """Tasks whose request is in flight, and not waiting for its turn or a pause."""
    _stop: bool = False
    _refusals: int = 0
    _too_long: Counter[str] = field(default_factory=Counter)
    """Requests too long for the model, by kind."""
    _fits: set[str] = field(default_factory=set)
    """Kinds of which a request was answered."""

    def run(self, requests: Iterable[Request]) -> Sent:
        """All of them; KeyboardInterrupt is left to the caller as `interrupted`."""
        try:
            asyncio.run(self._run(requests))
        except sqlite3.Error as error:
            raise DataError(
                f"the journal cannot be used: {error}",
                "free some space on its disk; the same command goes on from there",
            ) from error
        return self.sent

    async def _run(self, requests: Iterable[Request]) -> None:
        with _interrupts(self._interrupt):
            try:
                for request in requests:
                    if not await self._admit(request):
                        break
                while self._pending:
                    await self._one_done()
            finally:
                self._halt()
                await asyncio.gather(*self._pending, return_exceptions=True)
                await self.endpoint.close()

    async def _admit(self, request: Request) -> bool:
        """Start a request as soon as there is room; False where no more may start."""
        if request.key in self._flying or self.journal.answer(request.key) is not None:
            self.sent.cached += 1
            if request.key not in self._flying:
                self._fits.add(request.kind)
            if self.sent.cached % 256 == 0:
                await asyncio.sleep(0)  # let what is in flight, and Ctrl-C, have their turn
            return not self._stop
        while len(self._pending) >= self.concurrency:
            await self._one_done()
        prompt = prompt_tokens(request.body["messages"])
        while not self._stop and not self.budget.hold(prompt, request.max_tokens):
            if not self._pending:
                self.sent.over_budget = True
                return False
            await self._one_done()
        if self._stop:
            return False
        self._flying.add(request.key)
        self._pending.add(asyncio.create_task(self._attempts(request, prompt)))
        await asyncio.sleep(0)
        return True

    async def _one_done(self) -> None:
        done, self._pending = await asyncio.wait(self._pending, return_when=asyncio.FIRST_COMPLETED)
        failures = [task.exception() for task in done if not task.cancelled()]
        self.progress(self.sent)
        for failure in filter(None, failures):
            raise failure  # what ends the run

    async def _attempts(self, request: Request, prompt: int) -> None:
        """One request until it is answered or given up."""
        tries = limited = 0
        held = True
        try:
            while held and not self._stop:
                await self.pace.turn(prompt + request.max_tokens)
                try:
                    await self._once(request, prompt)
                    return
                except Refused as refused:
                    if refused.hopeless:
                        raise _hopeless(refused) from refused
                    limited, tries = limited + refused.limited, tries + (not refused.limited)
                    spent = tries >= self.attempts or limited >= _LIMITED_ATTEMPTS
                    if spent or not refused.again:
                        self._give_up(request, refused)
                        return
                    held = not refused.maybe_paid or self._hold_again(request, prompt)
                    if held and not self._stop:
                        await self._wait(refused, max(tries, limited) - 1)
        finally:
            self._flying.discard(request.key)
            if held:
                self.budget.release(prompt, request.max_tokens)

    def _hold_again(self, request: Request, prompt: int) -> bool:
        """Whether the budget bears another attempt beside the one that may have been paid for."""
        self.budget.release(prompt, request.max_tokens)
        held = self.budget.hold(prompt, request.max_tokens)
        self.sent.over_budget |= not held
        return held

    async def _once(self, request: Request, prompt: int) -> None:
        self.journal.mark_sent(request.key, prompt, request.max_tokens)
        task = asyncio.current_task()
        try:
            self._asking.add(task)
            answer = await self.endpoint.ask(request.body, request.key)
        except Refused as refused:
            if refused.maybe_paid:
                self.journal.lose(request.key, refused.why)
                self.budget.spend(prompt, request.max_tokens)
            else:
                self.journal.unsent(request.key)
            raise
        finally:
            self._asking.discard(task)
        self.journal.store(request.key, answer)
        self.budget.spend(answer.prompt_tokens, answer.completion_tokens)
        self.pace.used(prompt + request.max_tokens, answer.prompt_tokens + answer.completion_tokens)
        self.sent.answered += 1
        self._fits.add(request.kind)
        self._refusals = 0

    async def _wait(self, refused: Refused, failures: int) -> None:
        """A pause before the next attempt: for everybody, if the endpoint limits the account."""
        seconds = refused.after_s
        if seconds is None:
            seconds = self.pace.backoff(min(failures, 20))
        if refused.limited:
            self.pace.pause(seconds)
        await asyncio.sleep(seconds)

    def _give_up(self, request: Request, refused: Refused) -> None:
        self.journal.fail(request.key, refused.why)
        self.sent.failed += 1
        self._refusals += 1
        if refused.too_long:
            self.sent.too_long += 1
            self._too_long[request.kind] += 1
            never = request.kind not in self._fits
            if never and self._too_long[request.kind] >= TOO_MANY_TOO_LONG:
                raise _no_room(request.kind, refused) from refused
        if self._refusals >= TOO_MANY_REFUSALS and not self.sent.answered:
            raise _hopeless(refused) from refused

    def _halt(self) -> None:
        """Nothing new leaves; what is in flight is paid for, and may arrive."""
        for task in self._pending:
            if task not in self._asking:
                task.cancel()
        self._stop = True

    def _interrupt(self) -> None:
        """The first time halt, after that stop at once."""
        if self._stop:
            for task in self._pending:
                task.cancel()
        self.sent.interrupted = True
        self._halt()


@contextlib.contextmanager
def _interrupts(handle: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C and SIGTERM to `handle`, where the event loop can do that (not on Windows)."""
    loop = asyncio.get_running_loop()
    taken = []
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError, ValueError, RuntimeError):
            loop.add_signal_handler(number, handle)
            taken.append(number)
    try:
        yield
    finally:
        for number in taken:
            loop.remove_signal_handler(number)


def _no_room(kind: str, refused: Refused) -> LlavaError:
    what = f"requests for {kind}" if kind else "requests"
    hint = SHORTER if kind else "start the server with a longer context"
    return LlavaError(f"{what} are too long for the language model: {refused.why}", hint)


def _hopeless(refused: Refused) -> LlavaError:
    return LlavaError(
        f"the language model cannot be asked: {refused.why}",
        "check --base-url, --llm and the API key; what was answered is kept",
    )
