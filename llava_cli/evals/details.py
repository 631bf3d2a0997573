"""Verdicts on items as JSON Lines: one row an item with gold, raw text, parsed answer, verdict."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from llava_cli.evals.scoring import Verdict


@contextmanager
def writer(path: Path | None) -> Iterator[Callable[[Verdict], None] | None]:
    """A function that writes verdicts to a file; the file appears whole or not at all."""
    if path is None:
        yield None
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".part")
    try:
        with aside.open("w", encoding="utf-8", errors="backslashreplace") as file:
            yield lambda item: _put(file.write, item)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _put(write: Callable[[str], object], item: Verdict) -> None:
    write(json.dumps(item.row(), ensure_ascii=False) + "\n")
