"""Captions of many pictures in one file: JSON, JSON Lines, CSV, imagefolder, kohya.

Such a file is written whole at the end of a run, from the journal and in the order of names.
Fields that an earlier file has beside the caption stay.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_cli.captioning.journal import Entry
from llava_cli.captioning.sources import Item
from llava_cli.errors import DataError, UsageError
from llava_cli.writing import replacing

FILES = {
    "json": "captions.json",
    "jsonl": "captions.jsonl",
    "csv": "captions.csv",
    "imagefolder": "metadata.jsonl",
    "kohya": "meta_cap.json",
}
FIELDS = {"imagefolder": ("file_name", "text")}
"""Names of the fields for picture and caption, where they are not path and caption."""


@dataclass(frozen=True)
class Table:
    """One file of captions."""

    format: str
    path: Path
    """The file itself."""
    copies: bool = False
    """Imagefolder elsewhere: the pictures are copied beside the metadata."""

    @classmethod
    def of(cls, format: str, root: Path, out: Path | None) -> Table:
        """The file of a format: in the pictures' folder, or where -o says (file or folder)."""
        name = FILES[format]
        if out is None:
            return cls(format, root / name)
        if format == "imagefolder":  # the file's name is part of the format
            return cls(format, out.absolute() / name, copies=out.absolute() != root)
        is_folder = out.is_dir() or not out.suffix
        return cls(format, (out / name if is_folder else out).absolute())

    @property
    def journal(self) -> Path:
        """Where the journal lies: with the file."""
        return self.path.with_name(f".{self.path.name}.llava-caption.sqlite")

    @property
    def one_line(self) -> bool:
        """Whether line ends in captions are blanks."""
        return self.format == "kohya"

    def name(self, item: Item) -> str:
        """What the file calls a picture: its path, relative to the file where it lies below."""
        if self.copies:
            name = item.relative
        else:
            shown = os.path.abspath(item.shown)
            if self.format == "kohya":
                name = shown  # what kohya's scripts call a full path
            else:
                parent = str(self.path.parent.absolute()).rstrip("/\\") + os.sep
                name = shown.removeprefix(parent)
        if self.format != "kohya":
            name = name.replace(os.sep, "/")
        try:
            name.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(
                f"{item.shown}: its name is not valid UTF-8, which {self.format} cannot hold",
                "rename it",
            ) from error
        if self.format == "imagefolder" and item.member is not None:
            raise UsageError(
                f"{item.path.name}: imagefolder needs pictures that are files",
                "unpack the tar, or use --format webdataset",
            )
        return name

    def place(self, item: Item, data: bytes) -> None:
        """Bring the picture to where the format wants it."""
        if not self.copies:
            return
        target = self.path.parent / item.relative
        target.parent.mkdir(parents=True, exist_ok=True)
        # Always the same name: what a kill leaves is written over by the next run.
        with replacing(target, target.with_name(".llava-caption.tmp")) as file:
            shutil.copyfileobj(io.BytesIO(data), file)

    def read(self) -> Iterator[Entry]:
        """The captions that an earlier file holds; DataError where it is something else."""
        if not self.path.exists():
            return
        try:
            yield from self._read()
        except (ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
            raise DataError(
                f"{self.path}: holds no captions in the form of --format {self.format}",
                "move it away, or write elsewhere with -o",
            ) from error

    def _read(self) -> Iterator[Entry]:
        picture, caption = self._fields
        if self.format == "csv":
            with self.path.open(encoding="utf-8-sig", newline="") as file:
                for row in csv.DictReader(file, strict=True):
                    if None in row:
                        raise ValueError("a row is longer than the header")
                    yield Entry(row[picture], row[caption], json.dumps(row))
            return
        if self.format in ("jsonl", "imagefolder"):
            with self.path.open(encoding="utf-8") as file:
                rows: Iterable[Any] = (json.loads(line) for line in file if line.strip())
                yield from (_entry(row[picture], row, caption) for row in rows)
            return
        document = json.loads(self.path.read_text(encoding="utf-8"))
        if self.format == "kohya":
            yield from (_entry(key, row, caption) for key, row in document.items())
        else:
            yield from (_entry(row[picture], row, caption) for row in document)

    @property
    def _fields(self) -> tuple[str, str]:
        return FIELDS.get(self.format, ("path", "caption"))

    def publish(self, entries: Iterable[Entry]) -> None:
        """Write the file, one entry at a time."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Always the same name: what a kill leaves is written over by the next run.
        aside = self.path.with_name(f".{self.path.name}.tmp")
        with replacing(self.path, aside) as file:
            for text in self._lines(entries):
                file.write(text.encode("utf-8"))

    def _lines(self, entries: Iterable[Entry]) -> Iterator[str]:
        if self.format == "csv":
            yield from self._csv(entries)
        elif self.format in ("jsonl", "imagefolder"):
            yield from (_dumps(self._row(entry)) + "\n" for entry in entries)
        else:
            kohya = self.format == "kohya"
            lead = "{\n" if kohya else "[\n"
            for entry in entries:
                key = _dumps(entry.name) + ": " if kohya else ""
                yield lead + key + _dumps(self._row(entry))
                lead = ",\n"
            yield ("{}\n" if kohya else "[]\n") if lead != ",\n" else "\n}\n" if kohya else "\n]\n"

    def _row(self, entry: Entry) -> dict[str, Any]:
        """An entry's object: the earlier one's fields, this one's caption."""
        picture, caption = self._fields
        row: dict[str, Any] = {} if self.format == "kohya" else {picture: entry.name}
        return {**row, **json.loads(entry.extra or "{}"), caption: entry.caption}

    def _csv(self, entries: Iterable[Entry]) -> Iterator[str]:
        picture, caption = self._fields
        columns = [picture, caption]
        if self.path.exists():
            with self.path.open(encoding="utf-8-sig", newline="") as file:
                columns = next(csv.reader(file), columns)
        out = io.StringIO()
        writer = csv.DictWriter(out, columns, restval="")
        writer.writeheader()
        for entry in entries:
            writer.writerow(self._row(entry))
            yield out.getvalue()
            out.seek(0)
            out.truncate()
        yield out.getvalue()


def _entry(name: Any, row: dict[str, Any], caption: str) -> Entry:
    text = row.get(caption)
    if not isinstance(name, str) or not isinstance(text, str | None):
        raise TypeError("no text")
    return Entry(name, text or "", json.dumps(row))


def _dumps(value: Any) -> str:
    """JSON on one line for every reader: U+2028 would split it for some."""
    text = json.dumps(value, ensure_ascii=False)
    return text.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029").replace("\x85", "\\u0085")
