"""How far a download is: a bar on a terminal, a line per file elsewhere, nothing when quiet.

Knows names and bytes, nothing of where they come from.
"""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING

from llava_cli.terminal.safe import one_line
from llava_cli.terminal.streams import dim, takes_escapes

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


def readable(size: float) -> str:
    """Bytes as people read them, in powers of ten as disks and the Hub count."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


class TransferBar:
    """A context in which `update(name, there, size)` shows what is going on."""

    def __init__(self, total: int, wanted: bool) -> None:
        """`total` is the bytes of all files."""
        self._total = total
        self._there: dict[str, int] = {}
        self._wanted = wanted
        self._moving = wanted and takes_escapes(sys.stderr)
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> TransferBar:
        if self._moving:
            self._progress = _bar()
            self._task = self._progress.add_task("", total=self._total)
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def update(self, name: str, there: int, size: int) -> None:
        """So many bytes of a file are there."""
        before = self._there.get(name)
        self._there[name] = there
        if self._progress is not None and self._task is not None:
            self._progress.update(
                self._task, completed=sum(self._there.values()), description=_short(name)
            )
        elif self._wanted and there == size and before != size:
            sys.stderr.write(dim(f"{one_line(name)}: {readable(size)}", sys.stderr) + "\n")
            sys.stderr.flush()


def _short(name: str) -> str:
    from rich.markup import escape

    name = one_line(name.rsplit("/", 1)[-1])
    return escape(name if len(name) <= 32 else f"{name[:15]}…{name[-16:]}")


def _bar() -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        refresh_per_second=5,
    )
