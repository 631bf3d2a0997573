"""`llava eval ensemble scienceqa`: a model's answers together with a second model's."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llava_cli.cli.groups import Command
from llava_cli.cli.options import common

if TYPE_CHECKING:
    from llava_cli.evals.ensemble import Choice
    from llava_cli.evals.scoring import Inputs

EXISTING = click.Path(exists=True, path_type=Path)
EXAMPLES = (
    ("llava eval ensemble scienceqa --mode complement --predictions a.jsonl --second gpt4.json"
     " --annotations problems.json --splits pid_splits.json -o out/", "from two files"),
    ("llava eval ensemble scienceqa --mode judge --predictions a.jsonl --url URL --judge-model M"
     " --annotations sqa/ -o out/", "the second model behind an endpoint"),
)  # fmt: skip


@click.command("ensemble", cls=Command, examples=EXAMPLES)
@click.argument("benchmark", metavar="BENCH", type=click.Choice(["scienceqa"]))
@click.option(
    "--mode", type=click.Choice(["complement", "judge"]), default="complement", show_default=True
)
@click.option("--predictions", required=True, type=EXISTING, metavar="F", help="The first's.")
@click.option("--second", type=EXISTING, metavar="F", help="The second model's answers.")
@click.option("--judge-replies", type=EXISTING, metavar="F", help="Its replies when asked again.")
@click.option("--annotations", required=True, multiple=True, type=EXISTING, metavar="F|DIR")
@click.option("--splits", type=EXISTING, metavar="F", help="pid_splits.json.")
@click.option("--split", default="test", show_default=True)
@click.option("--url", metavar="URL", help="The second model's endpoint, up to /v1.")
@click.option("--judge-model", metavar="NAME", help="Its name there.")
@click.option("--key-variable", default="OPENAI_API_KEY", show_default=True, metavar="NAME")
@click.option("--workers", type=click.IntRange(1, 64), default=4, show_default=True)
@click.option("--max-requests", type=click.IntRange(min=1), help="Stop after this many.")
@click.option(
    "-o", "--output", required=True, type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR", help="Where the ensemble's answers go.",
)  # fmt: skip
def ensemble(benchmark: str, **options: Any) -> None:
    """Combine two models' answers as the LLaVA paper does, and score the result.

    complement: the second's answer, the first's where the second gives none. judge: where they
    differ the second is asked again with both replies; the first's answer where that names none.
    """
    from llava_cli.evals import ensemble as combining
    from llava_cli.evals import scienceqa
    from llava_cli.evals.scoring import Inputs

    if (options["url"] is None) != (options["judge_model"] is None):
        raise click.UsageError("--url and --judge-model go together")
    combining.check_sources(
        options["mode"], options["second"], options["judge_replies"], options["url"]
    )
    out: Path = options["output"]
    inputs = Inputs(
        (out / "predictions.jsonl",), options["annotations"], splits=options["splits"],
        split=options["split"],
    )  # fmt: skip
    problems = scienceqa.problems(inputs)
    first = combining.texts([options["predictions"]])
    choices, failures = _choices(problems, first, options)
    _finish(choices, failures, inputs, out, options["mode"])


def _choices(problems: Any, first: Any, options: dict[str, Any]) -> tuple[list[Choice], list[str]]:
    from llava_cli.evals import ensemble as combining

    out: Path = options["output"]
    failures: list[str] = []

    def asked(chosen: Any, messages: Any, name: str) -> Any:
        from llava_cli.evals.judge import Endpoint, Judge

        endpoint = Endpoint(
            options["url"], options["judge_model"], options["key_variable"],
            max_requests=options["max_requests"],
        )  # fmt: skip
        endpoint.check(common().offline)
        with closing(Judge(endpoint)) as judge:
            replies, outcome = combining.ask(
                chosen, messages, judge, out / name, options["workers"]
            )
        failures.extend(outcome.failures + ["not asked: the budget is spent"] * outcome.left)
        return replies

    if options["second"] is not None:
        second = combining.texts([options["second"]])
    else:
        second = asked(problems, combining.second_messages, "journal/second.jsonl")
    if options["mode"] == "complement":
        return list(combining.complement(problems, first, second)), failures
    if options["judge_replies"] is not None:
        again = combining.texts([options["judge_replies"]])
    else:
        again = asked(
            combining.differing(problems, first, second),
            lambda p: combining.judge_messages(p, first.get(p.key), second.get(p.key)),
            "journal/judge.jsonl",
        )
    return list(combining.judged(problems, first, second, again)), failures


def _finish(
    choices: list[Choice], failures: list[str], inputs: Inputs, out: Path, mode: str
) -> None:
    import json
    from collections import Counter
    from dataclasses import replace

    from llava_cli.cli.eval_score import show
    from llava_cli.errors import PartialFailure
    from llava_cli.evals import details, results, scorer
    from llava_cli.evals.scoring import score
    from llava_cli.evals.uploads import put
    from llava_cli.terminal.documents import write_document

    rows = [choice.row() for choice in choices if choice.text is not None]
    put(inputs.predictions[0], "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
    with details.writer(out / "items.jsonl") as sink:
        result = score("scienceqa", scorer("scienceqa"), inputs, sink)
    sources = dict(Counter(choice.source for choice in choices))
    protocol = {**result.protocol, "ensemble": mode, "sources": sources}
    result = replace(result, protocol=protocol)
    results.save(result.document(), out / "score.json")
    if common().json:
        write_document(result.document())
    else:
        show(result)
    if failures:
        raise PartialFailure(
            f"{len(failures)} problems got no reply: {failures[0]}",
            "run again: only these are asked",
        )
