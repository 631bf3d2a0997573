"""Chance that hangs on a seed and a name alone, so that neighbours and order do not matter."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable
from typing import TypeVar

Row = TypeVar("Row")


def draw(seed: int, name: str, purpose: str, choices: int) -> int:
    """A number below `choices`."""
    return _number(seed, name, purpose) % choices


def fraction(seed: int, name: str, purpose: str) -> float:
    """A number in [0, 1)."""
    return _number(seed, name, purpose) / 2**64


def _number(seed: int, name: str, purpose: str) -> int:
    text = f"{seed}\0{name}\0{purpose}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big")


def reservoir(rows: Iterable[Row], size: int, seed: int) -> list[Row]:
    """`size` of any number of rows, each as likely as any other, in one pass (Algorithm R)."""
    chance = random.Random(f"{seed}/reservoir")
    held: list[Row] = []
    for position, row in enumerate(rows):
        if position < size:
            held.append(row)
        elif (place := chance.randrange(position + 1)) < size:
            held[place] = row
    return held
