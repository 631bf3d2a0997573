"""A turn about a scene, and the ways in which people word and type the same question."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llava_train.scene_phrases import SHORT
from llava_train.scene_text import capital


@dataclass(frozen=True)
class Turn:
    """One question with its true answer; `topic` is what evaluation groups by."""

    topic: str
    question: str
    answer: str


def pick(rng: np.random.Generator, values: Sequence[str]) -> str:
    """One of the values, each as likely."""
    return values[int(rng.integers(len(values)))]


def shortened(turn: Turn, rng: np.random.Generator) -> Turn:
    """The same question asked for a single word, where the answer has one."""
    short = {
        "count": r"There (?:is|are) (\d) ",
        "color": r"is (\w+)\.$",
        "shape": r"is an? (\w+)\.$",
        "position": r"is in the ([\w ]+)\.$",
        "presence": r"^(Yes|No),",
        "size": r"is (\w+)\.$",
    }
    match = re.search(short[turn.topic], turn.answer) if turn.topic in short else None
    if not match:
        return turn
    space = "\n" if rng.random() < 0.7 else " "
    return Turn(f"short {turn.topic}", f"{turn.question}{space}{SHORT}", capital(match.group(1)))


def as_typed(question: str, rng: np.random.Generator) -> str:
    """The question as people type it: lower case, no question mark, `image` for `picture`."""
    if rng.random() < 0.3:
        question = question[0].lower() + question[1:]
    if rng.random() < 0.12:
        question = question.removesuffix("?").removesuffix(".")
    if rng.random() < 0.2:
        question = re.sub(
            r"\b(picture|image)\b",
            lambda m: pick(rng, ("image", "picture", "photo", "drawing")),
            question,
        )
    if rng.random() < 0.05:
        question = (
            f"Please {question[0].lower()}{question[1:]}"
            if question.endswith(".")
            else f"{question} Thanks."
        )
    return question
