"""GQA: an answer counts if it equals the one word or phrase of the annotation.

LLaVA's answers lose their last periods and capitals first; uploads are compared as they are. The
scene graphs and choice files that the organisers' script asks for do not enter accuracy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from llava_cli.evals.rows import (
    Key,
    Row,
    first_character,
    read_rows,
    row_id,
    row_text,
    stream_object,
)
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

RULE = "exact match after stripping trailing periods and lower-casing; uploads as they are"
MISSING = "counted as wrong"
FILES = ("testdev_balanced_questions.json", "*balanced_questions.json", "*questions*.json")


def processed(text: str) -> str:
    """LLaVA's answer as it is uploaded."""
    return text.rstrip(".").lower()


def verdicts(inputs: Inputs, notes: Notes) -> Iterator[Verdict]:
    """One verdict a question, in the order of the annotations."""
    answers = answer_map(
        prediction_rows(inputs), lambda row: row_id(row, "question_id", "questionId"), _text, notes
    )
    for path in find(needed(inputs.annotations, FILES[0]), *FILES):
        for key, row in gold_rows(path):
            gold = row_text(row, "answer")
            kind = row.data.get("types")
            structural = kind.get("structural") if isinstance(kind, dict) else None
            groups = (("open" if structural == "query" else "binary"),) if structural else ()
            answer = answers.pop(key, None)
            if answer is None:
                yield Verdict(key, gold, None, None, 0.0, "missing", groups)
                continue
            right = answer.text == gold
            reason = judged(right)
            yield Verdict(key, gold, answer.text, answer.text, float(right), reason, groups)
    leftovers(answers, notes)


def metrics(items: Iterable[Verdict]) -> dict[str, float]:
    """`accuracy`, `accuracy_open`, `accuracy_binary`."""
    return grouped(items)


def gold_rows(path: object) -> Iterator[tuple[Key, Row]]:
    """id and question, from the organisers' object or from rows with an id."""
    from pathlib import Path

    file = Path(str(path))
    if first_character(file) == "{":
        yield from stream_object(file)
        return
    for row in read_rows(file):
        yield row_id(row, "question_id", "questionId"), row


def _text(row: Row) -> str:
    if "text" in row.data:
        return processed(row_text(row, "text"))
    return row_text(row, "prediction", "answer")
