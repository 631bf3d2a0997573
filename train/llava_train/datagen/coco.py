"""COCO's captions and instances, gathered picture by picture without holding them in memory.

The files list pictures, captions and boxes in separate arrays of any order and length; a temporary
database on the disk brings together what belongs to one picture.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from llava_cli.errors import DataError
from llava_train.datagen.contexts import Box, Picture, corners
from llava_train.samples.json_stream import fields

Crowds = Literal["skip", "keep"]
_TABLES = """
CREATE TABLE pictures (id TEXT PRIMARY KEY, name TEXT, width REAL, height REAL) WITHOUT ROWID;
CREATE TABLE ordered (id TEXT);
CREATE TABLE captions (picture TEXT, text TEXT);
CREATE TABLE boxes (picture TEXT, category TEXT, x REAL, y REAL, w REAL, h REAL, crowd INT);
CREATE TABLE categories (id TEXT PRIMARY KEY, name TEXT);
"""
_INDEXES = """
CREATE INDEX caption_of ON captions (picture);
CREATE INDEX box_of ON boxes (picture);
"""
_BATCH = 10_000


@dataclass
class Coco:
    """The pictures of COCO files, in the order of the captions file."""

    captions: Path
    instances: Path | None = None
    crowds: Crowds = "skip"
    left_out: Counter[str] = field(default_factory=Counter)
    """What could not be used, by reason."""

    def __post_init__(self) -> None:
        self._base = sqlite3.connect("", isolation_level=None)  # private, removed when closed
        self._base.execute("PRAGMA cache_size = -65536")
        self._base.execute("PRAGMA journal_mode = OFF")
        try:
            self._base.executescript(_TABLES)
            self._base.execute("BEGIN")
            self._read()
            self._base.execute("COMMIT")
            self._base.executescript(_INDEXES)
            self._count()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Remove what is on the disk."""
        self._base.close()

    def usable(self) -> int:
        """Pictures that have a caption."""
        found = self._base.execute(
            "SELECT COUNT(*) FROM ordered WHERE EXISTS"
            " (SELECT 1 FROM captions WHERE picture = ordered.id)"
        ).fetchone()
        return int(found[0])

    def pictures(self) -> Iterator[Picture]:
        """Every picture that has a caption."""
        rows = self._base.execute("SELECT id FROM ordered ORDER BY rowid")
        for (identity,) in rows:
            captions = tuple(
                text
                for (text,) in self._base.execute(
                    "SELECT text FROM captions WHERE picture = ? ORDER BY rowid", (identity,)
                )
            )
            if captions:
                name, width, height = self._base.execute(
                    "SELECT name, width, height FROM pictures WHERE id = ?", (identity,)
                ).fetchone()
                yield Picture(identity, name, captions, tuple(self._boxes(identity, width, height)))

    def _boxes(self, identity: str, width: float, height: float) -> Iterator[Box]:
        rows = self._base.execute(
            "SELECT categories.name, x, y, w, h, crowd FROM boxes LEFT JOIN categories"
            " ON categories.id = boxes.category WHERE picture = ? ORDER BY boxes.rowid",
            (identity,),
        )
        for category, x, y, w, h, crowd in rows:
            found = corners((x, y, w, h), width or 0, height or 0)
            if crowd and self.crowds == "skip":
                continue
            if found is not None and category:
                yield Box(category, found, bool(crowd))

    def _read(self) -> None:
        """Both files into the database, row by row."""
        wanted = {"images", "annotations", "instances", "categories"}
        own = self.instances is None or self.instances.resolve() == self.captions.resolve()
        self._insert(self.captions, fields(self.captions, wanted), first=True, boxes=own)
        if self.instances is not None and not own:
            without = self._insert(
                self.instances, fields(self.instances, wanted), first=False, boxes=True
            )
            if without and not self._base.execute("SELECT 1 FROM boxes LIMIT 1").fetchone():
                raise DataError(
                    f"{self.instances}: {without} annotations, and none is a box",
                    "give COCO's instances file with --instances, or leave it out",
                )
        if not self._base.execute("SELECT 1 FROM ordered LIMIT 1").fetchone():
            raise DataError(
                f"{self.captions} names no pictures",
                "give a COCO captions file: an object with 'images' and 'annotations'",
            )

    def _insert(
        self, path: Path, rows: Iterable[tuple[str, Any]], *, first: bool, boxes: bool
    ) -> int:
        """Put a file's rows in their tables; how many annotations had no box."""
        without = 0
        for position, (key, row) in enumerate(rows):
            if not isinstance(row, dict):
                raise DataError(
                    f"{path}: a row of {key!r} is not an object (row {position})",
                    "give files in COCO's layout",
                )
            if key == "images":
                self._picture(path, row, first)
            elif key == "categories":
                values = (_text(row.get("id")), _text(row.get("name")))
                self._base.execute("INSERT OR IGNORE INTO categories VALUES (?, ?)", values)
            elif "caption" in row and first:
                self._caption(row)
            elif "bbox" in row and boxes:
                self._box(row)
            else:
                without += 1
            if position % _BATCH == _BATCH - 1:  # lets pages leave the cache
                self._base.execute("COMMIT")
                self._base.execute("BEGIN")
        return without

    def _picture(self, path: Path, row: dict[str, Any], first: bool) -> None:
        identity, name = _text(row.get("id")), _text(row.get("file_name"))
        if not identity or not name:
            raise DataError(
                f"{path}: a picture without 'id' or 'file_name'", "give files in COCO's layout"
            )
        size = (_float(row.get("width")), _float(row.get("height")))
        added = self._base.execute(
            "INSERT OR IGNORE INTO pictures VALUES (?, ?, ?, ?)", (identity, name, *size)
        )
        if added.rowcount and first:
            self._base.execute("INSERT INTO ordered VALUES (?)", (identity,))
        elif first:
            self.left_out["picture listed twice"] += 1

    def _caption(self, row: dict[str, Any]) -> None:
        text = " ".join(_text(row["caption"]).split())
        if text:
            values = (_text(row.get("image_id")), text)
            self._base.execute("INSERT INTO captions VALUES (?, ?)", values)
        else:
            self.left_out["empty caption"] += 1

    def _box(self, row: dict[str, Any]) -> None:
        box = row["bbox"]
        crowd = bool(row.get("iscrowd"))
        if corners(box if isinstance(box, list) else (), 1e9, 1e9) is None:
            self.left_out["box without area or of wrong numbers"] += 1
            return
        if crowd and self.crowds == "skip":
            self.left_out["crowd"] += 1
        values = (_text(row.get("image_id")), _text(row.get("category_id")), *box, crowd)
        self._base.execute("INSERT INTO boxes VALUES (?, ?, ?, ?, ?, ?, ?)", values)

    def _count(self) -> None:
        """What the files hold that no picture will show."""
        for reason, condition in _LOST.items():
            ((found,),) = self._base.execute(f"SELECT COUNT(*) FROM {condition}").fetchall()
            if found:
                self.left_out[reason] += found


_LOST = {
    "picture without captions": "ordered WHERE NOT EXISTS"
    " (SELECT 1 FROM captions WHERE picture = ordered.id)",
    "caption of an unknown picture": "captions WHERE picture NOT IN (SELECT id FROM pictures)",
    "box of an unknown picture": "boxes WHERE picture NOT IN (SELECT id FROM pictures)",
    "box of an unknown category": "boxes WHERE NOT EXISTS"
    " (SELECT 1 FROM categories WHERE categories.id = boxes.category AND name != '')",
    "box outside its picture": "boxes WHERE EXISTS (SELECT 1 FROM pictures WHERE id = picture"
    " AND width > 0 AND height > 0 AND (x >= width OR y >= height OR x + w <= 0 OR y + h <= 0))",
    "box of a picture without a size": "boxes WHERE picture IN"
    " (SELECT id FROM pictures WHERE width <= 0 OR height <= 0)",
}


def _text(value: Any) -> str:
    """Ids may be numbers or strings; they are compared as text."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")  # SQLite refuses lone surrogates
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else ""


def _float(value: Any) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number else 0.0
