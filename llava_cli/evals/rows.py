"""Reading what others wrote: JSON Lines, JSON, CSV, TSV, XLSX; every row knows its place.

A byte order mark, Windows line ends, blank lines, a missing last newline and unknown keys are no
errors; a row that is no JSON is one, and names file and line. Arrays are read element by element,
so that annotations larger than memory pass. Nothing here knows a benchmark.
"""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from llava_cli.errors import DataError, MissingDependency

CHUNK = 1 << 20
MAX_LINE = 1 << 24
"""Characters of a line of JSON Lines; a longer first line is the whole of a document."""
MAX_ELEMENT = 1 << 26
"""Characters of one JSON value inside a file; more is taken for damage."""
_SPACE = re.compile(r"[ \t\r\n]*")
_WHOLE_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)")
_DECODE = json.JSONDecoder()

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


def read_text(path: Path) -> str:
    """A whole text file."""
    try:
        with open_text(path) as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise _not_text(path) from error


def read_json(path: Path) -> Any:
    """A whole JSON document."""
    text = read_text(path)
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{path}: not JSON: {error}", "check that the file is whole") from error


def read_object(path: Path) -> dict[str, Any]:
    """A whole JSON document that is an object."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise DataError(f"{path}: expected a JSON object", "check that this is the right file")
    return value


def is_workbook(path: Path) -> bool:
    """Whether the file is an XLSX (a ZIP), by its bytes."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def first_character(path: Path) -> str:
    """The first character that is no blank: it tells an array, an object and a table apart."""
    try:
        with open_text(path) as file:
            while chunk := file.read(4096):
                if chunk.strip():
                    return chunk.lstrip()[0]
    except UnicodeDecodeError as error:
        raise _not_text(path) from error
    return ""


def is_json_lines(path: Path) -> bool:
    """Whether the first line that is not blank is a whole JSON object, and not the whole file."""
    try:
        with open_text(path) as file:
            while line := file.readline(MAX_LINE):
                if line.strip():
                    break
            if len(line) == MAX_LINE or not _is_object(line):
                return False
            more = any(rest.strip() for rest in iter(lambda: file.readline(MAX_LINE), ""))
            return more or _looks_like_row(line)
    except UnicodeDecodeError as error:
        raise _not_text(path) from error


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (json.JSONDecodeError, RecursionError):
        return False


def _looks_like_row(line: str) -> bool:
    """A file of one line: a row has an id at its top, a document has containers."""
    value = json.loads(line)
    return any(isinstance(value.get(name), (str, int)) for name in _ROW_NAMES)


_ROW_NAMES = ("question_id", "questionId", "image_id", "image", "question", "index")


def read_rows(path: Path, member: str | None = None) -> Iterator[Row]:
    """Rows of a JSON Lines file, of a JSON array, of an object's array `member`, or of a table."""
    if is_workbook(path):
        yield from _workbook(path)
        return
    start = first_character(path)
    if start == "":
        return
    if start == "[":
        yield from stream_array(path, None)
    elif start == "{" and is_json_lines(path):
        yield from _lines(path)
    elif start == "{":
        if member is None:
            raise DataError(
                f"{path}: a JSON object where rows were expected",
                "give JSON Lines, or a JSON list of rows",
            )
        yield from stream_array(path, member)
    else:
        yield from read_table(path)


def _lines(path: Path) -> Iterator[Row]:
    try:
        with open_text(path) as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    value = json.loads(line)
                except (json.JSONDecodeError, RecursionError) as error:
                    raise DataError(
                        f"{path}, line {number}: not JSON: {error}",
                        "a file that was cut off? remove the line, or run again",
                    ) from error
                yield _row(value, path, number, "line")
    except UnicodeDecodeError as error:
        raise _not_text(path) from error


def _row(value: Any, path: Path, number: int, unit: str) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{path}, {unit} {number}: not a JSON object", "one object a row")
    return Row(value, path, number, unit)


def read_table(path: Path) -> Iterator[Row]:
    """Rows of a CSV or TSV with a header; a tab in the header makes it a TSV."""
    csv.field_size_limit(1 << 30)  # MMBench holds pictures in its cells
    try:
        with open_text(path) as file:
            header = next((line for line in file if line.strip()), "")
        with open_text(path, newline="") as file:
            lines = csv.reader(file, delimiter="\t" if "\t" in header else ",")
            yield from _table(lines, path)
    except UnicodeDecodeError as error:
        raise _not_text(path) from error


def _table(lines: Iterable[list[Any]], path: Path) -> Iterator[Row]:
    names: list[str] | None = None
    try:
        for number, cells in enumerate(lines, 1):
            if all(cell is None or cell == "" for cell in cells):
                continue
            if names is None:
                names = ["" if cell is None else str(cell).strip() for cell in cells]
                continue
            yield Row(dict(zip(names, cells, strict=False)), path, number, "row")
    except csv.Error as error:
        raise DataError(f"{path}: not a table: {error}", "give a CSV or TSV") from error


def _workbook(path: Path) -> Iterator[Row]:
    """The first sheet of an XLSX."""
    try:
        import openpyxl
    except ModuleNotFoundError as error:
        raise MissingDependency(
            f"reading {path.name} needs openpyxl", "pip install openpyxl"
        ) from error
    import warnings
    import zipfile

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of styles that it does not know
            book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    except (zipfile.BadZipFile, KeyError, ValueError, OSError) as error:
        raise DataError(f"{path}: not a workbook: {error}", "save it again as .xlsx") from error
    try:
        sheet = book.worksheets[0]
        yield from _table((list(cells) for cells in sheet.iter_rows(values_only=True)), path)
    finally:
        book.close()


def _not_text(path: Path) -> DataError:
    return DataError(f"{path}: not a text file in UTF-8", "check that this is the right file")


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
        raise _not_text(path) from error


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
            yield _row(self.value(), self._path, number, "item")
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
                row = _row(reader.value(), path, number, "item")
                yield key if key is not None else name, row
    except UnicodeDecodeError as error:
        raise _not_text(path) from error
