"""`llava eval score`: stored predictions to the published figure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llava_cli.cli.groups import Command
from llava_cli.cli.options import common

if TYPE_CHECKING:
    from llava_cli.evals.scoring import Inputs, Result

EXISTING = click.Path(exists=True, path_type=Path)
EXAMPLES = (
    ("llava eval score gqa --predictions merge.jsonl --annotations testdev.json", "LLaVA's rows"),
    ("llava eval score mme --predictions results/ --annotations MME/ --json", "folders, as JSON"),
    ("llava eval score scienceqa --predictions result.json --annotations problems.json"
     " --splits pid_splits.json", "nine columns"),
)  # fmt: skip


class _Many(Command):
    """`--annotations A B C` is `--annotations A --annotations B --annotations C`."""

    many = ("--predictions", "--annotations")

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, self._spread(args))

    def _spread(self, args: list[str]) -> list[str]:
        from llava_cli.evals import BENCHMARKS

        out: list[str] = []
        option: str | None = None
        values = 0
        for arg in args:
            if arg.startswith("-") and arg != "-":
                option, values = (arg if arg in self.many else None), 0
            elif option is not None:
                if values and arg in BENCHMARKS and not Path(arg).exists():
                    option = None
                elif values:
                    out.append(option)
                values += 1
            out.append(arg)
        return out


@click.command("score", cls=_Many, examples=EXAMPLES)
@click.argument("benchmark", metavar="BENCH")
@click.option(
    "--predictions", multiple=True, required=True, type=EXISTING, metavar="F|DIR...",
    help="LLaVA's answers, an upload file, or whatever the benchmark's own tools write.",
)  # fmt: skip
@click.option(
    "--annotations", multiple=True, type=EXISTING, metavar="F|DIR...",
    help="The organisers' files.",
)  # fmt: skip
@click.option("--questions", type=EXISTING, metavar="F", help="LLaVA's question file (POPE).")
@click.option("--splits", type=EXISTING, metavar="F", help="pid_splits.json (ScienceQA).")
@click.option("--split", default="test", show_default=True, help="Which split (ScienceQA).")
@click.option("--use-stored", is_flag=True, help="Score the stored results (ScienceQA).")
@click.option(
    "--join", type=click.Choice(["auto", "llava", "m4c"]), default="auto", show_default=True,
    help="How TextVQA's rows are matched: by picture and question, or by id.",
)  # fmt: skip
@click.option("--answered-only", is_flag=True, help="Leave items without a prediction out.")
@click.option(
    "--lenient", is_flag=True,
    help="Also read letters and yes or no leniently; shown beside the strict figures.",
)  # fmt: skip
@click.option("--details", type=click.Path(path_type=Path), metavar="F", help="A row an item.")
def score(benchmark: str, details: Path | None, **options: Any) -> None:
    """Score stored predictions of one benchmark; no model is needed, and no torch."""
    from llava_cli import evals
    from llava_cli.evals import details as detail_rows
    from llava_cli.evals import scoring
    from llava_cli.terminal.documents import write_document

    found = evals.benchmark(benchmark)
    inputs = _inputs(options)
    with detail_rows.writer(details) as sink:
        result = scoring.score(found.name, evals.scorer(found.name), inputs, sink)
    if common().json:
        write_document(result.document())
    else:
        show(result)


def _inputs(options: dict[str, Any]) -> Inputs:
    from llava_cli.evals.scoring import Inputs

    return Inputs(**options)


def show(result: Result) -> None:
    """One table for a person; remarks on stderr."""
    from llava_cli.evals import benchmark
    from llava_cli.evals.published import PUBLISHED
    from llava_cli.terminal.streams import note, write

    spec = benchmark(result.benchmark)
    compared = any(spec.name in numbers for numbers in PUBLISHED.values())
    width = max(len(name) for name in result.metrics)
    lines = [f"{spec.title}: {result.protocol['rule']}", ""]
    for name, value in result.metrics.items():
        mark = "  <- the published figure" if compared and name == spec.metric else ""
        lines.append(f"  {name:<{width}}  {value:10.2f}{mark}")
    counts = result.counts._asdict()
    lines += ["", "  " + ", ".join(f"{name} {count}" for name, count in counts.items())]
    write("\n".join(lines) + "\n")
    if not common().quiet:
        for text in result.protocol["warnings"]:
            note(f"warning: {text}")
