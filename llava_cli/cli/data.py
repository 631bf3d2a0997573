"""`llava data`: make data for training and tests."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from llava_cli.cli.groups import Command, LazyGroup
from llava_cli.cli.options import common

_HERE = "llava_cli.cli"
_LAZY = {
    "generate": (
        f"{_HERE}.data_generate:generate",
        "Have a language model write instruction data from captions and boxes.",
    ),
    "curate": (f"{_HERE}.data_curate:curate", "Describe pictures, repair and filter the texts."),
    "validate": (f"{_HERE}.data_check:validate", "Say what is wrong with samples."),
    "stats": (f"{_HERE}.data_check:stats", "Count kinds, turns, lengths and words."),
    "preview": (f"{_HERE}.data_check:preview", "Show samples with their pictures."),
    "split": (f"{_HERE}.data_files:split", "Split samples into parts, by picture."),
    "mix": (f"{_HERE}.data_files:mix", "Mix samples of several files."),
    "convert": (f"{_HERE}.data_convert:convert", "Turn other data into LLaVA samples."),
    "filter": (f"{_HERE}.data_files:filter_captions", "Choose stage-1 captions as LLaVA did."),
    "pull": (f"{_HERE}.data_pull:pull", "Fetch LLaVA's published data."),
}


@click.group(
    "data",
    cls=LazyGroup,
    lazy=_LAZY,
    examples=(("llava data scenes -o scenes --n 1000 --seed 1", "1000 pictures and their data"),),
)
def data() -> None:
    """Make data for training and tests."""


@data.command(
    "scenes",
    cls=Command,
    examples=(
        ("llava data scenes -o scenes --n 1000 --seed 1", "pictures, captions, instructions"),
        ("llava data scenes -o big --n 50 --seed 2 --size 512 --format jpg", "larger JPEGs"),
        (
            "llava data scenes -o scenes --n 50 --also vqa --also scienceqa",
            "in other files, too",
        ),
    ),
)
@click.option(
    "-o",
    "--out",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder to write to.",
)
@click.option("--n", required=True, type=click.IntRange(min=1), help="How many pictures.")
@click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Which world."
)
@click.option("--size", type=click.IntRange(min=32, max=4096), help="Pixels of the longer side.")
@click.option(
    "--format",
    "image_format",
    type=click.Choice(["png", "jpg"]),
    default="png",
    show_default=True,
    help="Of the pictures.",
)
@click.option(
    "--also",
    multiple=True,
    type=click.Choice(["coco", "vqa", "pope", "scienceqa"]),
    help="Write the same world in the files of these data sets, too. Repeatable.",
)
@click.option("--workers", type=click.IntRange(min=1), help="Processes; changes nothing written.")
def scenes(
    out: Path,
    n: int,
    seed: int,
    size: int | None,
    image_format: Literal["png", "jpg"],
    also: tuple[str, ...],
    workers: int | None,
) -> None:
    """Draw pictures of coloured shapes and write what is in them as training data."""
    from llava_cli.terminal.documents import write_document
    from llava_cli.terminal.streams import note
    from llava_train.scene_files import write_scenes

    write_scenes(
        out,
        n=n,
        seed=seed,
        size=size,
        image_format=image_format,
        workers=workers or _workers(n),
        also=also,
    )
    if common().json:
        write_document({"out": str(out), "n": n, "seed": seed, "format": image_format})
    elif not common().quiet:
        note(f"{n} scenes written to {out}")


def _workers(n: int) -> int:
    """As many processes as pay for their start."""
    import os

    return min(os.cpu_count() or 1, 1 + n // 200)
