"""Token bytes -> text that may be shown: whole characters only, and nothing of a stop text.

Not here: which tokens end an answer, terminal escapes (`terminal/`).
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable


class TextStream:
    """The text of one answer while it grows."""

    def __init__(self, stops: Iterable[str] = (), lead: str = "") -> None:
        """`stops` end the answer; `lead` is left out if the answer begins with it."""
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._stops = tuple(stop for stop in stops if stop)
        self._lead = lead
        self._held = ""
        self.stopped = False

    def add(self, piece: bytes) -> str:
        """Text that is safe to show after these bytes; '' while it is unclear."""
        return self._release(self._decoder.decode(piece))

    def close(self) -> str:
        """What was held back; a character that never became whole is U+FFFD."""
        text = self._release(self._decoder.decode(b"", final=True))
        held, self._held = self._held, ""
        if self._lead:  # the answer ended while it was still only part of the lead
            held, self._lead = "", ""
        return text if self.stopped else text + held

    def _release(self, text: str) -> str:
        if self.stopped:
            return ""
        self._held += text
        if self._lead and not self._led():
            return ""
        found = [(at + len(stop), at) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:  # the one that is complete first, as if the text had come letter by letter
            self.stopped = True
            shown, self._held = self._held[: min(found)[1]], ""
            return shown
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        shown, self._held = self._held[: len(self._held) - keep], self._held[-keep:] if keep else ""
        return shown

    def _led(self) -> bool:
        """Whether the lead is decided; drops it where it is there."""
        if len(self._held) < len(self._lead) and self._lead.startswith(self._held):
            return False
        self._held = self._held.removeprefix(self._lead)
        self._lead = ""
        return True


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-length:]):
            return length
    return 0
