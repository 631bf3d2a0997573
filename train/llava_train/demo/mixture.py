"""All questions about a picture in one sample, so that one reading of it bears many answers."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from llava_train.scene_files import sample

Exchange = list[tuple[str, str]]
"""Questions and answers that stay together, in order."""

FIRST = {"reasoning": 0.25, "detail": 0.1, "conversation": 0.65}
"""How often a kind opens a sample: the first turn is the one that people ask most."""
DETAIL_LATER = 0.35
"""How often a description ends a sample that did not begin with it: it gives all answers away."""


def mix(instruct: Path, out: Path, seed: int) -> int:
    """Write one multi-turn sample a picture from `instruct.json`; returns their number."""
    exchanges: dict[str, dict[str, list[Exchange]]] = defaultdict(dict)
    for record in json.loads(instruct.read_text("utf-8")):
        kind = record["id"].rsplit("-", 1)[1]
        exchanges[record["image"]][kind] = _exchanges(record, kind)
    rows = []
    for number, (image, kinds) in enumerate(exchanges.items()):
        rng = np.random.default_rng([seed, number])
        turns = [turn for exchange in _ordered(kinds, rng) for turn in exchange]
        rows.append(sample(image, "mixed", turns))
    aside = out.with_suffix(".part")
    aside.write_text(json.dumps(rows), "utf-8")
    aside.replace(out)
    return len(rows)


def _exchanges(record: dict[str, Any], kind: str) -> list[Exchange]:
    texts = [turn["value"].removeprefix("<image>\n") for turn in record["conversations"]]
    pairs = list(zip(texts[::2], texts[1::2], strict=True))
    return [[pair] for pair in pairs] if kind == "conversation" else [pairs]


def _ordered(kinds: dict[str, list[Exchange]], rng: np.random.Generator) -> list[Exchange]:
    first = list(FIRST)[int(rng.choice(len(FIRST), p=list(FIRST.values())))]
    middle = [*kinds["conversation"], *([] if first == "reasoning" else kinds["reasoning"])]
    order = rng.permutation(len(middle))
    opening = kinds[first] if first != "conversation" else []
    ending = kinds["detail"] if first != "detail" and rng.random() < DETAIL_LATER else []
    return [*opening, *(middle[i] for i in order), *ending]
