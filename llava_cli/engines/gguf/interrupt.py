"""Ctrl-C stops llama.cpp while it computes, not only between two calls.

Python hears a signal only between its own instructions, and one call of llama.cpp may take many
seconds. But the interpreter's C handler writes the signal's number to a socket at once; a thread
that waits there raises a flag, and llama.cpp looks at the flag at every node of its graph. The flag
is read by C's `strlen`, which is as good as `flag[0] != 0`: a callback in Python would be called
some thousand times a token.

Only the main thread gets signals; elsewhere `watch` does nothing.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llava_cli.engines.gguf.binding import lib

_STOPPING = frozenset(
    getattr(signal, name).value
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
    if hasattr(signal, name)
)

_strlen = ctypes.CDLL("msvcrt" if os.name == "nt" else None).strlen


class Interrupt:
    """One flag, which contexts look at, and the thread that raises it."""

    def __init__(self) -> None:
        self._flag = ctypes.create_string_buffer(2)  # "" or "\1"
        self.callback: Any = lib.ggml_abort_callback(ctypes.cast(_strlen, ctypes.c_void_p).value)
        """For `llama_context_params.abort_callback`, with `data`; keep referenced."""
        self.data = ctypes.cast(self._flag, ctypes.c_void_p)
        self._wake: socket.socket | None = None
        self._before = -1

    @property
    def raised(self) -> bool:
        """Whether computing is to stop."""
        return self._flag[0] != b"\0"

    def stop(self) -> None:
        """Make the computation that runs now end; may be called from any thread."""
        self._flag[0] = b"\1"

    def clear(self) -> None:
        """So that the next computation runs."""
        self._flag[0] = b"\0"

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Within this block a signal that asks to stop is heard at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        if self._wake is None:
            self._wake, there = socket.socketpair()
            self._wake.setblocking(False)
            threading.Thread(target=self._listen, args=(there,), daemon=True).start()
        self._before = signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(self._before, warn_on_full_buffer=False)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within this block Ctrl-C only raises the flag; behind it, it does what it always does.

        For calls that call back into Python: an exception cannot pass through C.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        heard: list[int] = []

        def hear(number: int, _frame: object) -> None:
            heard.append(number)
            self.stop()

        before = signal.signal(signal.SIGINT, hear)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)
            if heard:
                self.clear()
                signal.raise_signal(signal.SIGINT)

    def close(self) -> None:
        """End the thread; a second call does nothing."""
        if self._wake is not None:
            self._wake.close()
            self._wake = None

    def _listen(self, there: socket.socket) -> None:
        with there:
            while numbers := there.recv(64):
                if _STOPPING.intersection(numbers):
                    self.stop()
                if self._before >= 0:  # an event loop listens, too
                    _forward(self._before, numbers)


def _forward(descriptor: int, numbers: bytes) -> None:
    try:
        os.write(descriptor, numbers)
    except OSError:  # its buffer is full, or it is a socket of Windows
        return
