"""JSON read piece by piece, so that a file's size does not decide the memory it takes.

`items` gives the elements of a top-level array, or the rows of JSON Lines; `fields` walks a
top-level object and gives the elements of the arrays that it holds (COCO's layout). Each element
is parsed by the standard library; only the outermost brackets are read here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, TextIO

from llava_cli.errors import DataError

_CHUNK = 1 << 20
MAX_ELEMENT = 64 << 20
"""Characters of the largest element that is read; longer ones are taken for a broken file."""
_BLANK = re.compile(r"[\s\ufeff]*")
_LAYOUT = "give a list of rows, or one row a line"
_OBJECT = "give one JSON object, as the files of COCO, VQA and ScienceQA are"


def items(path: Path) -> Iterator[Any]:
    """The elements of a JSON array, or the rows of JSON Lines, whichever the file holds."""
    with _opened(path) as file:
        cursor = _Cursor(path, file)
        if cursor.peek() == "[":
            yield from cursor.array()
            cursor.expect_end()
        else:
            while cursor.peek():
                yield cursor.value()


def fields(path: Path, wanted: Collection[str]) -> Iterator[tuple[str, Any]]:
    """(key, element) for the arrays among `wanted`, (key, value) for other values of that name."""
    with _opened(path) as file:
        cursor = _Cursor(path, file, _OBJECT)
        cursor.take("{")
        first = True
        while cursor.peek() != "}":
            if not first:
                cursor.take(",")
            first = False
            key = cursor.value()
            cursor.take(":")
            if cursor.peek() == "[":
                for element in cursor.array():
                    if key in wanted:
                        yield key, element
            else:
                value = cursor.value()
                if key in wanted:
                    yield key, value
        cursor.take("}")
        cursor.expect_end()


def opens_with(path: Path) -> str:
    """The first character that is not blank; empty for an empty file."""
    with _opened(path) as file:
        return _Cursor(path, file).peek()


def _opened(path: Path) -> TextIO:
    try:
        return path.open(encoding="utf-8")
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror or error}", "check the path"
        ) from error


class _Cursor:
    """A place in a file: the text around it, refilled as it moves on."""

    def __init__(self, path: Path, file: TextIO, hint: str = _LAYOUT) -> None:
        self._path = path
        self._hint = hint
        """What a file of the wanted layout is."""
        self._file = file
        self._decoder = json.JSONDecoder()
        self._text = ""
        self._at = 0
        self._ended = False
        self._before = 0
        """Characters of the file in front of `_text`."""

    def peek(self) -> str:
        """The next character that is not blank; empty at the end."""
        while True:
            self._at = _end(_BLANK, self._text, self._at)
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def take(self, sign: str) -> None:
        """Step over `sign`, which must be next."""
        if self.peek() != sign:
            raise self._broken(f"{sign!r} expected")
        self._at += 1

    def expect_end(self) -> None:
        """Nothing may follow."""
        if self.peek():
            raise self._broken("text after the end")

    def array(self) -> Iterator[Any]:
        """The elements of the array that begins here."""
        self.take("[")
        if self.peek() == "]":
            self._at += 1
            return
        while True:
            yield self.value()
            if self.peek() != ",":
                break
            self._at += 1
        self.take("]")

    def value(self) -> Any:
        """The JSON value that begins here."""
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except (json.JSONDecodeError, RecursionError) as error:
                if isinstance(error, json.JSONDecodeError) and self._may_continue(error):
                    continue
                raise self._broken(getattr(error, "msg", "nested too deeply")) from error
            # A number at the very end of the text may go on in the next piece.
            if end == len(self._text) and isinstance(value, int | float) and self._more():
                continue
            self._at = end
            return value

    def _may_continue(self, error: json.JSONDecodeError) -> bool:
        """Whether the error may be just the end of the text so far, and there is more text."""
        # An unterminated string is reported where it begins, everything else near the end.
        inside = error.msg.startswith(("Unterminated", "Invalid \\", "Invalid control"))
        near_end = inside or error.pos >= len(self._text) - 16
        return near_end and len(self._text) - self._at < MAX_ELEMENT and self._more()

    def _more(self) -> bool:
        """Read on; what was passed is forgotten."""
        if self._ended:
            return False
        try:
            # A long element doubles its piece, so that it is parsed anew only a few times.
            chunk = self._file.read(max(_CHUNK, len(self._text) - self._at))
        except UnicodeDecodeError as error:
            raise DataError(f"{self._path} is not UTF-8 text", self._hint) from error
        except OSError as error:
            raise DataError(f"{self._path} cannot be read: {error}", "check the disk") from error
        if not chunk:
            self._ended = True
            return False
        self._before += self._at
        self._text = self._text[self._at :] + chunk
        self._at = 0
        return True

    def _broken(self, why: str) -> DataError:
        place = self._before + self._at
        return DataError(f"{self._path} is not JSON: {why} (after character {place})", self._hint)


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    match = pattern.match(text, at)
    return match.end() if match else at
