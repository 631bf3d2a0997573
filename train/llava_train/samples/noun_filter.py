"""Stage-1 filtering by noun phrases: LLaVA's way from CC3M to 595K captions.

Phrases that fewer than `least` captions hold are left out of account. Beginning with the rarest,
every phrase brings its captions into the pool; of a phrase that more than `cap` captions hold,
`cap` of them drawn at random. (LLaVA: 3 and 100.) Which captions a phrase brings hangs on no other
phrase, so the order of phrases does not matter for the union, and the whole is two passes:

1. count the captions that hold each phrase;
2. keep a caption if any of its phrases brings it. A phrase with n captions brings exactly
   min(n, cap) of them: the next is taken with probability (still to take)/(still to come), which
   is Knuth's Algorithm S, once a phrase.

Memory holds the phrases that occur often enough, never the captions; counts that outgrow it go to
the disk.
"""

from __future__ import annotations

import hashlib
import random
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from llava_train.samples.phrases import Chunker

Row = TypeVar("Row")
_IN_MEMORY = 1_000_000
"""Phrases counted in memory before they are merged into the counts on the disk."""


@dataclass
class Counts:
    """What the first pass found."""

    captions: int
    phrases: int
    """Different ones."""
    often: dict[int, int]
    """Captions that hold a phrase, by the phrase's digest; those with at least `least`."""


def count_phrases(texts: Iterable[str], chunker: Chunker, least: int) -> Counts:
    """The first pass."""
    base = sqlite3.connect("", isolation_level=None)
    base.execute("PRAGMA journal_mode = OFF")
    base.execute("PRAGMA cache_size = -65536")
    base.execute("CREATE TABLE counts (phrase INTEGER PRIMARY KEY, n INT)")
    held: dict[int, int] = {}
    captions = 0
    try:
        for text in texts:
            captions += 1
            for phrase in digests(text, chunker):
                held[phrase] = held.get(phrase, 0) + 1
            if len(held) >= _IN_MEMORY:
                _merge(base, held)
        _merge(base, held)
        ((phrases,),) = base.execute("SELECT COUNT(*) FROM counts").fetchall()
        often = dict(base.execute("SELECT phrase, n FROM counts WHERE n >= ?", (least,)))
    finally:
        base.close()
    return Counts(captions, phrases, often)


def kept(
    rows: Iterable[Row],
    text_of: Callable[[Row], str],
    chunker: Chunker,
    counts: Counts,
    *,
    cap: int,
    seed: int,
) -> Iterator[Row]:
    """The second pass: the rows of the pool, in their order."""
    draw = random.Random(seed).random
    to_come = dict(counts.often)
    to_take = {phrase: min(n, cap) for phrase, n in counts.often.items()}
    for row in rows:
        wanted = False
        for phrase in digests(text_of(row), chunker):
            left = to_come.get(phrase)
            if left is None:
                continue
            take = to_take[phrase]
            if draw() * left < take:
                to_take[phrase] = take - 1
                wanted = True
            to_come[phrase] = left - 1
        if wanted:
            yield row


def sampled(rows: Iterable[Row], count: int, size: int, seed: int) -> Iterator[Row]:
    """Exactly `size` of `count` rows, in their order, each as likely as any other."""
    draw = random.Random(f"{seed}/size").random
    for position, row in enumerate(rows):
        if draw() * (count - position) < size:
            size -= 1
            yield row


def digests(text: str, chunker: Chunker) -> list[int]:
    """A text's phrases, each once, as signed 64-bit numbers in the order of the text."""
    return [_digest(phrase) for phrase in dict.fromkeys(chunker(text))]


def _digest(phrase: str) -> int:
    data = hashlib.blake2b(phrase.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(data, "big", signed=True)


def _merge(base: sqlite3.Connection, held: dict[int, int]) -> None:
    base.execute("BEGIN")
    base.executemany(
        "INSERT INTO counts VALUES (?, ?) ON CONFLICT (phrase) DO UPDATE SET n = n + excluded.n",
        sorted(held.items()),
    )
    base.execute("COMMIT")
    held.clear()
