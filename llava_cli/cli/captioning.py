"""A run of captioning as a person sees it: progress, summary, failures by name."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_cli.captioning.run import Job, Outcome, Run, select
from llava_cli.cli import models
from llava_cli.cli.options import Common
from llava_cli.errors import LlavaError, PartialFailure, UsageError
from llava_cli.terminal.documents import write_document
from llava_cli.terminal.progress import Progress, duration
from llava_cli.terminal.safe import one_line, visible
from llava_cli.terminal.streams import is_terminal, note, write

if TYPE_CHECKING:
    from llava_cli.captioning.keepers import Keeper
    from llava_cli.captioning.report import Row
    from llava_cli.engines.base import Engine


class Session:
    """One `llava caption`."""

    def __init__(
        self, job: Job, keeper: Keeper, choice: models.ModelChoice, common: Common
    ) -> None:
        self._job = job
        self._keeper = keeper
        self._choice = choice
        self._common = common
        self._counts = {"written": 0, "skipped": 0, "failed": 0}
        self._failures: list[dict[str, str]] = []
        self._progress = Progress(wanted=not common.quiet and not common.json)
        self._model_s = 0.0

    def dry_run(self) -> None:
        """What a run would do: one line for each picture that it would caption."""
        self._begin()
        would = 0
        for found in select(self._job, self._keeper):
            if isinstance(found, Outcome):
                self._count(found)
                continue
            would += 1
            if not self._common.json:
                place = self._keeper.place(found.item).shown
                write(f"{_shown(found.item.shown)} -> {_shown(place)}\n")
        self._keeper.journal.close(finished=False)
        if self._common.json:
            write_document({"dry_run": True, "would_write": would, **self._document()})
            return
        self._name_failures()
        skipped, failed = self._counts["skipped"], self._counts["failed"]
        self._say(f"would write {would:,}, skip {skipped:,}, refuse {failed:,}; nothing was done")

    def preview(self) -> None:
        """Show some captions as they would be written."""
        self._begin()
        run = Run(self._job, self._keeper, self._load)
        shown: list[dict[str, str]] = []
        try:
            for outcome in run.outcomes():
                self._count(outcome)
                if outcome.kind == "written":
                    shown.append({"path": outcome.item.shown, "caption": outcome.caption})
                    if not self._common.json:
                        write(f"{_shown(outcome.item.shown)}\n{_text(outcome.caption)}\n\n")
        finally:
            run.close()
            self._keeper.journal.close(finished=False)
        if self._common.json:
            document = self._document()
            write_document({"previews": shown, **document, "written": 0})
        else:
            self._name_failures()
            self._say("nothing was written")
        self._raise_if_failed(len(shown))

    def run(self, *, stop_at_failure: bool, report: Path | None) -> None:
        """Caption, then say honestly what became of every picture."""
        resumed = self._begin()
        if resumed:
            self._say("going on with a run that was stopped")
        run = Run(self._job, self._keeper, self._load)
        self._progress.start()
        ended = stopped = False
        try:
            for outcome in run.outcomes():
                self._count(outcome)
                if self._progress.seen == 0:  # the first caption need not wait for it
                    self._count_in_background()
                self._progress.step(worked=outcome.kind != "skipped", name=outcome.item.shown)
                if outcome.kind == "failed" and stop_at_failure:
                    stopped = True
                    break
            self._progress.clear()
            if self._counts["written"] or resumed:
                self._keeper.publish(whole=True)
            ended = True
        except BaseException:
            self._progress.clear()
            if self._counts["written"]:
                self._keeper.publish(whole=False)
                self._say(f"stopped; {self._summary()}; the same command goes on")
            raise
        finally:
            run.close()
            if ended and report is not None:
                self._write_report(report)
            whole = ended and not stopped and not self._job.limit and not self._job.only_failed
            self._keeper.journal.close(finished=ended and not stopped, all_seen=whole)
        self._tell(stopped)

    def _begin(self) -> bool:
        choice = self._choice
        parts = (choice.adapter, choice.base, choice.vision_tower)
        model = [choice.model or "", *(str(part) for part in parts if part is not None)]
        return self._keeper.begin(self._job.fingerprint("\n".join(model)))

    def _load(self) -> Engine:
        started = time.monotonic()
        engine = models.load(self._choice, self._common)
        self._model_s = time.monotonic() - started
        self._progress.start()
        return engine

    def _count(self, outcome: Outcome) -> None:
        self._counts[outcome.kind] += 1
        if outcome.kind == "failed":
            self._failures.append({"path": outcome.item.shown, "error": outcome.error})

    def _count_in_background(self) -> None:
        """How many there are, for the time that is left."""
        if self._common.quiet or self._common.json or not self._job.sources.countable:
            return

        def count() -> None:
            found = sum(1 for _ in self._job.sources.items())
            limit = self._job.limit
            if not self._job.only_failed:
                self._progress.total = found if limit is None else min(found, limit)

        threading.Thread(target=count, daemon=True, name="count").start()

    def _document(self) -> dict[str, Any]:
        return {
            **self._counts,
            "failures": self._failures,
            "images_per_s": round(self._progress.rate, 3) if self._counts["written"] else 0.0,
        }

    def _summary(self) -> str:
        counts = self._counts
        return (
            f"{counts['written']:,} written, {counts['skipped']:,} skipped,"
            f" {counts['failed']:,} failed"
        )

    def _tell(self, stopped: bool) -> None:
        """The summary; a batch with failures is one (exit code 5)."""
        rate, seconds = self._progress.rate, self._progress.seconds
        if self._common.json:
            write_document(self._document())
        else:
            self._name_failures()
            took = (
                f" in {duration(seconds)} ({rate:.1f} images/s)" if self._counts["written"] else ""
            )
            self._say(self._summary() + took)
        total = sum(self._counts.values())
        if total == 0 and not self._job.only_failed:
            raise UsageError(*self._nothing())
        self._raise_if_failed(total, stopped=stopped)

    def _nothing(self) -> tuple[str, str]:
        named = ", ".join(self._job.sources.paths) or str(self._job.sources.list_file)
        remedy = "-r looks into subfolders; --include and --exclude may leave nothing"
        return f"there are no pictures in {named}", remedy

    def _raise_if_failed(self, total: int, *, stopped: bool = False) -> None:
        if not self._failures:
            return
        failed = len(self._failures)
        if stopped:
            message = f"stopped at a picture that failed: {self._failures[-1]['path']}"
            raise PartialFailure(message, "repair or remove it; the same command goes on")
        raise PartialFailure(
            f"{failed:,} of {total:,} pictures failed",
            "repair or remove them; --retry-failed tries only these again",
        )

    def _name_failures(self) -> None:
        """Every one by name, even with -q: they are the result."""
        for failure in self._failures:
            sys.stderr.write(f"failed: {one_line(failure['error'])}\n")
        sys.stderr.flush()

    def _say(self, text: str) -> None:
        if not self._common.quiet:
            note(text)

    def _write_report(self, path: Path) -> None:
        from llava_cli.captioning.report import write_report

        title = ", ".join(Path(p).name or p for p in self._job.sources.paths) or "captions"
        count = write_report(path, title, self._rows())
        if not self._common.json:
            self._say(f"{count:,} pictures in {path}")

    def _rows(self) -> Iterator[Row]:
        from llava_cli.captioning.report import Row

        errors = {failure["path"]: failure["error"] for failure in self._failures}
        for item in self._job.sources.items():
            error = errors.get(item.shown, "")
            try:
                caption = "" if error else self._keeper.caption(item) or ""
            except LlavaError as problem:
                caption, error = "", problem.message
            yield Row(item, caption, error)


def _shown(path: str) -> str:
    return one_line(path) if is_terminal(sys.stdout) else path


def _text(caption: str) -> str:
    return visible(caption) if is_terminal(sys.stdout) else caption
