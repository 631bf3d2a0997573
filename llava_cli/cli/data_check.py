"""`llava data validate`, `stats`, `preview`: what there is to know about samples."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llava_cli.cli.groups import Command
from llava_cli.cli.options import common
from llava_cli.errors import DataError

if TYPE_CHECKING:
    from llava_train.samples.lengths import LengthOf
    from llava_train.samples.validate import Report

_DATA = click.Path(path_type=Path, exists=True)
_FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)
_EMPTY = ("the data holds no sample", "give LLaVA JSON, JSON Lines, parquet or webdataset")
_NEW = click.Path(path_type=Path, dir_okay=False)


def _length_options(command: Callable[..., None]) -> Callable[..., None]:
    declared = (
        click.option(
            "--tokenizer", metavar="DIR|FILE", help="Of the model to be trained: counts tokens."
        ),
        click.option("--prompt-format", default="vicuna_v1", show_default=True, metavar="NAME"),
        click.option(
            "--image-tokens", type=click.IntRange(min=1), default=576, show_default=True,
            help="Positions of one picture.",
        ),
    )  # fmt: skip
    for option in reversed(declared):
        command = option(command)
    return command


@click.command(
    "validate",
    cls=Command,
    examples=(
        ("llava data validate instruct.json --images pictures", "format, roles, pictures"),
        (
            "llava data validate instruct.json --tokenizer vicuna-7b --max-length 2048",
            "what training would cut, too",
        ),
    ),
)
@click.argument("data", nargs=-1, required=True, type=_DATA)
@click.option("--images", type=_FOLDER, help="Folder of the pictures: each is decoded.")
@click.option("--no-decode", is_flag=True, help="Only look whether they are there.")
@click.option(
    "--max-length", type=click.IntRange(min=1), default=2048, show_default=True,
    help="Tokens that training takes.",
)  # fmt: skip
@click.option("--workers", type=click.IntRange(1, 64), default=4, show_default=True)
@_length_options
def validate(data: tuple[Path, ...], images: Path | None, **given: Any) -> None:
    """Say what is wrong with samples; exit code 1 if there is anything that training minds."""
    from llava_cli.terminal.documents import write_document
    from llava_cli.terminal.streams import write
    from llava_train.samples import validate as checks

    report = checks.validate(
        data,
        images=images,
        decode=not given["no_decode"],
        length_of=_length(given),
        max_length=given["max_length"],
        workers=given["workers"],
    )
    if common().json:
        write_document(
            {
                "samples": report.samples,
                "bad_samples": report.bad,
                "errors": _of(report, checks.ERRORS),
                "warnings": _of(report, checks.WARNINGS),
                "examples": report.examples,
                "longest": report.longest,
            }
        )
    else:
        write(_table(report))
    if report.errors:
        raise DataError(
            f"{report.errors} fault{'s'[: report.errors > 1]} in {report.samples} samples",
            "correct or remove what is named above",
        )


def _of(report: Report, codes: dict[str, str]) -> dict[str, int]:
    return {code: report.counts[code] for code in codes if report.counts[code]}


def _table(report: Report) -> str:
    """What was found: a line a kind, its first places below."""
    from llava_cli.terminal.safe import one_line
    from llava_train.samples.validate import ERRORS, WARNINGS

    lines = [f"{report.samples} samples, {report.bad} with errors"]
    if report.longest is not None:
        lines[0] += f", the longest of {report.longest} tokens"
    for word, codes in (("error", ERRORS), ("warning", WARNINGS)):
        for code, meaning in codes.items():
            if report.counts[code]:
                lines.append(f"{word:8}{report.counts[code]:>9}  {code}: {meaning}")
                lines += [f"{'':19}{one_line(place)}" for place in report.examples[code]]
    return "\n".join(lines) + "\n"


@click.command(
    "stats",
    cls=Command,
    examples=(
        ("llava data stats instruct.json", "counts, and the questions' words"),
        ("llava data stats instruct.json --html stats.html", "one page with bars"),
    ),
)
@click.argument("data", nargs=-1, required=True, type=_DATA)
@click.option("--html", type=_NEW, help="Write a page.")
@click.option("--most", type=click.IntRange(1, 1000), default=20, show_default=True)
@_length_options
def stats(data: tuple[Path, ...], html: Path | None, most: int, **given: Any) -> None:
    """Count kinds, turns, lengths, and the verbs and nouns of the questions."""
    from llava_cli.terminal.documents import write_document
    from llava_cli.terminal.streams import note, write
    from llava_train.samples.files import whole
    from llava_train.samples.pages import stats_page
    from llava_train.samples.reading import rows, some
    from llava_train.samples.stats import count

    everything = some(chain.from_iterable(map(rows, data)), *_EMPTY)
    found = count(everything, _length(given))
    document = found.document(most)
    if html is not None:
        with whole(html) as file:
            file.write(stats_page(document, ", ".join(path.name for path in data)))
        if not common().quiet:
            note(f"written to {html}")
    if common().json:
        write_document(document)
    else:
        write(_stats_text(document))


def _stats_text(document: dict[str, Any]) -> str:
    """The same numbers for a terminal: plain ones, then the tables in a line each."""
    from llava_cli.terminal.safe import one_line

    lines = []
    for key, value in document.items():
        if isinstance(value, dict):
            value = "  ".join(f"{name} {n}" for name, n in value.items()) or "–"
        lines.append(f"{key.replace('_', ' '):22}{one_line(str(value))}")
    return "\n".join(lines) + "\n"


@click.command(
    "preview",
    cls=Command,
    examples=(
        ("llava data preview instruct.json --n 3", "in the terminal"),
        (
            "llava data preview instruct.json --images pictures --random --html preview.html",
            "20 of them, drawn by chance, on a page with their pictures",
        ),
    ),
)
@click.argument("data", nargs=-1, required=True, type=_DATA)
@click.option("--images", type=_FOLDER, help="Folder of the pictures.")
@click.option("--html", type=_NEW, help="Write a page.")
@click.option("--n", type=click.IntRange(1, 1000), default=20, show_default=True, help="How many.")
@click.option("--random", "by_chance", is_flag=True, help="Not the first ones.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
def preview(
    data: tuple[Path, ...], images: Path | None, html: Path | None, n: int, by_chance: bool,
    seed: int,
) -> None:  # fmt: skip
    """Show samples: in the terminal, or with their pictures on one HTML page."""
    from llava_cli.terminal.documents import write_json_line
    from llava_cli.terminal.streams import note, write
    from llava_train.samples.draws import reservoir
    from llava_train.samples.files import whole
    from llava_train.samples.pages import preview_page
    from llava_train.samples.reading import rows, some

    everything = some(chain.from_iterable(map(rows, data)), *_EMPTY)
    chosen = reservoir(everything, n, seed) if by_chance else list(islice(everything, n))
    if html is not None:
        with whole(html) as file:
            file.write(preview_page(chosen, images, ", ".join(path.name for path in data)))
        if not common().quiet:
            note(f"{len(chosen)} samples written to {html}")
    elif common().json:
        for row in chosen:
            write_json_line(row)
    else:
        write("\n".join(map(_sample_text, chosen)))


def _sample_text(row: Any) -> str:
    """A sample for a terminal: what it is, its turns, its faults."""
    from llava_cli.terminal.safe import one_line, visible
    from llava_train.samples.validate import faults

    if not isinstance(row, dict):
        return f"── {one_line(repr(row))[:200]}\n"
    names = [str(row[key]) for key in ("id", "kind", "image") if row.get(key) is not None]
    lines = [f"── {one_line(' · '.join(names))}"]
    turns = row.get("conversations")
    for turn in turns if isinstance(turns, list) else []:
        if isinstance(turn, dict):
            lines.append(f"{one_line(str(turn.get('from')))}: {visible(str(turn.get('value')))}")
    lines += [f"! {one_line(' '.join(filter(None, fault)))}" for fault in faults(row)]
    return "\n".join(lines) + "\n"


def _length(given: dict[str, Any]) -> LengthOf | None:
    from llava_train.samples.lengths import length_of

    if given["tokenizer"] is None:
        return None
    return length_of(given["tokenizer"], given["prompt_format"], given["image_tokens"])
