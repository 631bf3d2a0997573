"""OwlEval: people grade answers A (satisfying), B (minor flaws), C (clear errors), D (irrelevant).

Scores the grades that `llava eval rate` writes; answers alone have no score. Joined on question_id,
for the pictures' suffixes differ between releases.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from llava_cli.errors import DataError
from llava_cli.evals.rows import Row, read_rows, row_id
from llava_cli.evals.scoring import Inputs, Notes, Verdict, find, judged, prediction_rows

RULE = "shares of the grades A, B, C, D that people gave; score is the share of A"
MISSING = "left out"
GRADES = ("A", "B", "C", "D")
ABILITIES = {
    "a": "instruction",
    "b": "visual",
    "c": "ocr",
    "d": "knowledge",
    "e": "reasoning",
    "f": "multi_turn",
}


def abilities(row: Row) -> tuple[str, ...]:
    """The names of the abilities that a question needs."""
    letters = str(row.data.get("ability", "")).replace(" ", "").split(",")
    return tuple(ABILITIES[letter] for letter in letters if letter in ABILITIES)


def verdicts(inputs: Inputs, notes: Notes) -> Iterator[Verdict]:
    """One verdict a grade; one for each question that has none."""
    questions = {
        row_id(row, "question_id"): row
        for path in find(inputs.annotations, "*.jsonl", "*.json")
        for row in read_rows(path)
    }
    graded: set[Any] = set()
    for row in prediction_rows(inputs):
        key = row_id(row, "question_id")
        grade = row.data.get("grade")
        if grade is None:
            raise DataError(
                f"{row.where}: an answer without a grade",
                "OwlEval is graded by people: llava eval rate, then score its ratings",
            )
        if questions and key not in questions:
            notes.add("grades are of questions that the annotations lack", row.where)
            continue
        if grade not in GRADES:
            raise row.bad(f"the grade is {grade!r}, not A, B, C or D")
        graded.add(key)
        groups = abilities(questions.get(key, row))
        text = str(row.data.get("answer", row.data.get("text", "")))
        reason = judged(grade == "A")
        yield Verdict(key, None, text, grade, float(grade == "A"), reason, groups)
    for key, question in questions.items():
        if key not in graded:
            yield Verdict(key, None, None, None, 0.0, "missing", abilities(question))


def metrics(items: Iterable[Verdict]) -> dict[str, float]:
    """`grade_a` to `grade_d` in percent of all grades, and for each ability."""
    counts: dict[str, dict[str, int]] = {"": dict.fromkeys(GRADES, 0)}
    for item in items:
        if item.parsed is None:
            continue
        for group in ("", *item.groups):
            counts.setdefault(group, dict.fromkeys(GRADES, 0))[item.parsed] += 1
    found: dict[str, float] = {}
    for group, grades in sorted(counts.items()):
        total = sum(grades.values())
        for grade, count in grades.items():
            name = f"grade_{grade.lower()}" + (f"_{group}" if group else "")
            found[name] = 100.0 * count / total if total else 0.0
    return found
