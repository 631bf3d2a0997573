"""The order of answer and reasoning in ScienceQA's answers, as `llava data convert` writes them.

Answer first: the answer does not depend on how good the reasoning is. Reasoning first (chain of
thought): the answer is read off the reasoning; it converges in fewer epochs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from llava_cli.errors import DataError
from llava_train.conversations import Sample

ORDERS = ("data", "answer-first", "reasoning-first")
"""`data` leaves the answers as they are."""
_SHAPES = (
    re.compile(r"The answer is (?P<letter>[A-J])\.(?: BECAUSE: (?P<why>.*))?", re.DOTALL),
    re.compile(r"(?P<why>.*?)\s*###\s*ANSWER: (?P<letter>[A-J])\.", re.DOTALL),
    re.compile(r"(?P<why>.*) The answer is (?P<letter>[A-J])\.", re.DOTALL),
)


def in_order(samples: Sequence[Sample], order: str) -> list[Sample]:
    """The samples with answer and reasoning of every answer in an order."""
    if order == "data":
        return list(samples)
    return [
        replace(s, turns=tuple((role, _turned(role, text, order, s)) for role, text in s.turns))
        for s in samples
    ]


def _turned(role: str, text: str, order: str, sample: Sample) -> str:
    if role == "user":
        return text
    found = next((m for shape in _SHAPES if (m := shape.fullmatch(text.strip()))), None)
    if found is None:
        raise DataError(
            f"sample {sample.name}: its answer does not say 'The answer is A.'",
            "make the data with llava data convert, or use --order data",
        )
    answer, why = f"The answer is {found['letter']}.", (found["why"] or "").strip()
    if not why:
        return answer
    return f"{answer} BECAUSE: {why}" if order == "answer-first" else f"{why} {answer}"
