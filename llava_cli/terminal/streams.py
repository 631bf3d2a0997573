"""What a stream can show, and the notes that go to stderr.

Colour and movement are decided per stream: a terminal that wants none (NO_COLOR, TERM=dumb) and
everything that is no terminal get plain text without an escape byte.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from llava_cli.terminal.safe import one_line


def is_terminal(stream: TextIO) -> bool:
    """Whether a person looks at the stream."""
    try:
        return stream.isatty()
    except ValueError:  # closed
        return False


def takes_escapes(stream: TextIO) -> bool:
    """Whether colour and cursor movement may be written to the stream."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    if sys.platform == "win32" and not os.environ.get("WT_SESSION"):
        return False
    return is_terminal(stream)


def dim(text: str, stream: TextIO) -> str:
    """Text that steps back, where the stream can show that."""
    return f"\x1b[2m{text}\x1b[0m" if takes_escapes(stream) else text


def bold_red(text: str, stream: TextIO) -> str:
    """Text that stands out, where the stream can show that."""
    return f"\x1b[1;31m{text}\x1b[0m" if takes_escapes(stream) else text


def note(text: str) -> None:
    """One dim line on stderr; the caller asks whether notes are wanted."""
    sys.stderr.write(dim(one_line(text), sys.stderr) + "\n")
    sys.stderr.flush()


@contextmanager
def status(text: str, wanted: bool) -> Iterator[Callable[[str], None]]:
    """A line on stderr while something takes its time; gone afterwards, never on a pipe.

    The function that it gives shows how far things are, behind the text.
    """
    if not wanted or not takes_escapes(sys.stderr):
        yield lambda _: None
        return

    def show(more: str) -> None:
        sys.stderr.write("\r\x1b[K" + dim(one_line(f"{text} {more}".rstrip()), sys.stderr))
        sys.stderr.flush()

    show("")
    try:
        yield show
    finally:
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()


def write(text: str) -> None:
    """Data to stdout, at once."""
    sys.stdout.write(text)
    sys.stdout.flush()
