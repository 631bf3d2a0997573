"""All questions about a picture in one sample, so that one reading of it bears many answers.

A picture comes back several times, each time with other questions: more pictures cost more to
draw and to read, more questions cost nothing. The odd one out can be asked once a sample only (the
second answer would be copied from the first), so a short sample about it follows each long one.
The last samples are short: a colour by its shape is learnt last, and in a long sample mostly
copied from an earlier answer; whether anything is odd has to be seen, not taken from the rest.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from llava_train.scene_files import sample
from llava_train.scene_questions import RATES, conversation, detail, reasoning
from llava_train.scene_wording import Turn, as_typed
from llava_train.scenes import Scene

Kind = Literal["mixed", "short", "search"]
"""The kinds of samples: all questions, the odd one out first, searches in any order."""

ASKED = RATES | {
    "count of a kind": 0.7,
    "color": 2.2,
    "shape": 1.0,
    "content of a place": 0.9,
    "position": 3.0,
    "position by one": 3.0,
    "presence": 2.0,
    "size": 0.3,
    "background": 0.2,
    "colors": 0.25,
    "brief": 0.15,
}
"""Finding a place by what is there is learnt last, and by these questions."""
HARD = {"position": 0.7, "position by one": 1.0, "color": 0.7}
"""What a short sample may ask after the odd one out: each is a search through the picture."""
FIRST = {"reasoning": 0.2, "detail": 0.08, "conversation": 0.72}
"""How often a kind opens a sample: the first turn is the one that people ask most."""
DETAIL_LATER = 0.3
"""How often a description ends a sample that did not begin with it: it gives all answers away."""
SEARCHED = dict.fromkeys(ASKED, 0.25) | {
    "count": 0.4,
    "color": 1.6,
    "position": 0.7,
    "position by one": 0.7,
    "presence": 0.5,
}
"""What a sample of searches asks, in any order: most answers are in no earlier one. A kind that was
left out would be forgotten: without counts, 80 % of them were right at the end, not 99."""
UNUSUAL_SEARCHED, DETAIL_SEARCHED = 0.7, 0.15
"""How often those ask for the odd one out, and for a description at their end."""


def mix(scenes: Path, out: Path, seed: int, rounds: int, kinds: Sequence[Kind]) -> int:
    """Write `rounds` samples of each of `kinds` for every picture of `scenes.jsonl`.

    Returns their number.
    """
    lines = [json.loads(line) for line in scenes.read_text("utf-8").splitlines()]
    aside = out.with_suffix(".part")
    with aside.open("w", encoding="utf-8") as file:
        for row in _rows(lines, seed, rounds, kinds):
            file.write(json.dumps(row) + "\n")
    aside.replace(out)
    return len(lines) * rounds * len(kinds)


def _rows(
    lines: list[dict[str, Any]], seed: int, rounds: int, kinds: Sequence[Kind]
) -> Iterator[dict[str, Any]]:
    for number, record in enumerate(lines):
        scene = Scene.from_record(record)
        for round_ in range(rounds):
            for kind in kinds:
                rng = np.random.default_rng([seed, number, round_, list(KINDS).index(kind)])
                asked = [(as_typed(t.question, rng), t.answer) for t in KINDS[kind](scene, rng)]
                yield sample(record["image"], f"{kind}{round_}", asked)


def short(scene: Scene, rng: np.random.Generator) -> list[Turn]:
    """The odd one out, and every other time what else has to be searched for."""
    searched = conversation(scene, rng, HARD) if rng.random() < 0.5 else []
    return [*reasoning(scene, rng), *searched]


def dialogue(scene: Scene, rng: np.random.Generator) -> list[Turn]:
    """One sample's turns: what opens it, everything else shuffled, sometimes a description last."""
    first = list(FIRST)[int(rng.choice(len(FIRST), p=list(FIRST.values())))]
    exchanges = [[turn] for turn in conversation(scene, rng, ASKED)]
    unusual = reasoning(scene, rng)
    if first != "reasoning":
        exchanges.append(unusual)
    opening = {"reasoning": unusual, "detail": [detail(scene, rng)], "conversation": []}[first]
    middle = [turn for i in rng.permutation(len(exchanges)) for turn in exchanges[i]]
    ending = [detail(scene, rng)] if first != "detail" and rng.random() < DETAIL_LATER else []
    return [*opening, *middle, *ending]


def searches(scene: Scene, rng: np.random.Generator) -> list[Turn]:
    """One sample's turns, in any order: the odd one out, and what else has to be searched for."""
    exchanges = [[turn] for turn in conversation(scene, rng, SEARCHED)]
    if rng.random() < UNUSUAL_SEARCHED or not exchanges:
        exchanges.append(reasoning(scene, rng))
    shuffled = [turn for i in rng.permutation(len(exchanges)) for turn in exchanges[i]]
    return [*shuffled, *([detail(scene, rng)] if rng.random() < DETAIL_SEARCHED else [])]


KINDS: dict[Kind, Callable[[Scene, np.random.Generator], list[Turn]]] = {
    "mixed": dialogue,
    "short": short,
    "search": searches,
}
