"""How fast requests may leave: limits a minute, and pauses that an endpoint asks for."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime

LONGEST_PAUSE_S = 60.0
"""Of our own choice; one that the endpoint names is kept up to `LONGEST_NAMED_S`."""
LONGEST_NAMED_S = 3600.0


@dataclass
class Pace:
    """Spaces requests evenly, so that no minute holds more than the limits; for one event loop."""

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    first_pause_s: float = 1.0
    """After the first failure without a named pause; doubles with every further one."""
    clock: Callable[[], float] = time.monotonic
    _next: float = field(default=0.0, init=False)
    """When the next request may leave."""

    async def turn(self, tokens: int) -> None:
        """Wait for this request's turn. tokens: what it may use."""
        while True:
            now = self.clock()
            if now >= self._next:
                break
            await asyncio.sleep(self._next - now)
        gap = 0.0
        if self.requests_per_minute:
            gap = 60 / self.requests_per_minute
        if self.tokens_per_minute:
            gap = max(gap, 60 * tokens / self.tokens_per_minute)
        self._next = now + gap

    def used(self, reserved: int, tokens: int) -> None:
        """A request used fewer tokens than were reserved: the next may leave earlier."""
        if self.tokens_per_minute and tokens < reserved:
            spare = 60 * (reserved - tokens) / self.tokens_per_minute
            if not self.requests_per_minute:
                self._next -= spare

    def pause(self, seconds: float) -> None:
        """Nothing leaves for a while: the endpoint limits the account, not one request."""
        self._next = max(self._next, self.clock() + seconds)

    def backoff(self, attempt: int) -> float:
        """Seconds before the next attempt (the first failure is 0), with some chance in them."""
        longest = min(self.first_pause_s * 2**attempt, LONGEST_PAUSE_S)
        return longest * (0.5 + random.random() / 2)


def retry_after(headers: dict[str, str], now: Callable[[], float] = time.time) -> float | None:
    """Seconds that a response asks to wait: Retry-After (RFC 9110, 10.2.3) in either form."""
    milliseconds = headers.get("retry-after-ms", "")
    value = headers.get("retry-after", "").strip()
    try:
        seconds = float(milliseconds) / 1000 if milliseconds else float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - now()
        except (ValueError, TypeError):
            return None
    if not seconds == seconds:  # not a number
        return None
    return min(max(seconds, 0.0), LONGEST_NAMED_S)
