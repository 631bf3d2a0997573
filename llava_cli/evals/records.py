"""One record of a file, with its place; its ids and texts, checked."""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from llava_cli.errors import DataError

_WHOLE_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)")

Key = int | str


@dataclass(frozen=True, slots=True)
class Row:
    """One record and where it stands."""

    data: Mapping[str, Any]
    path: Path
    number: int
    """Line of a JSON Lines file or a table, else position in the array; both from 1."""
    unit: str = "line"

    @property
    def where(self) -> str:
        """For messages."""
        return f"{self.path}, {self.unit} {self.number}"

    def bad(self, problem: str, hint: str = "") -> DataError:
        """An error that names this row."""
        return DataError(f"{self.where}: {problem}", hint or "correct or remove the row")


def canonical(value: Any) -> Key | None:
    """An id in its one form: 7, 7.0 and "7" are the same; None for what is no id."""
    if isinstance(value, str):
        text = value.strip()
        return int(text) if _WHOLE_NUMBER.fullmatch(text) and len(text) < 19 else text or None
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return None


def row_id(row: Row, *names: str) -> Key:
    """The id under the first of these names that the row has."""
    for name in names:
        if name in row.data:
            key = canonical(row.data[name])
            if key is None:
                raise row.bad(f"{name} is {_shown(row.data[name])}, not an id")
            return key
    raise row.bad(f"{' or '.join(names)} is missing")


def row_text(row: Row, *names: str) -> str:
    """The text under the first of these names that the row has."""
    for name in names:
        if name in row.data:
            value = row.data[name]
            if not isinstance(value, str):
                raise row.bad(f"{name} is {_shown(value)}, not a text")
            return value
    raise row.bad(f"{' or '.join(names)} is missing")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"a {type(value).__name__}"


def open_text(path: Path, newline: str | None = None) -> TextIO:
    """A text file in UTF-8, or in UTF-16 where its mark says so; line ends become newlines."""
    with path.open("rb") as file:
        start = file.read(4)
    utf16 = start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return path.open(encoding="utf-16" if utf16 else "utf-8-sig", newline=newline)


def as_row(value: Any, path: Path, number: int, unit: str) -> Row:
    """A row of a JSON value, which must be an object."""
    if not isinstance(value, dict):
        raise DataError(f"{path}, {unit} {number}: not a JSON object", "one object a row")
    return Row(value, path, number, unit)


def not_text(path: Path) -> DataError:
    """The error of a file that is no text."""
    return DataError(f"{path}: not a text file in UTF-8", "check that this is the right file")
