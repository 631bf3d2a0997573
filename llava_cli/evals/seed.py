"""SEED-Bench: multiple choice about pictures and videos; the answer must be the letter itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from llava_cli.evals.rows import Row, read_object, row_id, row_text
from llava_cli.evals.scoring import (
    Inputs,
    Mean,
    Notes,
    Verdict,
    answer_map,
    find,
    judged,
    leftovers,
    lenient_letter,
    metric_name,
    needed,
    prediction_rows,
)

RULE = "the answer equals the letter; nothing is parsed"
MISSING = "counted as wrong"
FILES = ("SEED-Bench.json", "SEED*.json", "*.json")
LETTERS = ("A", "B", "C", "D")


def questions(path: Path) -> tuple[list[Row], dict[Any, str]]:
    """The questions, and the name of each type of question by its number."""
    document = read_object(path)
    found = document.get("questions")
    if not isinstance(found, list):
        raise Row({}, path, 1).bad("has no list of questions", "give SEED-Bench.json")
    rows = [
        Row(data if isinstance(data, dict) else {}, path, number, "item")
        for number, data in enumerate(found, 1)
    ]
    types = document.get("question_type")
    return rows, {number: name for name, number in types.items()} if isinstance(types, dict) else {}


def verdicts(inputs: Inputs, notes: Notes) -> Iterator[Verdict]:
    """One verdict a question."""
    answers = answer_map(
        prediction_rows(inputs),
        lambda row: row_id(row, "question_id", "questionId"),
        lambda row: row_text(row, "text", "prediction", "answer"),
        notes,
    )
    for path in find(needed(inputs.annotations, FILES[0]), *FILES):
        rows, types = questions(path)
        for row in rows:
            yield _verdict(row, types, answers, inputs.lenient)
    leftovers(answers, notes)


def _verdict(row: Row, types: dict[Any, str], answers: dict[Any, Any], lenient: bool) -> Verdict:
    key, gold = row_id(row, "question_id"), row_text(row, "answer")
    number = row.data.get("question_type_id")
    kind = str(row.data.get("data_type", "image"))
    groups = (kind, types.get(number, "" if number is None else f"type {number}"))
    answer = answers.pop(key, None)
    if answer is None:
        return Verdict(key, gold, None, None, 0.0, "missing", groups)
    said = lenient_letter(answer.text) if lenient else answer.text
    if said not in LETTERS:
        return Verdict(key, gold, answer.text, None, 0.0, "unparsable", groups)
    right = said == gold
    reason = judged(right)
    return Verdict(key, gold, answer.text, said, float(right), reason, groups)


def metrics(items: Iterable[Verdict]) -> dict[str, float]:
    """`accuracy` (the published total), `accuracy_image`, `accuracy_video`, `accuracy_TYPE`."""
    means = Mean()
    for item in items:
        means.add("accuracy", item.score)
        means.add(f"accuracy_{item.groups[0]}", item.score)
        if item.groups[1]:
            means.add(f"accuracy_{metric_name(item.groups[1])}", item.score)
    return {"accuracy": means.percent("accuracy"), **means.percents()}
