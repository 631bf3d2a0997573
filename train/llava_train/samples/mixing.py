"""Splitting a data set into parts, and mixing several into one; rows are never held in memory.

A split keeps all samples of a picture in one part, so that nothing that is tested was trained on.
"""

from __future__ import annotations

import random
import re
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from llava_cli.errors import UsageError
from llava_train.samples.draws import fraction
from llava_train.samples.noun_filter import sampled
from llava_train.samples.reading import Row, samples, some
from llava_train.samples.writing import form_of, line, writer

_PART = re.compile(r"([A-Za-z0-9][\w.-]*)=([0-9.]+)")
_SHARE = re.compile(r"(.+?)(?:=(\d+(?:\.\d+)?%|\d+(?:\.\d+)?x|\d+))?")


def parse_parts(texts: Sequence[str]) -> dict[str, float]:
    """`train=0.9 val=0.1` as shares that add up to 1."""
    found: dict[str, float] = {}
    for text in texts:
        match = _PART.fullmatch(text)
        try:
            share = float(match[2]) if match else 0.0
        except ValueError:
            share = 0.0
        if match is None or share <= 0 or match[1] in found:
            raise UsageError(f"{text!r} is no part", "write NAME=SHARE, for example train=0.9")
        found[match[1]] = share
    total = sum(found.values())
    return {name: share / total for name, share in found.items()}


def part_of(sample: Row, parts: dict[str, float], seed: int) -> str:
    """The part of a sample, by its picture; by its id where it has none."""
    image = sample.get("image")
    name = f"id {sample.get('id')}" if image is None else f"image {image}"
    place = fraction(seed, name, "split")
    for part, share in parts.items():
        place -= share
        if place < 0:
            return part
    return next(reversed(parts))  # the shares' sum fell short of 1 by a rounding


def split(path: Path, targets: dict[str, Path], shares: dict[str, float], seed: int) -> Row:
    """One file into several, of the form that each name says; how many samples went where."""
    counts = dict.fromkeys(targets, 0)
    with ExitStack() as stack:
        writers = {
            name: stack.enter_context(writer(target, form_of(target)))
            for name, target in targets.items()
        }
        hint = "llava data validate says what is wrong with it"
        for sample in some(samples(path), f"{path} holds no samples", hint):
            part = part_of(sample, shares, seed)
            writers[part].add(sample)
            counts[part] += 1
    return counts


@dataclass(frozen=True)
class Ingredient:
    """A file and how much of it goes into a mixture."""

    path: Path
    number: int | None = None
    """So many samples, each at most once."""
    times: float | None = None
    """So often: 2.0 is every sample twice, 0.5 every second one by chance."""

    def wanted(self, available: int) -> tuple[int, int]:
        """(how often every sample is taken, how many are taken once more)."""
        if self.number is not None:
            if self.number > available:
                raise UsageError(
                    f"{self.path} has {available} samples, not {self.number}",
                    "ask for fewer, or repeat it with =2x",
                )
            return 0, self.number
        total = round(available * (1.0 if self.times is None else self.times))
        return divmod(total, available) if available else (0, 0)


def parse_ingredient(text: str) -> Ingredient:
    """`FILE`, `FILE=1000`, `FILE=25%` or `FILE=2x`."""
    if Path(text).exists():
        return Ingredient(Path(text))
    match = _SHARE.fullmatch(text)
    path, amount = (Path(match[1]), match[2]) if match else (Path(text), None)
    if not path.exists():
        raise UsageError(f"{path} is not there", "write FILE, FILE=1000, FILE=25% or FILE=2x")
    if amount is None:
        return Ingredient(path)
    if amount.endswith("%"):
        return Ingredient(path, times=float(amount[:-1]) / 100)
    if amount.endswith("x"):
        return Ingredient(path, times=float(amount[:-1]))
    return Ingredient(path, number=int(amount))


def mixed(ingredients: Sequence[Ingredient], seed: int, counts: dict[str, int]) -> Iterator[Row]:
    """The samples of all ingredients; `counts` says afterwards how many came from each."""
    for position, ingredient in enumerate(ingredients):
        available = sum(1 for _ in samples(ingredient.path))
        often, more = ingredient.wanted(available)
        taken = 0
        for _ in range(often):
            for row in samples(ingredient.path):
                taken += 1
                yield row
        for row in sampled(samples(ingredient.path), available, more, seed + position):
            taken += 1
            yield row
        counts[str(ingredient.path)] = counts.get(str(ingredient.path), 0) + taken


def shuffled(rows: Iterable[Row], seed: int) -> Iterator[Row]:
    """The rows in an order of chance, by way of a temporary file."""
    import json

    draw = random.Random(f"{seed}/shuffle")
    base = sqlite3.connect("", isolation_level=None)
    try:
        base.execute("PRAGMA journal_mode = OFF")
        base.execute("PRAGMA cache_size = -32768")
        base.execute("CREATE TABLE rows (place INT, text TEXT)")
        base.execute("BEGIN")
        values = ((draw.getrandbits(62), line(row)) for row in rows)
        base.executemany("INSERT INTO rows VALUES (?, ?)", values)
        base.execute("COMMIT")
        base.execute("CREATE INDEX by_place ON rows (place)")
        for (text,) in base.execute("SELECT text FROM rows ORDER BY place, rowid"):
            yield json.loads(text)
    finally:
        base.close()
