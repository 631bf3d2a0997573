"""Reading JSON documents larger than memory: arrays element by element, objects member by member.

Only the window of text around the current value is held. The rows that come out are `rows.Row`s.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from llava_cli.errors import DataError
from llava_cli.evals.records import Key, Row, as_row, canonical, not_text, open_text

CHUNK = 1 << 20
MAX_ELEMENT = 1 << 26
"""Characters of one JSON value inside a file; more is taken for damage."""
_SPACE = re.compile(r"[ \t\r\n]*")
_DECODE = json.JSONDecoder()


def stream_array(path: Path, member: str | None) -> Iterator[Row]:
    """The elements of a JSON array, or of the array under `member` of an object, one by one."""
    try:
        with open_text(path) as file:
            reader = _Reader(file, path)
            if member is None:
                yield from reader.elements()
                return
            found = False
            for name in reader.members():
                if name == member and reader.peek() == "[":
                    found = True
                    yield from reader.elements()
                else:
                    reader.skip()
            if not found:
                raise DataError(
                    f"{path}: has no list {member!r}", "check that this is the right file"
                )
    except UnicodeDecodeError as error:
        raise not_text(path) from error


class _Reader:
    """Walks one JSON document with a window on its text."""

    def __init__(self, file: TextIO, path: Path) -> None:
        self._file = file
        self._path = path
        self._text = ""
        self._at = 0
        self._ended = False

    def peek(self) -> str:
        """The next character that is no blank; empty at the end."""
        while True:
            match = _SPACE.match(self._text, self._at)
            self._at = match.end() if match else self._at
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1]

    def _more(self, size: int = CHUNK) -> bool:
        if self._ended:
            return False
        added = self._file.read(size)
        self._text = self._text[self._at :] + added
        self._at = 0
        self._ended = not added
        return bool(added)

    def value(self) -> Any:
        """The next JSON value."""
        self.peek()
        size = CHUNK
        while True:
            try:
                value, end = _DECODE.raw_decode(self._text, self._at)
            except (json.JSONDecodeError, RecursionError) as error:
                if len(self._text) - self._at < MAX_ELEMENT and self._more(size):
                    size *= 2
                    continue
                raise DataError(
                    f"{self._path}: not JSON: {error}", "check that the file is whole"
                ) from error
            length = end - self._at
            if end < len(self._text) or not self._more():  # a number may go on
                self._at += length
                return value

    def take(self, allowed: str) -> str:
        """The next character, which must be one of these."""
        found = self.peek()
        if not found or found not in allowed:
            shown = repr(found) if found else "the end of the file"
            raise DataError(
                f"{self._path}: not JSON: {shown} where one of {' '.join(allowed)} was expected",
                "check that the file is whole",
            )
        self._at += 1
        return found

    def elements(self) -> Iterator[Row]:
        """The objects of the array that begins here."""
        self.take("[")
        number = 0
        if self.peek() == "]":
            self.take("]")
            return
        while True:
            number += 1
            yield as_row(self.value(), self._path, number, "item")
            if self.take(",]") == "]":
                return

    def members(self) -> Iterator[str]:
        """The names of the object that begins here; the caller takes each value."""
        self.take("{")
        if self.peek() == "}":
            self.take("}")
            return
        while True:
            name = str(self.value())
            self.take(":")
            yield name
            if self.take(",}") == "}":
                return

    def skip(self) -> None:
        """Pass over a value, element by element where it is an array."""
        if self.peek() != "[":
            self.value()
            return
        self.take("[")
        if self.peek() == "]":
            self.take("]")
            return
        while True:
            self.value()
            if self.take(",]") == "]":
                return


def stream_object(path: Path) -> Iterator[tuple[Key, Row]]:
    """The members of a JSON object of objects, with their names, one by one."""
    try:
        with open_text(path) as file:
            reader = _Reader(file, path)
            for number, name in enumerate(reader.members(), 1):
                key = canonical(name)
                row = as_row(reader.value(), path, number, "item")
                yield key if key is not None else name, row
    except UnicodeDecodeError as error:
        raise not_text(path) from error
