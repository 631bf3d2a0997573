"""`llava data split`, `mix`, `filter`: files of samples in, files of samples and a card out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from llava_cli.cli.groups import Command
from llava_cli.cli.options import common
from llava_cli.errors import UsageError

_DATA = click.Path(path_type=Path, exists=True)
_NEW = click.Path(path_type=Path)
_NEW_FOLDER = click.Path(path_type=Path, file_okay=False)
_SEED = click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)


@click.command(
    "split",
    cls=Command,
    examples=(("llava data split instruct.json --part train=0.9 --part val=0.1 -o parts", ""),),
)
@click.argument("data", type=_DATA)
@click.option(
    "--part", "parts", multiple=True, required=True, metavar="NAME=SHARE", help="Repeatable."
)
@click.option("-o", "--out", required=True, type=_NEW_FOLDER, help="Folder to write to.")
@click.option(
    "--format", "form", type=click.Choice(["json", "jsonl", "parquet"]), default="json",
    show_default=True,
)  # fmt: skip
@_SEED
def split(data: Path, parts: tuple[str, ...], out: Path, form: str, seed: int) -> None:
    """Split samples into parts; all samples of a picture go into the same one."""
    from llava_train.samples import mixing
    from llava_train.samples.card import source, write_card

    shares = mixing.parse_parts(parts)
    targets = {name: out / f"{name}.{form}" for name in shares}
    if data.resolve() in {target.resolve() for target in targets.values()}:
        raise UsageError(f"{data} would be replaced by a part of it", "name another folder")
    counts = mixing.split(data, targets, shares, seed)
    content = {"seed": seed, "source": source(data), "shares": shares, "samples": counts}
    write_card(out, "Samples split by picture", content, folder=True)
    report({"out": str(out), "samples": counts})


@click.command(
    "mix",
    cls=Command,
    examples=(
        ("llava data mix instruct.json vqa.json=50000 text.json=10% -o mix.json", "by numbers"),
        ("llava data mix instruct.json=2x vqa.json -o mix.parquet", "one of them twice"),
    ),
)
@click.argument("data", nargs=-1, required=True, metavar="FILE[=N|P%|Kx]…")
@click.option("-o", "--out", required=True, type=_NEW, help=".json, .jsonl or .parquet")
@click.option("--shuffle/--no-shuffle", default=True, show_default=True)
@_SEED
def mix(data: tuple[str, ...], out: Path, shuffle: bool, seed: int) -> None:
    """Mix samples of several files, each whole, in part, or several times."""
    from llava_train.samples import mixing
    from llava_train.samples.card import source, write_card
    from llava_train.samples.reading import some
    from llava_train.samples.writing import form_of, write_all

    ingredients = [mixing.parse_ingredient(text) for text in data]
    if form_of(out) == "webdataset":
        raise UsageError(f"{out} has no form", "end its name with .json, .jsonl or .parquet")
    if out.resolve() in {ingredient.path.resolve() for ingredient in ingredients}:
        raise UsageError(f"{out} is one of the files to be mixed", "name another file")
    counts: dict[str, int] = {}
    hint = "llava data validate says what is wrong with a file"
    rows = some(mixing.mixed(ingredients, seed, counts), "these files hold no samples", hint)
    total = write_all(out, mixing.shuffled(rows, seed) if shuffle else rows)
    sources = [source(ingredient.path) for ingredient in ingredients]
    content = {"seed": seed, "shuffled": shuffle, "source": sources, "taken": counts}
    write_card(out, "A mixture of samples", {**content, "samples": total})
    report({"out": str(out), "taken": counts, "samples": total})


@click.command(
    "filter",
    cls=Command,
    examples=(
        ("llava data filter Train_GCC-training.tsv -o stage1.json", "LLaVA's recipe for CC3M"),
        ("llava data filter captions.jsonl --size 100000 -o stage1.jsonl", "so many of them"),
    ),
)
@click.argument("data", type=_DATA)
@click.option("-o", "--out", required=True, type=_NEW, help=".json, .jsonl or .parquet")
@click.option(
    "--least",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Noun phrases in fewer captions are left out of account.",
)
@click.option(
    "--cap",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    help="Captions that one noun phrase brings, at most.",
)
@click.option("--size", type=click.IntRange(min=1), help="Draw so many from what remains.")
@click.option(
    "--tagger",
    default="simple",
    show_default=True,
    metavar="simple|spacy:MODEL",
    help="What finds noun phrases.",
)
@_SEED
def filter_captions(data: Path, out: Path, **given: Any) -> None:
    """Choose captions by their noun phrases, so that rare things stay and common ones thin out."""
    from llava_train.datagen import prompt_set
    from llava_train.samples.card import source, write_card
    from llava_train.samples.selecting import select

    requests = prompt_set.load().questions("brief.txt")
    found = select(
        data, out, least=given["least"], cap=given["cap"], size=given["size"],
        tagger=given["tagger"], seed=given["seed"], requests=requests,
    )  # fmt: skip
    content = {"seed": given["seed"], "source": source(data), "tagger": given["tagger"], **found}
    write_card(out, "Captions chosen by noun phrases", content)
    report({"out": str(out), **found})


def report(document: dict[str, Any]) -> None:
    """What was written: a document, or a note."""
    from llava_cli.terminal.documents import write_document
    from llava_cli.terminal.streams import note

    if common().json:
        write_document(document)
    elif not common().quiet:
        counts = document.get("samples")
        if isinstance(counts, dict):
            counts = ", ".join(f"{name} {n}" for name, n in counts.items())
        note(f"{counts} samples: {document['out']}")
