"""MMBench and MMBench-CN: a question counts if all rotations of its options are right.

Rows of one question have indices that are equal modulo 1,000,000. Predictions are LLaVA's rows or
a table with the columns `index` and `prediction`, which for the dev split holds the gold, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from llava_cli.errors import DataError
from llava_cli.evals.rows import Row, canonical, read_rows, row_id
from llava_cli.evals.scoring import (
    Answer,
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
    prediction_rows,
)

RULE = "the letter, alone or followed by its option; circular: all rotations right"
MISSING = "counted as wrong"
FILES = ("mmbench_*.tsv", "*.tsv", "*.csv", "*.xlsx")
ROTATION = 1_000_000
LETTERS = ("A", "B", "C", "D")
_LETTER = re.compile(r"\(?([A-D])\)?[.:,]?\s*|\(?([A-D])[.:)]\s.*", re.DOTALL)


# What pandas, which LLaVA reads the table with, takes for no value.
_NO_VALUE = frozenset(
    (
        *("", "#N/A", "#NA", "#N/A N/A", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND"),
        *("1.#QNAN", "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"),
    )
)


def is_none(value: Any) -> bool:
    """Whether a cell of the organisers' table is empty in the sense of LLaVA's reader."""
    if value is None or (isinstance(value, float) and value != value):
        return True
    return isinstance(value, str) and (value in _NO_VALUE or value.lower() in ("nan", "none"))


def _unanswered(row: Row) -> bool:
    """Whether a table's cell for the prediction is empty; in JSON an empty text is an answer."""
    said = _said(row)
    return said is None or said != said or (said == "" and row.unit == "row")


def options(row: Row) -> list[str]:
    """The options up to the first empty one."""
    found = []
    for letter in LETTERS:
        value = row.data.get(letter)
        if is_none(value):
            break
        found.append(str(value))
    return found


def parse(text: str) -> str | None:
    """The letter of an answer."""
    match = _LETTER.fullmatch(text.strip())
    return (match[1] or match[2]) if match else None


def verdicts(inputs: Inputs, notes: Notes) -> Iterator[Verdict]:
    """One verdict a row (and round, where LLaVA was run with --all-rounds)."""
    rows = list(prediction_rows(inputs))
    answers = answer_map((r for r in rows if not _unanswered(r)), _key, _text, notes)
    chars = {_key(row): row.data["option_char"] for row in rows if row.data.get("option_char")}
    rounds = any(key[1] for key in answers)
    for row in _gold(inputs, rows):
        gold = row.data.get("answer")
        if gold not in LETTERS:
            raise row.bad(
                "has no answer", "this split is scored by the organisers' server: upload instead"
            )
        index = row_id(row, "index")
        for number in range(max(1, len(options(row))) if rounds else 1):
            yield _verdict((index, number), str(gold), row, answers, chars, inputs.lenient)
    leftovers(answers, notes)


def _verdict(
    key: tuple[Any, int],
    gold: str,
    row: Row,
    answers: dict[Any, Answer],
    chars: dict[Any, Any],
    lenient: bool,
) -> Verdict:
    index, number = key
    groups = tuple(str(row.data.get(n) or "") for n in ("category", "l2-category"))
    base = index % ROTATION if isinstance(index, int) else index
    first = number == 0 and (not isinstance(index, int) or index < ROTATION)
    name, extra = (f"{index}/{number}" if number else index), (base, first)
    answer = answers.pop(key, None)
    if answer is None:
        return Verdict(name, gold, None, None, 0.0, "missing", groups, extra)
    letter = parse(answer.text) or (lenient_letter(answer.text) if lenient else None)
    if letter is None:
        return Verdict(name, gold, answer.text, None, 0.0, "unparsable", groups, extra)
    if number and key in chars:
        letter = _unrotated(letter, chars[key])
    right = letter == gold
    reason = judged(right)
    return Verdict(name, gold, answer.text, letter, float(right), reason, groups, extra)


def _unrotated(letter: str, chars: Any) -> str:
    """The letter in the table of an option that the prompt showed under another."""
    place = LETTERS.index(letter)
    return str(chars[place]) if isinstance(chars, list) and place < len(chars) else letter


def metrics(items: Iterable[Verdict]) -> dict[str, float]:
    """`circular_accuracy` (published), `row_accuracy`, `first_rotation_accuracy`, by category."""
    whole: dict[Any, bool] = {}
    groups: dict[Any, tuple[str, ...]] = {}
    means = Mean()
    for item in items:
        base, first = item.extra
        whole[base] = whole.get(base, True) and item.score == 1.0
        groups.setdefault(base, item.groups)
        means.add("row", item.score)
        if first:
            means.add("first", item.score)
    for base, right in whole.items():
        means.add("circular", float(right))
        for group in sorted(set(groups[base])):
            if group:
                means.add(f"circular_accuracy_{metric_name(group)}", float(right))
    named = {name: v for name, v in means.percents().items() if name.startswith("circular_")}
    return {
        "circular_accuracy": means.percent("circular"),
        "row_accuracy": means.percent("row"),
        "first_rotation_accuracy": means.percent("first"),
        **dict(sorted(named.items())),
    }


def _said(row: Row) -> Any:
    for name in ("text", "prediction"):
        if name in row.data:
            return row.data[name]
    raise row.bad("text or prediction is missing")


def _text(row: Row) -> str:
    said = _said(row)
    if isinstance(said, str):
        return said
    raise row.bad(f"the prediction is {said!r}, not a text")


def _key(row: Row) -> tuple[Any, int]:
    number = canonical(row.data.get("round_id", 0))
    return row_id(row, "question_id", "index"), number if isinstance(number, int) else 0


def _gold(inputs: Inputs, rows: list[Row]) -> Iterator[Row]:
    if not inputs.annotations:
        if rows and "answer" not in rows[0].data:
            raise DataError(
                f"{rows[0].path}: holds no gold", "give the organisers' TSV with --annotations"
            )
        yield from rows
        return
    seen: dict[Any, Row] = {}
    for path in find(inputs.annotations, *FILES):
        for row in read_rows(path):
            index = row_id(row, "index")
            if index in seen:
                raise row.bad(f"index {index} again, first in {seen[index].where}")
            seen[index] = row
            # The picture in base64 is most of a row, and not needed.
            yield Row(
                {k: v for k, v in row.data.items() if k != "image"}, path, row.number, row.unit
            )
