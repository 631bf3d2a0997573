"""`llava data generate`: options in, one call, a report out."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llava_cli.cli.groups import Command
from llava_cli.cli.options import common
from llava_cli.errors import PartialFailure, UsageError

if TYPE_CHECKING:
    from llava_train.datagen.generating import Generation, Outcome, Sending, Settings
    from llava_train.datagen.prices import Price
    from llava_train.datagen.sending import Sent

_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
_FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)
_NEW = click.Path(path_type=Path, file_okay=False)
KINDS = ("conversation", "detail", "reasoning")


def endpoint_options(command: Callable[..., None]) -> Callable[..., None]:
    """Which language model is asked, how fast, and for how much."""
    declared = (
        click.option("--llm", metavar="MODEL", help="The model's name at the endpoint."),
        click.option("--base-url", metavar="URL", help="An OpenAI-compatible endpoint (…/v1)."),
        click.option(
            "--api-key-env",
            metavar="NAME",
            default="OPENAI_API_KEY",
            show_default=True,
            help="The variable that holds the API key.",
        ),
        click.option("--temperature", type=click.FloatRange(0, 2), help="Default: the endpoint's."),
        click.option("--top-p", type=click.FloatRange(0, 1, min_open=True)),
        click.option(
            "--max-tokens", type=click.IntRange(min=1), default=1024, show_default=True,
            help="Longest answer.",
        ),
        click.option(
            "--token-limit-name",
            type=click.Choice(["max_tokens", "max_completion_tokens"]),
            default="max_tokens",
            show_default=True,
            help="What the endpoint calls that limit.",
        ),
        click.option(
            "--concurrency", type=click.IntRange(1, 1000), default=8, show_default=True,
            help="Requests in flight.",
        ),
        click.option("--requests-per-minute", type=click.FloatRange(0, min_open=True)),
        click.option("--tokens-per-minute", type=click.FloatRange(0, min_open=True)),
        click.option(
            "--attempts", type=click.IntRange(1, 100), default=6, show_default=True,
            help="For one request; waiting for a rate limit is not counted.",
        ),
        click.option(
            "--first-pause", type=click.FloatRange(0), default=1.0, show_default=True,
            help="Seconds after a failure; doubles, unless the endpoint names a pause.",
        ),
        click.option(
            "--timeout", type=click.FloatRange(0, min_open=True), default=600.0, show_default=True,
            help="Seconds for one answer.",
        ),
        click.option("--prices", type=_FILE, help="TOML: money for a million tokens, by model."),
        click.option(
            "--budget", type=click.FloatRange(0), metavar="MONEY",
            help="Spend no more, over all runs into this output.",
        ),
        click.option("--budget-tokens", type=click.IntRange(0), metavar="N", help="The same."),
    )  # fmt: skip
    for option in reversed(declared):
        command = option(command)
    return command


def _data_options(command: Callable[..., None]) -> Callable[..., None]:
    declared = (
        click.option("--captions", type=_FILE, help="COCO captions."),
        click.option("--instances", type=_FILE, help="COCO boxes; default: those in --captions."),
        click.option("--images", type=_FOLDER, help="Leave out what is not there."),
        click.option(
            "--image-prefix", default="", metavar="DIR/",
            help="Goes in front of every picture's name in the samples.",
        ),
        click.option(
            "--kind", type=click.Choice([*KINDS, "all"]), default="all", show_default=True,
            help="What is made.",
        ),
        click.option(
            "--mix", default="58:23:77", show_default=True, metavar="C:D:R",
            help="Shares of conversation, detail and reasoning.",
        ),
        click.option(
            "--samples", type=click.IntRange(min=1), metavar="N",
            help="How many; default: as many as the pictures give.",
        ),
        click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True),
        click.option(
            "--crowds", type=click.Choice(["skip", "keep"]), default="skip", show_default=True,
            help="Boxes around crowds (iscrowd).",
        ),
        click.option("--prompts", type=_FOLDER, help="Your own texts in place of ours."),
        click.option(
            "--few-shot", type=click.IntRange(min=0), metavar="N",
            help="Worked examples in a request, at most; default: all (2, 3 and 3 of ours).",
        ),
        click.option(
            "--write-prompts", type=_NEW, metavar="DIR", help="Write our texts out, and stop."
        ),
        click.option("--min-words", type=click.IntRange(min=0), help="Of all a sample's answers."),
        click.option("--max-words", type=click.IntRange(min=1), help="Of one answer."),
        click.option(
            "--format", "forms", multiple=True, default=("json", "jsonl"), show_default=True,
            type=click.Choice(["json", "jsonl", "parquet", "webdataset"]), help="Repeatable.",
        ),
        click.option("-o", "--out", type=_NEW, help="Folder to write to, and to continue from."),
        click.option("--estimate-cost", is_flag=True, help="Say what it would cost, and stop."),
    )  # fmt: skip
    for option in reversed(declared):
        command = option(command)
    return command


@click.command(
    "generate",
    cls=Command,
    examples=(
        (
            "llava data generate --captions captions.json --instances instances.json "
            "--llm MODEL -o instruct --estimate-cost",
            "what it would cost",
        ),
        (
            "llava data generate --captions captions.json --instances instances.json "
            "--llm MODEL --prices prices.toml --budget 50 -o instruct",
            "LLaVA's three kinds, 58:23:77",
        ),
        (
            "llava data generate … --base-url http://127.0.0.1:8080/v1 --kind detail -o detail",
            "a local server, one kind",
        ),
    ),
)
@_data_options
@endpoint_options
def generate(**given: Any) -> None:
    """Have a language model write instruction data from captions and boxes."""
    from llava_cli.terminal.streams import note
    from llava_train.datagen.generating import Generation
    from llava_train.datagen.generating import generate as run
    from llava_train.datagen.prompt_set import write_out

    if given["write_prompts"] is not None:
        count = write_out(given["write_prompts"])
        if not common().quiet:
            note(f"{count} texts written to {given['write_prompts']}")
        return
    for name in ("captions", "llm"):
        if given[name] is None:
            raise UsageError(f"--{name} is missing", "see llava data generate --help")
    settings, price = _settings(given), _price(given)
    if given["estimate_cost"]:
        generation = Generation(settings)
        try:
            _report_estimate(generation, price)
        finally:
            generation.close()
        return
    if given["out"] is None:
        raise UsageError("-o/--out is missing", "name a folder to write to")
    if given["out"].suffix.lower() in (".json", ".jsonl", ".parquet", ".tar"):
        raise UsageError("-o/--out is a folder", "choose the form of its files with --format")
    outcome = run(settings, sending_from(given, price), given["out"])
    _report(outcome, given["out"])


def api_key(given: dict[str, Any]) -> str:
    """The key from the person's environment; a local server needs none."""
    key = os.environ.get(given["api_key_env"], "").strip()
    if not (key.isascii() and key.isprintable()):
        raise UsageError(
            f"the variable {given['api_key_env']} holds no API key", "copy the key again"
        )
    if not key and given["base_url"] is None:
        raise UsageError(
            f"the variable {given['api_key_env']} is not set",
            "put the API key there, or name an endpoint that needs none with --base-url",
        )
    if given["base_url"] is not None and not re.match(r"https?://[^/\s]", given["base_url"]):
        raise UsageError(
            f"--base-url {given['base_url']!r} is no address",
            "write http://HOST:PORT/v1, or https://…",
        )
    if common().offline and not _is_local(given["base_url"]):
        raise UsageError("--offline, and the language model is elsewhere", "leave one of them out")
    return key or "none"


def request_options(given: dict[str, Any]) -> dict[str, Any]:
    """What a request holds beside model and messages; what a person does not say is left out."""
    options = {
        given["token_limit_name"]: given["max_tokens"],
        "temperature": given["temperature"],
        "top_p": given["top_p"],
    }
    return {name: value for name, value in options.items() if value is not None}


def _is_local(url: str | None) -> bool:
    from urllib.parse import urlsplit

    return url is not None and urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")


def _price(given: dict[str, Any]) -> Price | None:
    from llava_train.datagen.prices import Budget, read_price

    price = read_price(given["prices"], given["llm"])
    Budget(given["budget"], given["budget_tokens"], price)  # refused now rather than later
    return price


def _settings(given: dict[str, Any]) -> Settings:
    from llava_train.datagen import answers, prompt_set
    from llava_train.datagen.generating import Settings
    from llava_train.datagen.plan import parse_mix

    least = given["min_words"]
    prefix = given["image_prefix"]
    prompts = prompt_set.load(given["prompts"])
    return Settings(
        captions=given["captions"],
        instances=given["instances"],
        images=given["images"],
        image_prefix=f"{prefix.rstrip('/')}/" if prefix else "",
        kinds=KINDS if given["kind"] == "all" else (given["kind"],),
        mix=parse_mix(given["mix"]),
        samples=given["samples"],
        seed=given["seed"],
        crowds=given["crowds"],
        prompts=prompts if given["few_shot"] is None else prompts.shortened(given["few_shot"]),
        model=given["llm"],
        max_tokens=given["max_tokens"],
        options=request_options(given),
        limits=answers.Limits(
            min_words=answers.MIN_WORDS if least is None else dict.fromkeys(KINDS, least),
            max_words=given["max_words"] or answers.MAX_WORDS,
        ),
        forms=tuple(dict.fromkeys(given["forms"])),
    )


def sending_from(given: dict[str, Any], price: Price | None = None) -> Sending:
    """How requests are sent, from the options of `endpoint_options`."""
    from llava_train.datagen.generating import Sending
    from llava_train.datagen.pacing import Pace

    price = price or _price(given)
    return Sending(
        base_url=given["base_url"],
        api_key=api_key(given),
        timeout_s=given["timeout"],
        concurrency=given["concurrency"],
        attempts=given["attempts"],
        pace=Pace(given["requests_per_minute"], given["tokens_per_minute"], given["first_pause"]),
        price=price,
        budget_money=given["budget"],
        budget_tokens=given["budget_tokens"],
        progress=show_progress(),
    )


def show_progress() -> Callable[[Sent], None]:
    """A line on stderr that moves, where a person looks at it."""
    from llava_cli.terminal.streams import takes_escapes

    wanted = not common().quiet and not common().json and takes_escapes(sys.stderr)

    def show(sent: Sent) -> None:
        if wanted:
            sys.stderr.write(f"\r\x1b[K{sent.answered} answered, {sent.failed} failed")
            sys.stderr.flush()

    return show


def _report_estimate(generation: Generation, price: Price | None) -> None:
    from dataclasses import asdict

    from llava_cli.terminal.documents import write_document
    from llava_cli.terminal.streams import write

    found = generation.estimate(price)
    if common().json:
        document = {"pictures": generation.count, "samples": generation.planned, **asdict(found)}
        write_document(document)
        return
    write(
        f"pictures           {generation.count}\n"
        f"requests           {found.requests}\n"
        f"prompt tokens      about {found.prompt_tokens}\n"
        f"answer tokens      about {found.completion_tokens}"
        f", at most {found.most_completion_tokens}\n"
    )
    if found.cost is not None:
        write(f"cost               about {found.cost:.2f}, at most {found.most_cost:.2f}\n")
    else:
        write("cost               unknown: give --prices\n")


def _report(outcome: Outcome, out: Path) -> None:
    """What was written, and how the command ends."""
    from llava_cli.terminal.documents import write_document
    from llava_cli.terminal.streams import note

    if outcome.sent.interrupted:
        if not common().quiet:
            note("stopped; the same command goes on from here")
        raise KeyboardInterrupt
    written, rejected = sum(outcome.written.values()), sum(outcome.rejected.values())
    if common().json:
        write_document(
            {
                "out": str(out),
                "files": {form: str(path) for form, path in outcome.files.items()},
                "planned": outcome.planned,
                "written": dict(outcome.written),
                "rejected": dict(outcome.rejected),
                "missing": outcome.missing,
                "answered_now": outcome.sent.answered,
                "spent": outcome.spent,
            }
        )
    elif not common().quiet:
        note(f"{written} samples, {rejected} rejected, {outcome.missing} missing: {out}")
    if outcome.missing:
        raise PartialFailure(*_why_missing(outcome))


def _why_missing(outcome: Outcome) -> tuple[str, str]:
    """(what is missing and why, what to do about it)."""
    from llava_train.datagen.sending import SHORTER

    planned, sent = sum(outcome.planned.values()), outcome.sent
    lead = f"{outcome.missing} of {planned} samples have no answer:"
    if sent.over_budget:
        return f"{lead} the budget is spent", "the same command with a larger budget goes on"
    if sent.too_long == outcome.missing:
        return f"{lead} their requests are too long for the language model", SHORTER
    return f"{lead} see missing.jsonl", "run the same command again to go on"
