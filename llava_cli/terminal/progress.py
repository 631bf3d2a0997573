"""How far a long run is: one line on stderr, in place on a terminal, now and then elsewhere."""

from __future__ import annotations

import sys
import time

from llava_cli.terminal.safe import one_line
from llava_cli.terminal.streams import takes_escapes

REDRAW_S = 0.1
REMIND_S = 30.0
"""Between two lines where nothing can be drawn in place."""


class Progress:
    """Counts pictures and says how long the rest will take."""

    def __init__(self, *, wanted: bool) -> None:
        self._moving = wanted and takes_escapes(sys.stderr)
        self._wanted = wanted
        self._started = self._shown = time.monotonic()
        self._drawn = False
        self.total: int | None = None
        """All there is to do, once somebody knows it."""
        self.seen = 0
        """Of it: done, skipped or failed."""
        self.worked = 0
        """Of these: what took time."""

    def start(self) -> None:
        """The work begins now: what came before does not count into the rate."""
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since `start`."""
        return time.monotonic() - self._started

    @property
    def rate(self) -> float:
        """Pictures worked on a second, since `start`."""
        seconds = self.seconds
        return self.worked / seconds if seconds > 0 else 0.0

    def step(self, *, worked: bool, name: str = "") -> None:
        """One more."""
        self.seen += 1
        self.worked += worked
        now = time.monotonic()
        if not self._wanted or now - self._shown < (REDRAW_S if self._moving else REMIND_S):
            return
        self._shown = now
        self._write(name)

    def clear(self) -> None:
        """Take the line away."""
        if self._drawn:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._drawn = False

    def _write(self, name: str) -> None:
        text = f"{self.seen:,}"
        if self.total is not None:
            text += f" of {self.total:,}"
        text += f" · {self.rate:.1f} images/s"
        if self.total is not None and self.rate > 0:
            text += f" · {duration((self.total - self.seen) / self.rate)} left"
        if self._moving:
            columns = _columns()
            line = f"{text} · {one_line(name)}" if name else text
            sys.stderr.write("\r\x1b[K" + line[: columns - 1])
            self._drawn = True
        else:
            sys.stderr.write(text + "\n")
        sys.stderr.flush()


def duration(seconds: float) -> str:
    """3 s, 2 min 5 s, 4 h 10 min."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _columns() -> int:
    import shutil

    return max(20, shutil.get_terminal_size().columns)
