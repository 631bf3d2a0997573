"""`llava data curate`: options in, one call, a report out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from llava_cli.cli.data_generate import endpoint_options, request_options, sending_from
from llava_cli.cli.groups import Command
from llava_cli.cli.options import common, model_options
from llava_cli.errors import PartialFailure

_NEW = click.Path(path_type=Path, file_okay=False)
_FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)


@click.command(
    "curate",
    cls=Command,
    examples=(
        (
            "llava data curate pictures -m llava-hf/llava-1.5-7b-hf --llm MODEL -o curated",
            "describe, repair, filter",
        ),
        ("llava data curate pictures -o curated", "the bundled model, no repair"),
    ),
)
@click.argument("images", type=_FOLDER)
@click.option("-o", "--out", required=True, type=_NEW)
@click.option(
    "--continue-at",
    type=click.IntRange(min=0),
    default=80,
    show_default=True,
    help="Tokens up to which a description is continued.",
)
@click.option(
    "--describe-tokens",
    type=click.IntRange(min=1),
    default=300,
    show_default=True,
    help="Longest description, and longest continuation.",
)
@click.option("--min-words", type=click.IntRange(min=0), default=30, show_default=True)
@click.option("--max-words", type=click.IntRange(min=1), default=800, show_default=True)
@click.option("--prompts", type=_FOLDER, help="Your own texts in place of ours.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@model_options
@endpoint_options
def curate(images: Path, out: Path, **given: Any) -> None:
    """Describe pictures, have a language model repair the texts, filter, and list them to check."""
    from llava_cli.cli.models import ModelChoice, load
    from llava_train.datagen import answers, prompt_set
    from llava_train.datagen import curate as curation

    choice = ModelChoice.from_options(given)
    settings = curation.Settings(
        images=images,
        prompts=prompt_set.load(given["prompts"]),
        describer=choice.model or "bundled",
        llm=given["llm"],
        max_tokens=given["describe_tokens"],
        continue_at=given["continue_at"],
        repair_tokens=given["max_tokens"],
        options=request_options(given),
        seed=given["seed"],
        limits=answers.Limits({"detail": given["min_words"]}, given["max_words"]),
    )
    sending = sending_from(given) if given["llm"] is not None else None
    outcome = curation.curate(settings, lambda: load(choice, common()), sending, out)
    _report(outcome, out)


def _report(outcome: Any, out: Path) -> None:
    from llava_cli.terminal.documents import write_document
    from llava_cli.terminal.streams import note

    if outcome.sent.interrupted:
        raise KeyboardInterrupt
    rejected = sum(outcome.rejected.values())
    if common().json:
        write_document(
            {
                "out": str(out),
                "pictures": outcome.pictures,
                "described_now": outcome.described,
                "continued_now": outcome.continued,
                "written": outcome.written,
                "rejected": dict(outcome.rejected),
                "missing": outcome.missing,
            }
        )
    elif not common().quiet:
        counts = f"{outcome.written} descriptions, {rejected} rejected, {outcome.missing} missing"
        note(f"{counts}: {out}")
    if outcome.missing:
        raise PartialFailure(
            f"{outcome.missing} pictures have no description",
            "see the card; run the same command again to go on",
        )
