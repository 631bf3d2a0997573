"""`llava eval`: questions in, answers out, and the numbers that LLaVA reports."""

from __future__ import annotations

import click

from llava_cli.cli.groups import LazyGroup

COMMANDS = {
    "ls": ("llava_cli.cli.eval_ls:ls", "List the benchmarks, what each needs and from where."),
    "run": ("llava_cli.cli.eval_run:run", "Answer a benchmark's questions with a model."),
    "score": ("llava_cli.cli.eval_score:score", "Score stored predictions; needs no model."),
    "report": ("llava_cli.cli.eval_report:report", "Results beside published numbers."),
    "compare": ("llava_cli.cli.eval_report:compare", "Two results, item by item."),
    "ensemble": ("llava_cli.cli.eval_ensemble:ensemble", "ScienceQA with a second model."),
    "rate": ("llava_cli.cli.eval_rate:rate", "Have people grade answers, blind."),
    "judge": ("llava_cli.cli.eval_judge:judge", "Have answers judged by another model."),
}


@click.group(
    "eval",
    cls=LazyGroup,
    lazy=COMMANDS,
    examples=(
        ("llava eval ls", "what there is"),
        ("llava eval run gqa -m REF --data gqa/", "answer, then score"),
        ("llava eval score pope --predictions answers.jsonl --annotations pope/", "score"),
    ),
)
def evaluate() -> None:
    """Measure models as LLaVA's papers do, and score anybody's stored answers."""
