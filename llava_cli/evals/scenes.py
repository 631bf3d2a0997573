"""The bundled model's world: exact questions about drawn scenes, from the scenes.jsonl beside them.

One question of each topic a scene, chosen by the scene's own name, so that everybody asks the same.
An answer counts if it states the true fact and no other.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_cli.evals.rows import Row, read_rows, row_text
from llava_cli.evals.scoring import (
    Inputs,
    Notes,
    Verdict,
    answer_map,
    find,
    grouped,
    judged,
    leftovers,
    needed,
    prediction_rows,
)

RULE = "the answer states the true number, colour, place, yes or no, or odd one, and no other"
MISSING = "counted as wrong"
FILES = ("scenes.jsonl",)
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "black")
SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross")
CELLS = (
    "top left", "top center", "top right", "middle left", "middle right", "bottom left",
    "bottom center", "bottom right", "center",
)  # fmt: skip
NOTHING = "nothing"
_NUMBERS = "zero one two three four five six seven eight nine".split()
_CELL = re.compile("|".join(CELLS))
_COUNT = re.compile(rf"\b(\d+|{'|'.join(_NUMBERS)})\b")


@dataclass(frozen=True)
class Question:
    """One question about a scene, with the fact that answers it."""

    key: str
    image: str
    topic: str
    text: str
    gold: str


def questions(row: Row) -> Iterator[Question]:
    """The questions about one scene."""
    image, objects = row_text(row, "image"), row.data.get("objects")
    if not isinstance(objects, list) or not objects:
        raise row.bad("has no objects", "give the scenes.jsonl that llava data scenes wrote")
    chance = zlib.crc32(image.encode())

    def ask(topic: str, text: str, gold: str) -> Question:
        return Question(f"{image}#{topic}", image, topic, text, gold)

    yield ask("count", "How many shapes are there?", str(len(objects)))
    some = objects[chance % len(objects)]
    yield ask("color", f"What color is the shape in the {some['cell']}?", some["color"])
    alone = [o for o in objects if sum(_name(x) == _name(o) for x in objects) == 1]
    if alone:
        one = alone[chance // 7 % len(alone)]
        yield ask("position", f"Where is the {_name(one)}?", one["cell"])
    named = _name(some) if chance // 3 % 2 else _absent(objects, chance)
    there = any(_name(o) == named for o in objects)
    yield ask("presence", f"Is there a {named}?", "yes" if there else "no")
    odd = row.data.get("odd")
    gold = f"{_name(odd)} in the {odd['cell']}" if isinstance(odd, dict) else NOTHING
    yield ask("unusual", "What is unusual here?", gold)


def _name(o: Mapping[str, Any]) -> str:
    return f"{o['color']} {o['shape']}"


def _absent(objects: list[dict[str, Any]], chance: int) -> str:
    there = {_name(o) for o in objects}
    every = [f"{c} {s}" for c in COLORS for s in SHAPES]
    return next(n for n in every[chance % len(every) :] + every if n not in there)


def parse(topic: str, text: str) -> str | None:
    """The fact that an answer states; None where it states none, or several."""
    said = text.lower()
    if topic == "count":
        found = {_number(n) for n in _COUNT.findall(said)}
    elif topic == "color":
        found = {c for c in COLORS if re.search(rf"\b{c}\b", said)}
    elif topic == "position":
        found = set(_CELL.findall(said))
    elif topic == "presence":
        match = re.match(r"\W*(yes|no)\b", said)
        found = {match[1]} if match else set()
    else:
        return _odd(said)
    return found.pop() if len(found) == 1 else None


def _number(word: str) -> str:
    return str(_NUMBERS.index(word)) if word in _NUMBERS else str(int(word))


def _odd(said: str) -> str | None:
    if re.search(r"\bnothing is unusual\b", said):
        return NOTHING
    cells = "|".join(CELLS)
    pattern = rf"({'|'.join(COLORS)}) ({'|'.join(SHAPES)}) in the ({cells})"
    match = re.search(pattern, said)
    return f"{match[1]} {match[2]} in the {match[3]}" if match else None


def gold(paths: Iterable[Path]) -> Iterator[Question]:
    """All questions about all scenes."""
    for path in find(tuple(paths), *FILES):
        for row in read_rows(path):
            yield from questions(row)


def verdicts(inputs: Inputs, notes: Notes) -> Iterator[Verdict]:
    """One verdict a question."""
    answers = answer_map(
        prediction_rows(inputs),
        lambda row: row_text(row, "question_id"),
        lambda row: row_text(row, "text"),
        notes,
    )
    for question in gold(needed(inputs.annotations, FILES[0])):
        groups = (question.topic,)
        answer = answers.pop(question.key, None)
        if answer is None:
            yield Verdict(question.key, question.gold, None, None, 0.0, "missing", groups)
            continue
        said = parse(question.topic, answer.text)
        right = said == question.gold
        reason = "unparsable" if said is None else judged(right)
        yield Verdict(
            question.key,
            question.gold,
            answer.text,
            said,
            float(right),
            reason,
            groups,
        )
    leftovers(answers, notes)


def metrics(items: Iterable[Verdict]) -> dict[str, float]:
    """`accuracy` and `accuracy_TOPIC`."""
    return grouped(items)
