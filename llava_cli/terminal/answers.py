"""Where the text of an answer goes while it streams: to a person or to a program."""

from __future__ import annotations

from typing import Literal, Protocol, TextIO

from llava_cli.terminal.safe import VisibleStream
from llava_cli.terminal.streams import is_terminal, takes_escapes

MarkdownMode = Literal["auto", "always", "never"]


class AnswerStream(Protocol):
    """Takes an answer in pieces."""

    def write(self, text: str) -> None:
        """Take the next piece."""
        ...

    def close(self) -> None:
        """The answer is over; ends the line."""
        ...


class PlainStream:
    """Text as it is for a program, harmless for a person; ends with one newline."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._safe = VisibleStream() if is_terminal(out) else None
        self._ended = False

    def write(self, text: str) -> None:
        """Write a piece at once."""
        self._put(self._safe.feed(text) if self._safe else text)

    def close(self) -> None:
        """Add the last newline where the answer has none."""
        self._put(self._safe.close() if self._safe else "")
        if not self._ended:
            self._put("\n")

    def _put(self, text: str) -> None:
        if text:
            self._out.write(text)
            self._out.flush()
            self._ended = text.endswith("\n")


def answer_stream(out: TextIO, mode: MarkdownMode) -> AnswerStream:
    """Rendered markdown for a person's terminal, plain text elsewhere; `mode` overrides."""
    if mode == "never" or (mode == "auto" and not takes_escapes(out)):
        return PlainStream(out)
    from llava_cli.terminal.markdown import MarkdownStream

    return MarkdownStream(out, live=takes_escapes(out))
