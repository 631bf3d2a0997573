"""How a training is shown while it goes on: one moving line on a terminal, else plain lines."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_cli.cli.options import common
from llava_cli.terminal.safe import one_line
from llava_cli.terminal.streams import note, takes_escapes

if TYPE_CHECKING:
    from llava_train.loop import Watch
    from llava_train.runlog import StepLog
    from llava_train.validation import ValidationLog

_EVERY = 10
"""Steps between lines where nothing moves; with -v every step has one."""


@contextmanager
def watching(curves: Path | None) -> Iterator[Watch]:
    """What the loop is to call. `curves`: the run whose TensorBoard files are written too."""
    from llava_train import curves as tensorboard
    from llava_train.loop import Watch

    writer = None if curves is None else tensorboard.writer(curves)
    moving = takes_escapes(sys.stderr) and not common().quiet
    shown = _Bar() if moving and not common().verbose else _Lines()
    try:
        yield Watch(
            note=shown.say,
            on_start=shown.start,
            on_step=_both(shown.step, writer, tensorboard.step),
            on_validation=_both(shown.validation, writer, tensorboard.validation),
        )
    finally:
        shown.close()
        if writer is not None:
            writer.close()


def as_text(line: StepLog) -> str:
    """A step in one line."""
    seconds = max(1e-9, line.seconds + line.data_wait)
    parts = [f"loss {line.loss:.4f}", f"lr {line.lr:.2e}", f"{line.tokens / seconds:,.0f} pos/s"]
    if line.mfu is not None:
        parts.append(f"MFU {100 * line.mfu:.1f} %")
    if line.data_wait > 0.05 * seconds:
        parts.append(f"data {100 * line.data_wait / seconds:.0f} %")
    return "  ".join(parts)


class _Lines:
    """For pipes, files and -v."""

    def __init__(self) -> None:
        self._stop = 0

    def say(self, text: str) -> None:
        if not common().quiet:
            note(text)

    def start(self, done: int, stop: int) -> None:
        self._stop = stop

    def step(self, line: StepLog) -> None:
        if common().quiet or not (common().verbose or line.step % _EVERY == 0):
            return
        sys.stderr.write(f"step {line.step}/{self._stop}  {as_text(line)}\n")
        sys.stderr.flush()

    def validation(self, line: ValidationLog) -> None:
        self.say(f"held out after step {line.step}: loss {line.loss:.4f}")
        if common().verbose:
            for answer in line.answers:
                self.say(f"  {answer.question} -> {answer.answer} (expected {answer.expected})")

    def close(self) -> None:
        """Nothing is left on the screen."""


class _Bar(_Lines):
    """A bar with the time that is left, at the bottom of the terminal."""

    def __init__(self) -> None:
        super().__init__()
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        self._bar = Progress(
            TextColumn("step"), MofNCompleteColumn(), BarColumn(bar_width=20),
            TextColumn("{task.description}", markup=False), TimeRemainingColumn(),
            console=Console(file=sys.stderr), speed_estimate_period=600,
        )  # fmt: skip
        self._task: Any = None

    def say(self, text: str) -> None:
        self._bar.console.print(one_line(text), style="dim", markup=False, highlight=False)

    def start(self, done: int, stop: int) -> None:
        self._task = self._bar.add_task("", total=stop, completed=done)
        self._bar.start()

    def step(self, line: StepLog) -> None:
        self._bar.update(self._task, completed=line.step, description=as_text(line))

    def close(self) -> None:
        self._bar.stop()


def _both(show: Any, writer: Any, write: Any) -> Any:
    """Show a line, and write its curves where they are wanted."""

    def call(line: Any) -> None:
        show(line)
        if writer is not None:
            write(writer, line)

    return call
