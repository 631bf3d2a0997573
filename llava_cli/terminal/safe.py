"""Text from a model or a file, made harmless for a terminal.

Only for what people look at: on a pipe and in JSON text stays as it is.
"""

from __future__ import annotations

import re

# C0 without tab and newline, DEL, C1, line and paragraph separators, bidi embeddings, overrides and
# isolates, lone surrogates, tag characters.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\U000e0000-\U000e007f]"
)


def visible(text: str) -> str:
    r"""Every character that could steer a terminal, written out: ESC becomes `\x1b`."""
    return _UNSAFE.sub(_written_out, text)


def one_line(text: str) -> str:
    """`visible`, with line ends and tabs written out too: for names inside a message."""
    return visible(text).replace("\n", "\\n").replace("\t", "\\t")


def _written_out(match: re.Match[str]) -> str:
    character = match[0]
    if character == "\r":
        return "\\r"
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


class VisibleStream:
    """`visible` for text that comes in pieces; a Windows line end may be split between two."""

    def __init__(self) -> None:
        self._held = ""

    def feed(self, text: str) -> str:
        """The harmless form of the next piece; a trailing carriage return waits for its newline."""
        text = self._held + text
        self._held = "\r" if text.endswith("\r") else ""
        if self._held:
            text = text[:-1]
        return visible(text.replace("\r\n", "\n"))

    def close(self) -> str:
        """What was held back."""
        held, self._held = self._held, ""
        return visible(held)
