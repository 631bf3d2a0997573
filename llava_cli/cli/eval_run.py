"""`llava eval run`: a benchmark's questions, answered by a model, then scored."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llava_cli.cli.groups import Command
from llava_cli.cli.options import common, model_options, sampling_from, sampling_options

if TYPE_CHECKING:
    from llava_cli.engines.base import Engine, Sampling
    from llava_cli.evals.run import Failure, Journal, Protocol
    from llava_cli.evals.scoring import Result
    from llava_cli.evals.tasks import Plan

FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
EXAMPLES = (
    ("llava eval run gqa -m REF --data gqa/", "all of it; run it again to go on after a stop"),
    ("llava eval run mme -m REF --data MME/ --limit 50", "the first fifty questions"),
    ("llava eval run vqav2 -m REF --data vqa/ --shard 1/4", "one of four machines"),
)


@click.command("run", cls=Command, examples=EXAMPLES)
@click.argument("benchmark", metavar="BENCH")
@click.option("--data", required=True, type=FOLDER, metavar="DIR", help="The organisers' files.")
@click.option(
    "-o", "--output", type=click.Path(file_okay=False, path_type=Path), metavar="DIR",
    help="Where answers and scores go; eval/BENCH unless named.",
)  # fmt: skip
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the first N.")
@click.option("--shard", metavar="I/N", help="Only the I-th of N blocks.")
@click.option("--resume/--no-resume", default=True, help="Go on where a run stopped (default).")
@click.option(
    "--questions", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="F",
    help="LLaVA's ready-made question file instead of the organisers'.",
)  # fmt: skip
@click.option("--split", metavar="NAME", help="Which split, where the folder holds several.")
@click.option("--suffix", metavar="TEXT", help="Replace what follows each question.")
@click.option("-s", "--system", metavar="TEXT", help="Replace the system message.")
@click.option(
    "--image-mode", type=click.Choice(["pad", "crop", "stretch", "model"]), default="pad",
    show_default=True, help="How pictures become square; model leaves it to the model's files.",
)  # fmt: skip
@click.option("--ocr/--no-ocr", default=True, help="OCR tokens in the prompt (TextVQA).")
@click.option("--all-rounds", is_flag=True, help="Ask with all rotations of the options (MMBench).")
@click.option("--format", "style", default="CQM-A", show_default=True, help="ScienceQA's prompt.")
@sampling_options
@model_options
def run(benchmark: str, **options: Any) -> None:
    """Answer a benchmark's questions with a model, then score the answers.

    LLaVA-1.5's protocol unless an option says otherwise: prompt format vicuna_v1 (--prompt-format
    model takes the model's own), pictures padded, LLaVA's suffixes, greedy. Everything that
    decides an answer is recorded beside the answers.
    """
    from llava_cli import evals
    from llava_cli.evals import plans
    from llava_cli.evals import run as running
    from llava_cli.terminal.documents import write_document

    name = evals.benchmark(benchmark).name
    shard = running.Shard.parse(options["shard"])
    plan = plans.plan(name, _asking(options))
    chosen = shard.cut(plan.tasks[: options["limit"]])
    if not chosen:
        raise click.UsageError("this shard holds no questions")
    out: Path = options["output"] or Path("eval") / name
    sampling = _sampling(name, options)
    journal = running.Journal(out / shard.file_name)
    if not options["resume"]:
        _start_anew(out)
    with closing(_engine(options)) as engine:
        protocol = _protocol(name, engine, plan, sampling, options)
        running.check_protocol(out / "protocol.json", protocol, options["resume"])
        failures = _answer(engine, chosen, journal, sampling, protocol)
    result, uploads = _finish(name, plan, out, protocol, partial=options["limit"] is not None)
    if common().json:
        write_document(
            {
                "benchmark": name,
                "output": str(out),
                "predictions": str(journal.path),
                "answered": len(journal.rows),
                "failures": [
                    {"question_id": f.task.question_id, "error": f.error} for f in failures
                ],
                "uploads": [str(path) for path in uploads],
                "score": result.document() if result else None,
            }
        )
    else:
        _show(journal, uploads, result)
    _report(failures)


def _asking(options: dict[str, Any]) -> Any:
    from llava_cli.evals.tasks import Asking

    names = ("data", "suffix", "questions", "split", "ocr", "all_rounds", "style")
    return Asking(**{name: options[name] for name in names})


def _sampling(name: str, options: dict[str, Any]) -> Sampling:
    """Greedy, and LLaVA's bound for this benchmark unless --max-tokens says one."""
    from llava_cli.evals import plans

    source = click.get_current_context().get_parameter_source("max_tokens")
    if source is click.core.ParameterSource.DEFAULT:
        options = {**options, "max_tokens": plans.max_tokens(name)}
    return sampling_from(options)


def _engine(options: dict[str, Any]) -> Engine:
    from llava_cli.cli import models

    form = options["prompt_format"] or "vicuna_v1"
    chosen = {**options, "prompt_format": None if form == "model" else form}
    return models.load(models.ModelChoice.from_options(chosen), common())


def _protocol(
    name: str, engine: Engine, plan: Plan, sampling: Sampling, options: dict[str, Any]
) -> Protocol:
    from dataclasses import asdict

    from llava_cli.evals import plans
    from llava_cli.evals.run import Protocol

    default = plans.SUFFIXES.get(name, "")
    return Protocol(
        benchmark=name,
        model=engine.files.reference,
        engine=engine.name,
        prompt_format=engine.prompt_format,
        image_mode=options["image_mode"],
        suffix=default if options["suffix"] is None else options["suffix"],
        system=options["system"],
        ocr=options["ocr"],
        style=options["style"],
        all_rounds=options["all_rounds"],
        questions=plan.digest(),
        sampling={**asdict(sampling), "stop": list(sampling.stop)},
    )


def _start_anew(out: Path) -> None:
    for path in sorted(out.glob("predictions*.jsonl")):
        path.unlink()


def _answer(
    engine: Engine, tasks: Any, journal: Journal, sampling: Sampling, protocol: Protocol
) -> list[Failure]:
    """Run to the end; the rows stand in the order of the tasks afterwards."""
    from llava_cli.evals import run as running

    journal.open()
    try:
        with _Progress(len(tasks), len(tasks) - len(journal.missing(tasks))) as step:
            failures = running.answer(engine, tasks, journal, sampling, protocol, step)
    finally:
        journal.close()
    journal.arrange(tasks)
    return failures


class _Progress:
    """A counter on a terminal's stderr; nothing on a pipe."""

    def __init__(self, total: int, done: int) -> None:
        import sys

        from llava_cli.terminal.streams import takes_escapes

        self._total, self._done = total, done
        self._shown = takes_escapes(sys.stderr) and not common().quiet and not common().json

    def __enter__(self) -> Any:
        return self._step

    def _step(self, count: int) -> None:
        import sys

        self._done += count
        if self._shown:
            sys.stderr.write(f"\r{self._done}/{self._total} ")
            sys.stderr.flush()

    def __exit__(self, *_: object) -> None:
        import sys

        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def _finish(
    name: str, plan: Plan, out: Path, protocol: Protocol, *, partial: bool
) -> tuple[Result | None, list[Path]]:
    """Score where there is gold; upload files where every question has its answer."""
    from llava_cli.evals import results, uploads
    from llava_cli.evals.rows import read_rows

    files = sorted(out.glob("predictions*.jsonl"))
    rows = [dict(row.data) for path in files for row in read_rows(path)]
    written = []
    if uploads.complete(rows, plan):
        written = uploads.write(name, rows, plan, out)
    elif not common().quiet:
        from llava_cli.terminal.streams import note

        note(f"{len(rows)} of {len(plan.tasks)} questions are answered: no upload file")
    if not plan.gold or not rows:
        return None, written
    left_out = partial or not uploads.complete(rows, plan)
    return results.score_run(name, plan, files, out, protocol, answered_only=left_out), written


def _show(journal: Journal, uploads: list[Path], result: Result | None) -> None:
    from llava_cli.cli.eval_score import show
    from llava_cli.terminal.streams import write

    write(f"{len(journal.rows)} answers in {journal.path}\n")
    for path in uploads:
        write(f"upload file: {path}\n")
    if result is not None:
        write("\n")
        show(result)


def _report(failures: list[Failure]) -> None:
    from llava_cli.errors import PartialFailure

    if failures:
        raise PartialFailure(
            f"{len(failures)} questions could not be asked: {failures[0].error}",
            "mend the pictures and run again: only these are asked",
        )
