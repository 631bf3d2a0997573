"""What was sent and what came back, on the disk before anything else is done with it.

One SQLite file in the output folder. A request is known by the SHA-256 of its body.
`sent` is written before a request leaves and taken away when its answer is stored, in the same
transaction; what a killed run leaves there may have been paid for, and counts as spent.
Answers are never changed, so the same request is answered from here for ever (a cache), and the
samples of a run are a function of its plan and this file.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_cli.errors import DataError

_VERSION = 1
_TABLES = """
CREATE TABLE IF NOT EXISTS answers (
    request TEXT PRIMARY KEY, text TEXT, finish TEXT, prompt_tokens INT, completion_tokens INT,
    model TEXT, at REAL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sent (
    request TEXT, run TEXT, prompt_tokens INT, completion_tokens INT, at REAL,
    PRIMARY KEY (request, run)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS lost (
    request TEXT, prompt_tokens INT, completion_tokens INT, why TEXT, at REAL
);
CREATE TABLE IF NOT EXISTS failures (request TEXT PRIMARY KEY, why TEXT, at REAL) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Answer:
    """What an endpoint wrote."""

    text: str
    finish: str
    """stop, length, content_filter, …"""
    prompt_tokens: int
    completion_tokens: int
    model: str
    """As the endpoint calls it."""


@dataclass(frozen=True)
class Spent:
    """Tokens of the whole journal."""

    prompt_tokens: int
    completion_tokens: int
    requests: int
    lost_requests: int
    """Sent, never answered, and maybe paid for all the same."""


class Journal:
    """The file of one output folder; one run at a time writes to it."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._run = f"{os.getpid()}-{time.time_ns()}"
        try:
            self._base = sqlite3.connect(path, isolation_level=None, timeout=2)
            self._open()
        except sqlite3.DatabaseError as error:
            raise _unusable(path, error) from error

    def _open(self) -> None:
        base = self._base
        base.execute("PRAGMA locking_mode = EXCLUSIVE")  # released by the system after a kill
        base.execute("PRAGMA journal_mode = WAL")
        base.execute("PRAGMA synchronous = FULL")
        (version,) = base.execute("PRAGMA user_version").fetchone()
        if version not in (0, _VERSION):
            raise DataError(
                f"{self._path} is of another version of llava", "name a new output folder"
            )
        base.execute("BEGIN IMMEDIATE")
        for statement in _TABLES.split(";"):
            base.execute(statement)
        base.execute(f"PRAGMA user_version = {_VERSION}")
        # Nobody else can hold the lock, so whatever is marked as sent will never be answered.
        base.execute(
            "INSERT INTO lost SELECT request, prompt_tokens, completion_tokens,"
            " 'the run was killed', at FROM sent"
        )
        base.execute("DELETE FROM sent")
        base.execute("COMMIT")

    def close(self) -> None:
        """Let others open it."""
        self._base.close()

    def answer(self, request: str) -> Answer | None:
        """The answer to a request, if there is one."""
        row = self._base.execute(
            "SELECT text, finish, prompt_tokens, completion_tokens, model"
            " FROM answers WHERE request = ?",
            (request,),
        ).fetchone()
        return Answer(*row) if row else None

    def failure(self, request: str) -> str | None:
        """Why the last run had no answer to a request."""
        row = self._base.execute(
            "SELECT why FROM failures WHERE request = ?", (request,)
        ).fetchone()
        return str(row[0]) if row else None

    def mark_sent(self, request: str, prompt_tokens: int, completion_tokens: int) -> None:
        """A request is about to leave, and may use up to these tokens."""
        self._base.execute(
            "INSERT OR REPLACE INTO sent VALUES (?, ?, ?, ?, ?)",
            (request, self._run, prompt_tokens, completion_tokens, time.time()),
        )

    def store(self, request: str, answer: Answer) -> None:
        """The answer arrived whole."""
        values = (
            request, answer.text, answer.finish, answer.prompt_tokens, answer.completion_tokens,
            answer.model, time.time(),
        )  # fmt: skip
        self._base.execute("BEGIN")
        self._base.execute("INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?)", values)
        self._base.execute("DELETE FROM sent WHERE request = ?", (request,))
        self._base.execute("DELETE FROM failures WHERE request = ?", (request,))
        self._base.execute("COMMIT")

    def unsent(self, request: str) -> None:
        """The endpoint refused the request, so it cost nothing."""
        self._base.execute("DELETE FROM sent WHERE request = ?", (request,))

    def lose(self, request: str, why: str) -> None:
        """The request left and its answer never arrived whole; it may be paid for."""
        self._base.execute("BEGIN")
        self._base.execute(
            "INSERT INTO lost SELECT request, prompt_tokens, completion_tokens, ?, at"
            " FROM sent WHERE request = ?",
            (why, request),
        )
        self._base.execute("DELETE FROM sent WHERE request = ?", (request,))
        self._base.execute("COMMIT")

    def fail(self, request: str, why: str) -> None:
        """No more attempts in this run."""
        self._base.execute(
            "INSERT OR REPLACE INTO failures VALUES (?, ?, ?)", (request, why, time.time())
        )

    def spent(self) -> Spent:
        """Over all runs; what was lost counts in full, because it may have been billed."""
        one = "SELECT TOTAL(prompt_tokens), TOTAL(completion_tokens), COUNT(*)"
        answered = self._base.execute(f"{one} FROM answers").fetchone()
        lost = self._base.execute(f"{one} FROM lost").fetchone()
        prompt, completion = (int(a + b) for a, b in zip(answered[:2], lost[:2], strict=True))
        return Spent(prompt, completion, answered[2], lost[2])

    def lost(self) -> Iterator[dict[str, Any]]:
        """Requests that may be paid for without an answer."""
        rows = self._base.execute("SELECT request, why, at FROM lost ORDER BY at")
        for request, why, at in rows:
            yield {"request": request, "why": why, "at": at}


def request_key(body: dict[str, Any]) -> str:
    """A request's name: SHA-256 of its body. An endpoint that moves is not paid again."""
    text = json.dumps(body, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _unusable(path: Path, error: sqlite3.DatabaseError) -> DataError:
    if "locked" in str(error):
        return DataError(
            f"{path} is in use by another run", "wait for it, or name another output folder"
        )
    return DataError(f"{path} is not a journal: {error}", "name another output folder")
