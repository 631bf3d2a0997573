"""A program on a real pseudo-terminal: type into it, wait for what it shows."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from types import TracebackType

PATIENCE_S = 200.0
"""A machine may be busy; a program that hangs is still found."""
_ESCAPES = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|[()][A-Z0-9]|[=>])")


class Terminal:
    """One program and its terminal."""

    def __init__(self, arguments: Sequence[str], environment: dict[str, str]) -> None:
        self._master, slave = pty.openpty()
        # Wide, so that no line that a test waits for is wrapped.
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 400, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            env={**environment, "TERM": environment.get("TERM_WANTED", "xterm-256color")},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        self.received = ""
        self._seen = 0

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)

    def send(self, text: str) -> None:
        """Type."""
        os.write(self._master, text.encode())

    def interrupt(self) -> None:
        """What Ctrl-C sends to a program that is not reading keys."""
        self.process.send_signal(signal.SIGINT)

    def expect(self, text: str) -> str:
        """Wait until the text is written, behind what was expected before; all up to it.

        A line editor writes only what changes and moves over blanks: expect no blanks at ends.
        """
        deadline = time.monotonic() + PATIENCE_S
        while (found := self.plain.find(text, self._seen)) < 0:
            if not self._read(deadline):
                raise AssertionError(f"{text!r} was not shown; shown: {self.received!r}")
        start, self._seen = self._seen, found + len(text)
        return self.plain[start:found]

    @property
    def plain(self) -> str:
        """What was written, without escape sequences."""
        return _ESCAPES.sub("", self.received)

    def end(self) -> int:
        """Wait until the program has ended; its exit code."""
        deadline = time.monotonic() + PATIENCE_S
        while self._read(deadline):
            pass
        return self.process.wait(timeout=PATIENCE_S)

    def _read(self, deadline: float) -> bool:
        """Take what is there; False where nothing more comes."""
        ready, _, _ = select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return False
        try:
            piece = os.read(self._master, 65536)
        except OSError:  # Linux: the other end has closed
            return False
        self.received += piece.decode("utf-8", "replace")
        return bool(piece)
