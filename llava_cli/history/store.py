"""The database: SQLite in WAL mode, so that several processes may write, with a full-text index.

One row is one exchange; a thread is a conversation of several.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llava_cli.conversation import Conversation, Message
from llava_cli.errors import ImageError, LlavaError
from llava_cli.images import Image

FILE = "history.sqlite"
VERSION = 1
_BUSY_S = 10.0
_SCHEMA = """
CREATE TABLE exchanges (
    id INTEGER PRIMARY KEY,
    thread INTEGER NOT NULL,      -- id of its first exchange
    at REAL NOT NULL,             -- seconds since 1970
    command TEXT NOT NULL,
    model TEXT NOT NULL,
    engine TEXT NOT NULL,
    system TEXT,
    prompt TEXT NOT NULL,
    answer TEXT NOT NULL,
    finish_reason TEXT NOT NULL,
    details TEXT NOT NULL         -- usage and timing, JSON
);
CREATE INDEX exchanges_thread ON exchanges (thread);
CREATE TABLE pictures (
    exchange INTEGER NOT NULL REFERENCES exchanges ON DELETE CASCADE,
    place INTEGER NOT NULL,
    sha256 TEXT NOT NULL,
    path BLOB,                    -- absolute, as the file system has it; NULL for what is no file
    source TEXT NOT NULL,
    PRIMARY KEY (exchange, place)
) WITHOUT ROWID;
CREATE VIRTUAL TABLE words USING fts5 (
    prompt, answer, content='exchanges', content_rowid='id',
    tokenize='unicode61 remove_diacritics 2'
);
CREATE TRIGGER exchange_in AFTER INSERT ON exchanges BEGIN
    INSERT INTO words (rowid, prompt, answer) VALUES (new.id, new.prompt, new.answer);
END;
CREATE TRIGGER exchange_out AFTER DELETE ON exchanges BEGIN
    INSERT INTO words (words, rowid, prompt, answer)
    VALUES ('delete', old.id, old.prompt, old.answer);
END;
"""


@dataclass(frozen=True)
class Picture:
    """A picture of an exchange: what it was and where it lay."""

    sha256: str
    path: str | None
    source: str

    def found(self) -> Image:
        """The same picture again; ImageError where it is gone or another one by now."""
        if self.path is None:
            raise ImageError(
                f"{self.source}: the history keeps no pictures, and this one was no file",
                "ask anew, with the picture",
            )
        image = Image.from_path(self.path)
        if image.sha256 != self.sha256:
            raise ImageError(
                f"{self.path}: is not the picture any more that the conversation is about",
                "ask anew, with the picture",
            )
        return image


@dataclass(frozen=True)
class Exchange:
    """A question and its answer."""

    prompt: str
    answer: str
    model: str
    engine: str
    finish_reason: str
    command: str = "ask"
    system: str | None = None
    pictures: tuple[Picture, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)
    id: int = 0
    thread: int = 0
    at: float = 0.0
    """Seconds since 1970."""


class History:
    """One database file; made when first written to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.touch(mode=0o600, exist_ok=True)  # what a person asked is theirs
            self._db = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None)
            self._db.row_factory = sqlite3.Row
            self._db.execute("PRAGMA foreign_keys=ON")
            self._prepare()
        except (sqlite3.Error, OSError) as error:
            raise _unusable(path, error) from error

    def _prepare(self) -> None:
        if self._version() == VERSION:
            return
        if self._version() > VERSION:
            raise LlavaError(f"{self.path}: was written by a newer llava", "update llava")
        self._write_ahead()
        self._db.execute("BEGIN IMMEDIATE")
        try:
            if self._version() == 0:  # not made by another process meanwhile
                for statement in _statements(_SCHEMA):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version={VERSION}")
            self._db.execute("COMMIT")
        except BaseException:
            self._db.execute("ROLLBACK")
            raise

    def _write_ahead(self) -> None:
        """Change to WAL mode; SQLite does not wait by itself where another process is writing."""
        until = time.monotonic() + _BUSY_S
        while True:
            try:
                self._db.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > until:
                    raise
            time.sleep(0.01)

    def _version(self) -> int:
        return int(self._db.execute("PRAGMA user_version").fetchone()[0])

    def add(self, exchange: Exchange, thread: int | None = None) -> Exchange:
        """Remember an exchange, as the next one of a thread or the first of its own."""
        with self._writing():
            at = exchange.at or time.time()
            row = self._db.execute(
                "INSERT INTO exchanges (thread, at, command, model, engine, system, prompt, answer,"
                " finish_reason, details) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    *(thread or 0, at, exchange.command, _text(exchange.model), exchange.engine),
                    None if exchange.system is None else _text(exchange.system),
                    *(_text(exchange.prompt), _text(exchange.answer), exchange.finish_reason),
                    json.dumps(exchange.details),
                ),
            )
            number = int(row.lastrowid or 0)
            if thread is None:
                self._db.execute("UPDATE exchanges SET thread = id WHERE id = ?", (number,))
            self._db.executemany(
                "INSERT INTO pictures VALUES (?, ?, ?, ?, ?)",
                (
                    (number, place, p.sha256, _bytes(p.path), _text(p.source))
                    for place, p in enumerate(exchange.pictures)
                ),
            )
        return self.get(number)

    def get(self, number: int) -> Exchange:
        """One exchange; LlavaError where there is none of this number."""
        row = self._db.execute("SELECT * FROM exchanges WHERE id = ?", (number,)).fetchone()
        if row is None:
            raise LlavaError(f"there is no exchange {number}", "see: llava logs list")
        return self._exchange(row)

    def thread(self, number: int) -> list[Exchange]:
        """All exchanges of a conversation, in order."""
        rows = self._db.execute(
            "SELECT * FROM exchanges WHERE thread = ? ORDER BY id", (number,)
        ).fetchall()
        return [self._exchange(row) for row in rows]

    def latest(self) -> Exchange | None:
        """The last one."""
        row = self._db.execute("SELECT * FROM exchanges ORDER BY id DESC LIMIT 1").fetchone()
        return None if row is None else self._exchange(row)

    def recent(self, limit: int | None, *, model: str | None = None) -> Iterator[Exchange]:
        """The latest first."""
        query = "SELECT * FROM exchanges WHERE (? IS NULL OR model = ?) ORDER BY id DESC LIMIT ?"
        for row in self._db.execute(query, (model, model, -1 if limit is None else limit)):
            yield self._exchange(row)

    def search(self, text: str, limit: int | None) -> Iterator[Exchange]:
        """Exchanges in which all words occur (as beginnings of words), the best first."""
        words = [word.replace('"', '""') for word in text.split()]
        if not words:
            return
        match = " ".join(f'"{word}"*' for word in words)
        query = (
            "SELECT exchanges.* FROM words JOIN exchanges ON exchanges.id = words.rowid"
            " WHERE words MATCH ? ORDER BY words.rank, id DESC LIMIT ?"
        )
        for row in self._db.execute(query, (_text(match), -1 if limit is None else limit)):
            yield self._exchange(row)

    def everything(self) -> Iterator[Exchange]:
        """In order."""
        for row in self._db.execute("SELECT * FROM exchanges ORDER BY id"):
            yield self._exchange(row)

    def count(self, before: float | None = None) -> int:
        """How many exchanges there are, or are older."""
        query = "SELECT count(*) FROM exchanges WHERE ? IS NULL OR at < ?"
        return int(self._db.execute(query, (before, before)).fetchone()[0])

    def prune(self, before: float | None = None) -> int:
        """Forget exchanges older than a time, or all; their words leave the file, too."""
        with self._writing():
            query = "DELETE FROM exchanges WHERE ? IS NULL OR at < ?"
            gone = self._db.execute(query, (before, before)).rowcount
        self._db.execute("INSERT INTO words (words) VALUES ('optimize')")
        self._db.execute("VACUUM")
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return gone

    def forget(self, number: int) -> None:
        """Take one exchange back."""
        with self._writing():
            self._db.execute("DELETE FROM exchanges WHERE id = ?", (number,))

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    def _exchange(self, row: sqlite3.Row) -> Exchange:
        pictures = self._db.execute(
            "SELECT sha256, path, source FROM pictures WHERE exchange = ? ORDER BY place",
            (row["id"],),
        ).fetchall()
        return Exchange(
            **{key: row[key] for key in row.keys() if key != "details"},  # noqa: SIM118
            details=json.loads(row["details"]),
            pictures=tuple(Picture(p["sha256"], _path(p["path"]), p["source"]) for p in pictures),
        )

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            raise _unusable(self.path, error) from error


def database(home: Path) -> Path:
    """Where the history of this home lies."""
    return home / FILE


def pictures_of(message: Message) -> tuple[Picture, ...]:
    """How the history remembers a message's pictures."""
    return tuple(
        Picture(
            image.sha256,
            str(image.path.absolute()) if image.kind == "file" and image.path else None,
            image.source,
        )
        for image in message.images
    )


def remember(
    path: Path, conversation: Conversation, exchange: Exchange, thread: int | None = None
) -> Exchange:
    """Add the last user turn of a conversation with its answer."""
    asked = next(m for m in reversed(conversation.messages) if m.role == "user")
    first = conversation.messages[0]
    complete = replace(
        exchange,
        prompt=asked.text,
        system=first.text if first.role == "system" else None,
        pictures=pictures_of(asked),
    )
    with contextlib.closing(History(path)) as history:
        return history.add(complete, thread)


def conversation_of(exchanges: Sequence[Exchange]) -> Conversation:
    """A thread as a conversation; ImageError where one of its pictures is gone."""
    conversation = Conversation()
    if exchanges and exchanges[0].system is not None:
        conversation = conversation.add("system", exchanges[0].system)
    for exchange in exchanges:
        images = [picture.found() for picture in exchange.pictures]
        conversation = conversation.add("user", *images, exchange.prompt)
        conversation = conversation.add("assistant", exchange.answer)
    return conversation


def _unusable(path: Path, error: Exception) -> LlavaError:
    if "locked" in str(error) or "busy" in str(error):
        return LlavaError(f"{path}: is in use by another process", "try again")
    if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
        return LlavaError(f"{path}: is damaged or no history", "move it away to begin a new one")
    return LlavaError(f"{path}: the history cannot be kept: {error}", "free space, or use --no-log")


def _statements(script: str) -> Iterator[str]:
    """The statements of a script; a trigger holds semicolons of its own."""
    pending = ""
    for line in script.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            yield pending
            pending = ""


def _text(text: str) -> str:
    """Text that UTF-8 can hold: stray bytes of file names are written out."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _bytes(path: str | None) -> bytes | None:
    return None if path is None else os.fsencode(path)


def _path(data: bytes | None) -> str | None:
    return None if data is None else os.fsdecode(data)
