"""`llava eval judge`: LLaVA-Bench and MM-Vet with a judge behind an OpenAI-compatible endpoint."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llava_cli.cli.groups import Command
from llava_cli.cli.options import common

if TYPE_CHECKING:
    from llava_cli.evals.judge import Judge
    from llava_cli.evals.judge_runs import Settings
    from llava_cli.evals.judging import Outcome

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
EXAMPLES = (
    ("llava eval judge llava-bench --predictions a.jsonl --data wild/ --url http://127.0.0.1:8080/v1"
     " --judge-model NAME -o judged/", "three runs, then the relative score"),
    ("llava eval judge mm-vet --predictions a.jsonl --data mm-vet/ --judge-model gpt-4-0613"
     " -o judged/", "grades in the organisers' form"),
)  # fmt: skip


@click.command("judge", cls=Command, examples=EXAMPLES)
@click.argument("benchmark", metavar="BENCH", type=click.Choice(["llava-bench", "mm-vet"]))
@click.option("--predictions", required=True, type=FILE, metavar="F", help="The answers.")
@click.option("--data", required=True, type=FOLDER, metavar="DIR", help="The organisers' files.")
@click.option(
    "-o", "--output", required=True, type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR", help="Where reviews or grades go.",
)  # fmt: skip
@click.option(
    "--url", envvar="OPENAI_BASE_URL", default="https://api.openai.com/v1", show_default=True,
    help="The endpoint, up to /v1.",
)  # fmt: skip
@click.option("--judge-model", required=True, metavar="NAME", help="The judge.")
@click.option(
    "--key-variable", default="OPENAI_API_KEY", show_default=True, metavar="NAME",
    help="The environment variable that holds the endpoint's key.",
)  # fmt: skip
@click.option("--references", type=FILE, metavar="F", help="Reference answers (LLaVA-Bench).")
@click.option("--make-references", is_flag=True, help="Let the judge write references first.")
@click.option("--rule", type=FILE, metavar="F", help="Wording: a rule file, or MM-Vet's table.")
@click.option(
    "--runs", type=click.IntRange(1, 100), default=3, show_default=True,
    help="How often each answer is judged.",
)  # fmt: skip
@click.option("--swap", is_flag=True, help="Judge in both orders, to measure the place's weight.")
@click.option("--temperature", type=click.FloatRange(0, 2), help="0.2, as published (LLaVA-Bench).")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Longest reply.")
@click.option(
    "--workers",
    type=click.IntRange(1, 64),
    default=4,
    show_default=True,
    help="Requests under way together.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0.1),
    default=120.0,
    show_default=True,
    help="Seconds to wait for one reply.",
)
@click.option(
    "--retries", type=click.IntRange(0, 50), default=5, show_default=True,
    help="After rate limits, time-outs and server errors.",
)  # fmt: skip
@click.option("--max-requests", type=click.IntRange(min=1), help="Stop after this many.")
@click.option("--max-total-tokens", type=click.IntRange(min=1), help="Stop after this many.")
@click.option("--retry-failed", is_flag=True, help="Ask again where the reply could not be read.")
def judge(benchmark: str, **options: Any) -> None:
    """Have stored answers judged; go on where a run stopped.

    Every reply is on the disk before the next one is waited for. Replies that cannot be read are
    asked for again, then counted, never averaged in.
    """
    from llava_cli.evals import judge_runs
    from llava_cli.evals.judge import Judge

    settings = _settings(options)
    settings.endpoint.check(common().offline)
    work = judge_runs.llava_bench if benchmark == "llava-bench" else judge_runs.mm_vet
    prepared = work(settings)
    with closing(Judge(settings.endpoint)) as asked:
        outcome = prepared(asked)
    _print(benchmark, settings, outcome, asked)


def _settings(options: dict[str, Any]) -> Settings:
    from llava_cli.evals.judge import Endpoint
    from llava_cli.evals.judge_runs import Settings

    endpoint = Endpoint(
        url=options["url"],
        model=options["judge_model"],
        key_variable=options["key_variable"],
        timeout_s=options["timeout"],
        retries=options["retries"],
        max_requests=options["max_requests"],
        max_total_tokens=options["max_total_tokens"],
    )
    names = (
        "predictions", "data", "output", "references", "make_references", "rule", "runs", "swap",
        "temperature", "max_tokens", "workers", "retry_failed",
    )  # fmt: skip
    return Settings(endpoint, **{name: options[name] for name in names})


def _print(benchmark: str, settings: Settings, outcome: Outcome, judge: Judge) -> None:
    from llava_cli.cli.eval_score import show
    from llava_cli.errors import PartialFailure
    from llava_cli.evals import judge_runs
    from llava_cli.terminal.documents import write_document

    result = judge_runs.result(benchmark, settings)
    work = {
        "done": outcome.done,
        "kept": outcome.kept,
        "left": outcome.left,
        "failures": outcome.failures,
        "requests": judge.requests,
        "tokens": judge.tokens,
    }
    if common().json:
        score = result.document() if result else None
        write_document({"output": str(settings.output), "judged": work, "score": score})
    elif result is not None:
        show(result)
    if outcome.failures:
        raise PartialFailure(
            f"{len(outcome.failures)} items got no reply: {outcome.failures[0]}",
            "run again: only these are asked",
        )
    if outcome.left:
        raise PartialFailure(
            f"the budget is spent, {outcome.left} items are left",
            "run again with more, or later: what is judged is kept",
        )
