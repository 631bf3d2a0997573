"""What a run has done, on disk before anybody is told: SQLite, one file, one process at a time.

A caption is stored here first, then written to its place, then marked as there. So after a kill at
any moment nothing finished is lost, and nothing is done twice. The file goes away when a run ends
without failures.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llava_cli.errors import LlavaError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
    name BLOB PRIMARY KEY,  -- as the file system has it, relative to the journal's folder
    run INTEGER NOT NULL,
    status TEXT NOT NULL,   -- ready: to be written; done; kept: from an earlier output; failed
    caption TEXT,
    target BLOB,            -- where a sidecar goes
    content BLOB,           -- what goes there, until it is there
    extra TEXT,             -- other fields of an earlier output, as JSON
    error TEXT
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS state (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TEMP TABLE claimed (place BLOB PRIMARY KEY, name BLOB NOT NULL) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Entry:
    """A picture that has its caption."""

    name: str
    caption: str
    extra: str | None


@dataclass(frozen=True)
class Unwritten:
    """A sidecar that a killed run had not yet put in its place."""

    name: str
    target: Path
    content: bytes


class Journal:
    """The journal of one output; opening it refuses where another process has it open."""

    def __init__(self, path: Path, *, readonly: bool = False) -> None:
        """`readonly` leaves the file as it is and works on a copy in memory."""
        self.path = path
        self.folder = path.parent
        self._readonly = readonly
        try:
            self._db = _copy_in_memory(path) if readonly else _connect(path)
            self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute("BEGIN EXCLUSIVE")  # takes the lock, which is then kept
            self._db.execute("COMMIT")
            self._db.executescript(_SCHEMA)
        except sqlite3.OperationalError as error:
            raise self._refused(error) from error
        except sqlite3.DatabaseError as error:
            raise LlavaError(
                f"{self.path}: is damaged or no journal", "remove it: captions are kept elsewhere"
            ) from error
        self.run = 0

    def _refused(self, error: sqlite3.OperationalError) -> LlavaError:
        if "locked" in str(error):
            return LlavaError(
                f"another llava caption is at work in {self.folder}",
                "wait until it has ended; a killed one leaves no lock behind",
            )
        return LlavaError(
            f"{self.folder}: the journal cannot be kept there: {error}",
            "check permissions and space, or write elsewhere with -o",
        )

    def begin(self, fingerprint: str) -> bool:
        """Start a run, or go on with a killed one of the same settings; whether it went on."""
        unfinished = self._state("finished") == "no"
        same = self._state("fingerprint") == fingerprint
        self.run = int(self._state("run") or 0) + (0 if unfinished and same else 1)
        new = {"run": str(self.run), "fingerprint": fingerprint, "finished": "no"}
        with self._transaction():
            if not unfinished:  # what is in its place is known from there
                self._db.execute("DELETE FROM entries WHERE status <> 'failed'")
                self._db.execute("UPDATE entries SET caption = NULL")
            for key, value in new.items():
                self._db.execute("INSERT OR REPLACE INTO state VALUES (?, ?)", (key, value))
        return unfinished and same

    def claim(self, place: bytes, name: str) -> str | None:
        """Take a place for a picture's caption; the name of who has it already, or None."""
        row = (place, os.fsencode(name))
        if self._db.execute("INSERT OR IGNORE INTO claimed VALUES (?, ?)", row).rowcount:
            return None
        found = self._db.execute("SELECT name FROM claimed WHERE place = ?", row[:1]).fetchone()
        return os.fsdecode(found[0])

    def caption(self, name: str) -> str | None:
        """The caption of a picture, whichever run made it."""
        row = self._db.execute(
            "SELECT caption FROM entries WHERE name = ? AND status IN ('ready', 'done', 'kept')",
            (os.fsencode(name),),
        ).fetchone()
        return None if row is None else row[0]

    def is_done(self, name: str) -> bool:
        """Whether this run, killed ones that it continues included, has captioned the picture."""
        row = self._db.execute(
            "SELECT 1 FROM entries WHERE name = ? AND status = 'done' AND run = ?",
            (os.fsencode(name), self.run),
        ).fetchone()
        return row is not None

    def has_failed(self, name: str) -> bool:
        """Whether the picture failed when it was last tried."""
        row = self._db.execute(
            "SELECT 1 FROM entries WHERE name = ? AND status = 'failed'", (os.fsencode(name),)
        ).fetchone()
        return row is not None

    def ready(self, name: str, caption: str, target: Path, content: bytes) -> None:
        """A sidecar that is about to be written."""
        self._put(name, "ready", caption, os.fsencode(target), content)

    def done(self, name: str, caption: str) -> None:
        """A caption that is in its place."""
        extra = self._db.execute(
            "SELECT extra FROM entries WHERE name = ?", (os.fsencode(name),)
        ).fetchone()
        self._put(name, "done", caption, extra=extra[0] if extra else None)

    def wrote(self, name: str) -> None:
        """A sidecar that was ready is in its place now."""
        self._db.execute(
            "UPDATE entries SET status = 'done', content = NULL WHERE name = ?",
            (os.fsencode(name),),
        )

    def withdraw(self, name: str) -> None:
        """A sidecar that could not be written."""
        self._db.execute("DELETE FROM entries WHERE name = ?", (os.fsencode(name),))

    def failed(self, name: str, error: str) -> None:
        """A picture that got no caption; one that it had before stays."""
        text = error.encode("utf-8", "backslashreplace").decode("utf-8")  # names of any bytes
        values = (os.fsencode(name), self.run, text)
        self._db.execute(
            "INSERT INTO entries (name, run, status, error) VALUES (?, ?, 'failed', ?)"
            " ON CONFLICT (name) DO UPDATE SET run = excluded.run, status = 'failed',"
            " error = excluded.error",
            values,
        )

    def keep(self, entries: Iterator[Entry]) -> None:
        """Captions of an earlier output; what this journal knows of a killed run is newer."""
        with self._transaction():
            self._db.executemany(
                "INSERT INTO entries (name, run, status, caption, extra)"
                " VALUES (?, 0, 'kept', ?, ?) ON CONFLICT (name) DO UPDATE SET"
                " caption = coalesce(caption, excluded.caption), extra = excluded.extra",
                ((os.fsencode(e.name), e.caption, e.extra) for e in entries),
            )

    def captioned(self) -> Iterator[Entry]:
        """All pictures with a caption, by name; failed ones with an earlier caption included."""
        rows = self._db.execute(
            "SELECT name, caption, extra FROM entries WHERE caption IS NOT NULL ORDER BY name"
        )
        return (Entry(os.fsdecode(name), caption, extra) for name, caption, extra in rows)

    def unwritten(self) -> list[Unwritten]:
        """What a kill left between two steps: at most one for each writer."""
        rows = self._db.execute(
            "SELECT name, target, content FROM entries WHERE status = 'ready'"
        ).fetchall()
        return [Unwritten(os.fsdecode(n), Path(os.fsdecode(t)), c) for n, t, c in rows]

    def forgive(self, name: str) -> None:
        """Forget that a picture failed: it has a caption now."""
        self._db.execute(
            "DELETE FROM entries WHERE name = ? AND status = 'failed'", (os.fsencode(name),)
        )

    def close(self, *, finished: bool, all_seen: bool = False) -> None:
        """End the run; without failures nothing has to be remembered and the file goes.

        `all_seen`: every picture was looked at, so failures of earlier runs are of pictures that
        are gone.
        """
        if finished:
            self._db.execute("INSERT OR REPLACE INTO state VALUES ('finished', 'yes')")
        if finished and all_seen:
            self._db.execute(
                "DELETE FROM entries WHERE status = 'failed' AND run <> ?", (self.run,)
            )
        wanted = "" if not finished else " WHERE status = 'failed'"
        kept = self._db.execute(f"SELECT 1 FROM entries{wanted} LIMIT 1").fetchone()
        useless = kept is None and not self._readonly
        if useless and os.name == "posix":  # while the lock is held: nobody else can be in it
            self._remove()
        self._db.close()
        if useless and os.name != "posix":
            self._remove()

    def _remove(self) -> None:
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(OSError):
                self.path.with_name(self.path.name + suffix).unlink()

    def _state(self, key: str) -> str | None:
        row = self._db.execute("SELECT value FROM state WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def _put(
        self,
        name: str,
        status: str,
        caption: str,
        target: bytes | None = None,
        content: bytes | None = None,
        extra: str | None = None,
    ) -> None:
        self._db.execute(
            "INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, NULL)",
            (os.fsencode(name), self.run, status, caption, target, content, extra),
        )

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")


def _connect(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    return sqlite3.connect(path, timeout=0, isolation_level=None)


def _copy_in_memory(path: Path) -> sqlite3.Connection:
    memory = sqlite3.connect(":memory:", isolation_level=None)
    if path.is_file():
        with contextlib.closing(_connect(path)) as file:
            file.backup(memory)
    return memory
