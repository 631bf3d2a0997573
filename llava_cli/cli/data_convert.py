"""`llava data convert`: other people's data, and other forms of files, into LLaVA samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from llava_cli.cli.data_files import report
from llava_cli.cli.groups import Command
from llava_cli.errors import DataError, UsageError

_DATA = click.Path(path_type=Path, exists=True)
_NEW = click.Path(path_type=Path)


@click.command(
    "convert",
    cls=Command,
    examples=(
        (
            "llava data convert scienceqa problems.json --splits pid_splits.json --split train "
            "--format QCM-LEPA -o train.json",
            "lecture and solution before the answer",
        ),
        ("llava data convert coco captions_train2014.json -o stage1.json", "a sample a caption"),
        ("llava data convert vqa questions.json --annotations annotations.json -o vqa.json", ""),
        ("llava data convert sharegpt sg.json -o text.json", "text only"),
        ("llava data convert llava instruct.json -o instruct.parquet", "another form of file"),
        (
            "llava data convert llava instruct.json --images pictures -o shards",
            "webdataset, with the pictures",
        ),
    ),
)
@click.argument("kind", type=click.Choice(["scienceqa", "coco", "vqa", "sharegpt", "llava"]))
@click.argument("data", type=_DATA)
@click.option(
    "-o",
    "--out",
    required=True,
    type=_NEW,
    help="NAME.json, .jsonl or .parquet; without a suffix a folder of webdataset shards.",
)
@click.option(
    "--image-prefix", default="", metavar="DIR/", help="Goes in front of every picture's name."
)
@click.option("--images", type=_DATA, help="Pictures to be put into webdataset shards.")
@click.option("--splits", type=_DATA, help="scienceqa: pid_splits.json.")
@click.option("--split", default="all", show_default=True, help="scienceqa: which part.")
@click.option(
    "--format",
    "order",
    default="QCM-LEPA",
    show_default=True,
    help="scienceqa: what is asked and what is answered, in which order.",
)
@click.option("--annotations", type=_DATA, help="vqa: the answers.")
@click.option(
    "--image-name",
    default="COCO_train2014_{image_id:012d}.jpg",
    show_default=True,
    help="vqa: a picture's name from its number.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
def convert(kind: str, data: Path, out: Path, **given: Any) -> None:
    """Turn ScienceQA, COCO, VQA and ShareGPT into LLaVA samples, and samples into other files."""
    from llava_train.samples.card import source, write_card
    from llava_train.samples.writing import write_all

    if out.exists() and out.resolve() == data.resolve():
        raise UsageError(f"{out} is what is to be read", "name another file")
    left_out: Counter[str] = Counter()
    rows = _some(_samples(kind, data, given, left_out), f"{data} gives no {kind} sample", left_out)
    total = write_all(out, rows, given["images"])
    content: dict[str, Any] = {"source": source(data), "kind": kind, "seed": given["seed"]}
    if kind == "scienceqa":
        content |= {"format": given["order"], "split": given["split"]}
    write_card(out, f"Samples from {kind}", {**content, "samples": total, "left_out": left_out})
    report({"out": str(out), "samples": total, "left_out": dict(left_out)})


def _some(
    rows: Iterator[dict[str, Any]], message: str, left_out: Counter[str]
) -> Iterator[dict[str, Any]]:
    """The rows; an error if there are none, raised before a file appears."""
    count = 0
    for row in rows:
        count += 1
        yield row
    if not count:
        reasons = ", ".join(f"{n} × {why}" for why, n in left_out.items()) or "it is empty"
        raise DataError(f"{message}: {reasons}", "check kind and file")


def _samples(
    kind: str, data: Path, given: dict[str, Any], left_out: Counter[str]
) -> Iterator[dict[str, Any]]:
    from llava_train.datagen import prompt_set
    from llava_train.samples import converting, reading, scienceqa

    prefix = f"{given['image_prefix'].rstrip('/')}/" if given["image_prefix"] else ""
    if kind == "scienceqa":
        form = scienceqa.parse_format(given["order"])
        return scienceqa.samples(data, given["splits"], given["split"], form, prefix, left_out)
    if kind == "coco":
        requests = prompt_set.load().questions("brief.txt")
        return converting.coco(data, prefix, requests, given["seed"], left_out)
    if kind == "vqa":
        if given["annotations"] is None:
            raise UsageError("--annotations is missing", "VQA's answers are in a file of their own")
        name = f"{prefix}{given['image_name']}"
        return converting.vqa(data, given["annotations"], name, left_out)
    if kind == "sharegpt":
        return converting.sharegpt(data, left_out)
    return reading.samples(data)
