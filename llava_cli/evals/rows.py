"""Reading what others wrote: JSON Lines, JSON, CSV, TSV, XLSX; every row knows its place.

A byte order mark, Windows line ends, blank lines, a missing last newline and unknown keys are no
errors; a row that is no JSON is one, and names file and line. Arrays are read element by element,
so that annotations larger than memory pass. Nothing here knows a benchmark.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from llava_cli.errors import DataError, MissingDependency
from llava_cli.evals.json_stream import stream_array, stream_object
from llava_cli.evals.records import (
    Key,
    Row,
    as_row,
    canonical,
    not_text,
    open_text,
    row_id,
    row_text,
)

__all__ = ["Key", "Row", "canonical", "open_text", "row_id", "row_text", "stream_object"]

MAX_LINE = 1 << 24
"""Characters of a line of JSON Lines; a longer first line is the whole of a document."""


def read_text(path: Path) -> str:
    """A whole text file."""
    try:
        with open_text(path) as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise not_text(path) from error


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
        raise not_text(path) from error
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
        raise not_text(path) from error


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
                yield as_row(value, path, number, "line")
    except UnicodeDecodeError as error:
        raise not_text(path) from error


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
        raise not_text(path) from error


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
