"""ScienceQA's problems as LLaVA samples, in every order of question, choices and reasoning.

A format is `INPUT-OUTPUT`. INPUT is QCM (question, context, choices) or CQM (context first), and
may hold L and E (lecture, explanation) for upper bounds. OUTPUT orders the answer A, the lecture L
and the explanation E: `A`, `AL`, `LA`, `LEA`, ...; where L or E come before A, the model reasons
before it answers (chain of thought). LLaVA's own was QCM-LEPA: lecture, solution, then the answer.

Kept from the code that made the published results: newlines become a literal `\\n`, runs of blanks
collapse, `Question: ` is taken off the front, and `AL` writes the solution while `AE` writes the
lecture.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llava_cli.errors import DataError, UsageError
from llava_train.samples.json_stream import fields
from llava_train.samples.paths import stays_inside
from llava_train.samples.reading import Row

INPUTS = ("QCM", "CQM", "QCML", "QCME", "QCMLE", "QCLM", "QCEM", "QCLEM")
OUTPUTS = ("A", "AL", "AE", "ALE", "AEL", "LA", "EA", "LEA", "ELA", "LEPA")
LETTERS = "ABCDEFGHIJ"
_HINT = "give the organisers' problems.json, and pid_splits.json with --splits"


def parse_format(text: str) -> tuple[str, str]:
    """`QCM-LEPA` as its two halves."""
    first, dash, second = text.upper().partition("-")
    if not dash or first not in INPUTS or second not in OUTPUTS:
        raise UsageError(
            f"{text!r} is no ScienceQA format",
            f"write one of {', '.join(INPUTS)}, a dash, one of {', '.join(OUTPUTS)}",
        )
    return first, second


def samples(
    problems: Path,
    splits: Path | None,
    split: str,
    form: tuple[str, str],
    prefix: str,
    left_out: Counter[str],
) -> Iterator[Row]:
    """The problems of a split, in the order of its list; of all, in the order of the file."""
    if splits is None:
        for name, problem in _objects(problems):
            if split in ("all", problem.get("split")):
                yield from _one(name, problem, form, prefix, left_out)
        return
    table = dict(_objects(problems))
    for name in _names(splits, split):
        if name not in table:
            left_out["in the split, and not in the problems"] += 1
        else:
            yield from _one(name, table[name], form, prefix, left_out)


def _one(
    name: str, problem: Row, form: tuple[str, str], prefix: str, left_out: Counter[str]
) -> Iterator[Row]:
    reason = _fault(problem)
    if reason is not None:
        left_out[reason] += 1
        return
    question, answer = texts(problem, *form)
    image = problem.get("image")
    if not image:
        turns = [question, answer]
        yield _sample(name, None, turns)
        return
    path = f"{prefix}{problem.get('split') or 'train'}/{name}/{image}"
    if not isinstance(image, str) or not (stays_inside(image) and stays_inside(path)):
        left_out["picture outside the folder"] += 1
        return
    yield _sample(name, path, [f"{question}\n<image>", answer])


def texts(problem: Row, first: str, second: str) -> tuple[str, str]:
    """Question and answer of a problem in a format."""
    lecture = _flat(problem.get("lecture"))
    solution = _flat(problem.get("solution"))
    question = f"Question: {_flat(problem['question'])}"
    context = f"Context: {_flat(problem.get('hint')) or 'N/A'}"
    options = "Options: " + " ".join(
        f"({LETTERS[i]}) {_flat(choice)}" for i, choice in enumerate(problem["choices"])
    )
    given = {"L": lecture, "E": solution}
    because = " ".join(given[key] for key in first if key in given)
    head = [context, question] if first.startswith("CQ") else [question, context]
    reasons = [f"BECAUSE: {because}"] if set(first) & set("LE") else []
    between = first.index("M") > min((first.find(key) for key in "LE" if key in first), default=9)
    parts = [*head, *reasons, options] if between else [*head, options, *reasons]
    text = _tidy("\n".join(parts)).removeprefix("Question: ")
    return text, _tidy(_answer(problem, second, lecture, solution))


def _answer(problem: Row, form: str, lecture: str, solution: str) -> str:
    letter = LETTERS[problem["answer"]]
    said = f"The answer is {letter}."
    if form == "LEPA":
        return f"LECTURE: {lecture}\nSOLUTION: {solution}\n###\nANSWER: {letter}."
    if form == "A":
        return said
    # In the published data these two are the other way round.
    because = {
        "AL": solution, "AE": lecture, "ALE": f"{lecture} {solution}",
        "AEL": f"{solution} {lecture}", "LA": lecture, "EA": solution,
        "LEA": f"{lecture} {solution}", "ELA": f"{solution} {lecture}",
    }[form]  # fmt: skip
    return f"{said} BECAUSE: {because}" if form[0] == "A" else f"{because} {said}"


def _flat(value: Any) -> str:
    """One line: line ends as a literal backslash-n, as the published data has them."""
    return value.strip().replace("\n", "\\n") if isinstance(value, str) else ""


def _tidy(text: str) -> str:
    return re.sub(r"  +", " ", text).strip()


def _fault(problem: Row) -> str | None:
    choices, answer = problem.get("choices"), problem.get("answer")
    if not isinstance(problem.get("question"), str) or not problem["question"].strip():
        return "no question"
    if not isinstance(choices, list) or not 0 < len(choices) <= len(LETTERS):
        return "no choices"
    whole = isinstance(answer, int) and not isinstance(answer, bool)
    if not whole or not 0 <= int(answer) < len(choices):  # type: ignore[arg-type]
        return "no answer"
    return None


def _sample(name: str, image: str | None, turns: list[str]) -> Row:
    rows = [{"from": "human", "value": turns[0]}, {"from": "gpt", "value": turns[1]}]
    picture = {} if image is None else {"image": image}
    return {"id": name, **picture, "conversations": rows}


def _objects(problems: Path) -> Iterator[tuple[str, Row]]:
    for name, problem in fields(problems, _Everything()):
        if not isinstance(problem, dict):
            raise DataError(f"{problems}: problem {name} is not an object", _HINT)
        yield name, problem


def _names(splits: Path, split: str) -> list[str]:
    try:
        table = json.loads(splits.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{splits} cannot be read: {error}", _HINT) from error
    if not isinstance(table, dict) or not isinstance(table.get(split), list):
        known = ", ".join(table) if isinstance(table, dict) else "none"
        raise UsageError(f"{splits} has no split {split}", f"it has: {known}")
    return [str(name) for name in table[split]]


class _Everything(frozenset[str]):
    """Every key is wanted."""

    def __contains__(self, key: object) -> bool:
        return True
