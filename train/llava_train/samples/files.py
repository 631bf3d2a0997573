"""Files that appear whole or not at all, and sets that outgrow memory."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def whole(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """A file to write to: flushed to the disk and put in place at the end, removed on failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    encoding, newline = (None, None) if "b" in mode else ("utf-8", "\n")
    try:
        with aside.open(mode, encoding=encoding, newline=newline) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """A small JSON document."""
    with whole(path) as file:
        file.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def file_sha256(path: Path) -> str:
    """Of a file's bytes, in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


class Seen:
    """A set of texts that lives on the disk once it outgrows its cache (32 MiB)."""

    def __init__(self) -> None:
        self._base = sqlite3.connect("", isolation_level=None)  # private, removed when closed
        self._base.execute("PRAGMA cache_size = -32768")
        self._base.execute("PRAGMA journal_mode = OFF")
        self._base.execute("CREATE TABLE seen (digest BLOB PRIMARY KEY) WITHOUT ROWID")
        self._base.execute("BEGIN")

    def add(self, text: str) -> bool:
        """Whether the text is new."""
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        added = self._base.execute("INSERT OR IGNORE INTO seen VALUES (?)", (digest,))
        return added.rowcount == 1

    def close(self) -> None:
        """Remove what is on the disk."""
        self._base.close()
