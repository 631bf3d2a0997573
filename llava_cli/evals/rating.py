"""People's grades of answers, blind: which answers wait, what was said, how far raters agree.

An item is one model's answer to one question. Raters see them shuffled, without the model's name;
the order depends on the rater and the seed alone, so that a session can be continued.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_cli.errors import DataError, UsageError
from llava_cli.evals.owleval import GRADES
from llava_cli.evals.rows import Key, Row, canonical, read_rows, row_id, row_text
from llava_cli.evals.run import Journal
from llava_cli.images import Image

MEANINGS = {
    "A": "correct and satisfying",
    "B": "minor flaws",
    "C": "understood, but clear errors",
    "D": "irrelevant",
}


@dataclass(frozen=True)
class Item:
    """One answer to grade."""

    model: str
    question_id: Key
    question: str
    answer: str
    image: Image | None
    row: Row

    def rating(self, rater: str, grade: str) -> dict[str, Any]:
        """The row that is kept."""
        return {
            "question_id": self.question_id,
            "model_id": self.model,
            "rater": rater,
            "grade": grade,
            "ability": self.row.data.get("ability", ""),
            "question": self.question,
            "answer": self.answer,
        }


def items(questions: Path, predictions: Sequence[Path], images: Path | None) -> list[Item]:
    """All answers of all models to the questions."""
    asked = {row_id(row, "question_id"): row for row in read_rows(questions)}
    found: dict[tuple[str, Key], Item] = {}
    for path in predictions:
        for row in read_rows(path):
            key = row_id(row, "question_id")
            if key not in asked:
                raise row.bad(f"question {key!r} is not in {questions}")
            model = str(row.data.get("model_id") or path.stem)
            if (model, key) in found:
                raise row.bad(f"{model} answers question {key!r} twice")
            question = asked[key]
            found[model, key] = Item(
                model,
                key,
                row_text(question, "question", "text"),
                row_text(row, "answer", "text"),
                _image(question, images),
                question,
            )
    if not found:
        raise DataError("there are no answers to grade", "give predictions")
    return list(found.values())


def _image(question: Row, folder: Path | None) -> Image | None:
    name = question.data.get("image")
    if folder is None or not isinstance(name, str):
        return None
    from llava_cli.evals.plans_words import any_suffix
    from llava_cli.evals.tasks import Pictures

    found: Image = any_suffix(Pictures(folder), name)
    return found


class Session:
    """One rater's way through the items."""

    def __init__(self, items: Sequence[Item], journal: Journal, rater: str, seed: int) -> None:
        if not rater.strip():
            raise UsageError("the rater has no name", "--rater NAME")
        self.rater = rater
        self._journal = journal
        done = {
            (str(row.get("model_id")), canonical(row.get("question_id")))
            for row in journal.rows
            if row.get("rater") == rater
        }

        def place(item: Item) -> str:
            text = f"{seed}\0{rater}\0{item.model}\0{item.question_id}"
            return hashlib.sha256(text.encode()).hexdigest()

        self.total = len(items)
        self.waiting = sorted(
            (item for item in items if (item.model, item.question_id) not in done), key=place
        )

    @property
    def current(self) -> Item | None:
        """What is to be graded now."""
        return self.waiting[0] if self.waiting else None

    def grade(self, grade: str) -> None:
        """Grade the current item; on the disk when this returns."""
        if grade not in GRADES:
            raise UsageError(f"{grade!r} is no grade", "A, B, C or D")
        self._journal.add(self.waiting.pop(0).rating(self.rater, grade))
        self._journal.sync()

    def skip(self) -> None:
        """Put the current item to the end."""
        self.waiting.append(self.waiting.pop(0))


def agreement(rows: Iterable[Row]) -> dict[str, Any]:
    """Shares of grades by model, and how far raters agree on the items that several graded.

    `agreement` is the share of pairs of raters with the same grade; `fleiss_kappa` corrects it for
    chance (Fleiss 1971, Psychological Bulletin 76:378, generalised to unequal numbers of raters).
    """
    models: dict[str, dict[str, int]] = {}
    graded: dict[tuple[str, Key], dict[str, str]] = {}
    for row in rows:
        grade, model = row_text(row, "grade"), str(row.data.get("model_id", ""))
        if grade not in GRADES:
            raise row.bad(f"the grade is {grade!r}, not A, B, C or D")
        rater = str(row.data.get("rater", ""))
        said = graded.setdefault((model, row_id(row, "question_id")), {})
        if rater in said:
            raise row.bad(f"{rater} grades this answer twice")
        said[rater] = grade
        models.setdefault(model, dict.fromkeys(GRADES, 0))[grade] += 1
    return {
        "models": {name: _shares(counts) for name, counts in sorted(models.items())},
        "raters": len({rater for said in graded.values() for rater in said}),
        "ratings": sum(len(said) for said in graded.values()),
        **_kappa([list(said.values()) for said in graded.values() if len(said) > 1]),
    }


def _shares(counts: dict[str, int]) -> dict[str, float]:
    total = sum(counts.values())
    return {grade: 100.0 * count / total for grade, count in counts.items()}


def _kappa(several: list[list[str]]) -> dict[str, Any]:
    if not several:
        return {"shared_items": 0, "agreement": None, "fleiss_kappa": None}
    same = [
        sum(said.count(g) * (said.count(g) - 1) for g in GRADES) / (len(said) * (len(said) - 1))
        for said in several
    ]
    observed = sum(same) / len(same)
    every = [grade for said in several for grade in said]
    expected = sum((every.count(g) / len(every)) ** 2 for g in GRADES)
    kappa = 1.0 if expected == 1 else (observed - expected) / (1 - expected)
    return {
        "shared_items": len(several),
        "agreement": 100.0 * observed,
        "fleiss_kappa": kappa,
    }
