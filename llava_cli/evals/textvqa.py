"""TextVQA: reading, with two ways to join predictions and annotations.

LLaVA's `question_id` is the picture's id, which several questions share: its rows are joined on
(picture, question in lower case), the question read back from the prompt (`llava`). Others give
TextVQA's own `question_id` (`m4c`). Which one a file needs shows in its rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from llava_cli.evals.normalise import evalai
from llava_cli.evals.rows import Key, Row, canonical, read_rows, row_id, row_text
from llava_cli.evals.scoring import (
    Answer,
    Inputs,
    Notes,
    Verdict,
    find,
    graded,
    grouped,
    leftovers,
    needed,
    prediction_rows,
)
from llava_cli.evals.vqa import RULES, evalai_score, references_of

RULE = RULES["evalai"]
MISSING = "counted as wrong"
OCR = "Reference OCR token: "
_OLD_FORM = re.compile(r"Question: (.*?) Short answer:", re.DOTALL)
_TEXTS = ("text", "answer", "pred_answer", "prediction")


def question_of(prompt: str) -> str | None:
    """The question in a prompt of LLaVA's, in lower case; None for a prompt of another form."""
    lines = prompt.split("\n")
    if prompt.startswith("OCR tokens: "):
        match = _OLD_FORM.search(prompt)
        return match.group(1).lower() if match else None
    if OCR in prompt and len(lines) == 3:
        return lines[1 if prompt.startswith(OCR.rstrip()) else 0].lower()
    return lines[0].lower() if len(lines) == 2 else None


def verdicts(inputs: Inputs, notes: Notes) -> Iterator[Verdict]:
    """One verdict an annotation, in their order."""
    gold = list(_gold(inputs))
    rows = list(prediction_rows(inputs))
    by_question = _joins_by_question(rows, inputs, gold)
    answers = _answers(rows, by_question, gold, notes)
    last = {_pair(row): row for row in gold}
    for row in gold:
        key = _pair(row) if by_question else row_id(row, "question_id")
        waiting = answers.get(key)
        # Where two questions are the same, upstream compares with the later one's references.
        references = _ten(last[_pair(row)] if by_question else row)
        name = row.data.get("question_id", list(_pair(row)))
        if not waiting:
            yield Verdict(name, references, None, None, 0.0, "missing")
            continue
        answer = waiting.pop(0)
        score = evalai_score(answer.text, references)
        yield Verdict(name, references, answer.text, evalai(answer.text), score, graded(score))
    leftovers({k: v[0] for k, v in answers.items() if v}, notes)


def metrics(items: Iterable[Verdict]) -> dict[str, float]:
    """`accuracy`."""
    return grouped(items)


def _gold(inputs: Inputs) -> Iterator[Row]:
    names = ("TextVQA_[0-9]*_val.json", "TextVQA_[0-9]*.json", "*.json")
    for path in find(needed(inputs.annotations, names[0]), *names):
        yield from read_rows(path, "data")


def _pair(row: Row) -> tuple[Key, str]:
    return row_id(row, "image_id"), row_text(row, "question").lower()


def _ten(row: Row) -> list[str]:
    references = references_of(row)
    if len(references) != 10:
        raise row.bad(f"{len(references)} references where there must be 10")
    return references


def _joins_by_question(rows: list[Row], inputs: Inputs, gold: list[Row]) -> bool:
    if inputs.join != "auto":
        return inputs.join == "llava"
    if not rows or "prompt" not in rows[0].data:
        return False
    ids = {canonical(row.data.get("question_id")) for row in gold}
    return canonical(rows[0].data.get("question_id")) not in ids or (
        question_of(str(rows[0].data["prompt"])) is not None
    )


def _answers(
    rows: list[Row], by_question: bool, gold: list[Row], notes: Notes
) -> dict[Any, list[Answer]]:
    """The answers to each key: as many as there are items with it, one otherwise."""
    room: dict[Any, int] = {}
    for row in gold:
        key = _pair(row) if by_question else row_id(row, "question_id")
        room[key] = room.get(key, 0) + 1
    found: dict[Any, list[Answer]] = {}
    for row in rows:
        key = _row_key(row, by_question)
        answer = Answer(row_text(row, *_TEXTS), row.path, row.number, row.unit)
        before = found.setdefault(key, [])
        if len(before) < max(1, room.get(key, 1)):
            before.append(answer)
        elif answer.text == before[-1].text:
            notes.add("rows repeat an earlier row; used once", row.where)
        else:
            raise row.bad(
                f"a second answer to {key!r}, different from {before[-1].where}",
                "an item may be answered once: remove one of the rows",
            )
    return found


def _row_key(row: Row, by_question: bool) -> Any:
    key = row_id(row, "question_id", "questionId")
    if not by_question:
        return key
    question = question_of(row_text(row, "prompt"))
    if question is None:
        raise row.bad(
            "the question cannot be read back from the prompt",
            "LLaVA's prompts have two lines, or three with the OCR tokens; else --join m4c",
        )
    return key, question
