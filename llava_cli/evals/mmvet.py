"""MM-Vet: a judge's grades of 0 to 1, their mean x 100 over items and runs.

Reads the organisers' grade file, a table with one row an item, and the organisers' table of
capability scores, which holds results and no items. Not here: asking the judge (`judging`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from llava_cli.errors import DataError
from llava_cli.evals.rows import (
    Row,
    first_character,
    is_json_lines,
    is_workbook,
    read_object,
    read_rows,
    row_id,
)
from llava_cli.evals.scoring import Inputs, Notes, Verdict, find, graded, prediction_files

RULE = "mean of the judge's grades over items and runs, x 100; an item without a grade is 0"
MISSING = "counted as 0"
CAPABILITIES = ("rec", "ocr", "know", "gen", "spat", "math")
_SCORE_COLUMN = re.compile(r"(?:score|run)[ _]?\d*", re.IGNORECASE)


def name_of(key: Any) -> str:
    """v1_7 for 7, "7" and "v1_7"."""
    return f"v1_{key}" if isinstance(key, int) else str(key)


def gold_of(inputs: Inputs) -> dict[str, Mapping[str, Any]]:
    """The organisers' items by name."""
    found: dict[str, Mapping[str, Any]] = {}
    for path in find(inputs.annotations, "mm-vet.json", "*.json"):
        for name, item in read_object(path).items():
            if not isinstance(item, dict):
                raise DataError(f"{path}: {name} is no item", "give mm-vet.json")
            found[name] = item
    return found


def verdicts(inputs: Inputs, notes: Notes) -> Iterator[Verdict]:
    """One verdict an item; its grades are `parsed`."""
    files = prediction_files(inputs.predictions)
    if len(files) == 1 and (stored := _capability_table(files[0])):
        notes.add("table of results, with no items to count", str(files[0]))
        yield Verdict("table", None, "", stored, 0.0, "match", (), stored)
        return
    gold = gold_of(inputs)
    grades: dict[str, tuple[list[float], Any]] = {}
    for path in files:
        for name, scores, text in _grades(path):
            if name in grades:
                raise DataError(f"{path}: {name} is graded twice", "one entry an item")
            grades[name] = (scores, text)
    lengths = {len(scores) for scores, _ in grades.values()}
    if len(lengths) > 1:
        short = sum(len(scores) < max(lengths) for scores, _ in grades.values())
        notes.add(f"items have fewer than {max(lengths)} grades", count=short)
    for name in gold or grades:
        capabilities = gold.get(name, {}).get("capability") or ()
        groups = tuple(sorted(set(map(str, capabilities))))
        answer = gold.get(name, {}).get("answer")
        if name not in grades:
            yield Verdict(name, answer, None, None, 0.0, "missing", groups)
            continue
        scores, text = grades.pop(name)
        score = fmean(scores)
        reason = "unparsable" if _failed(text) else graded(score)
        yield Verdict(name, answer, str(text), scores, score, reason, groups)
    if grades and gold:
        notes.add("grades are of items that the annotations lack", next(iter(grades)), len(grades))


def metrics(items: Iterable[Verdict]) -> dict[str, float]:
    """`mean_score`, `std` over runs, each run, each capability and set of capabilities."""
    items = list(items)
    if items and isinstance(items[0].extra, dict):
        return dict(items[0].extra)
    rows = [(item.parsed or [0.0], item.score, item.groups) for item in items]
    runs = max((len(scores) for scores, _, _ in rows), default=1)
    # An item with fewer grades than runs enters the later ones with their mean.
    totals = [
        100.0 * fmean(s[run] if run < len(s) else mean for s, mean, _ in rows)
        for run in range(runs)
    ]
    found = {"mean_score": 100.0 * fmean(mean for _, mean, _ in rows), "std": pstdev(totals)}
    if runs > 1:
        found |= {f"mean_score_run_{n}": total for n, total in enumerate(totals, 1)}
    for name in CAPABILITIES:
        scores = [mean for _, mean, groups in rows if name in groups]
        if scores:
            found[name] = 100.0 * fmean(scores)
    sets = sorted({groups for _, _, groups in rows if groups}, key=lambda g: (len(g), g))
    for group in sets:
        scores = [mean for _, mean, groups in rows if groups == group]
        found["set_" + "_".join(group)] = 100.0 * fmean(scores)
    return found


def _capability_table(path: Path) -> dict[str, float]:
    """The figures of the organisers' table of scores by capability, of one model."""
    if not is_workbook(path) and first_character(path) in ("{", "["):
        return {}
    rows = list(read_rows(path))
    if not rows or "total" not in rows[0].data:
        return {}
    if len(rows) > 1:
        raise rows[1].bad("a second model", "give a table of one model")
    found: dict[str, float] = {}
    for name, cell in rows[0].data.items():
        text = str(cell).strip()
        if name == "runs":
            runs = re.findall(r"\d+(?:\.\d+)?", text)
            if len(runs) > 1:
                found |= {f"mean_score_run_{n}": float(run) for n, run in enumerate(runs, 1)}
        elif re.fullmatch(r"-?\d+(?:\.\d+)?", text):
            names = {"total": "mean_score", "std": "std"}
            default = name if name in CAPABILITIES else f"set_{name}"
            found[names.get(name, default)] = float(text)
    return {"mean_score": found.pop("mean_score"), **found}


def _failed(content: Any) -> bool:
    """Whether the judge gave no number in one of the runs, which was then graded 0."""
    replies = content if isinstance(content, list) else []
    return any(read_grade(str(reply)) is None for reply in replies)


def read_grade(text: str) -> float | None:
    """One number in [0, 1]; None for anything else."""
    try:
        grade = float(text.strip())
    except ValueError:
        return None
    return grade if 0.0 <= grade <= 1.0 else None


def _grades(path: Path) -> Iterator[tuple[str, list[float], Any]]:
    """Name, one grade a run, and the judge's words, from any of the forms."""
    if not is_workbook(path) and first_character(path) == "{" and not is_json_lines(path):
        for number, (name, entry) in enumerate(read_object(path).items(), 1):
            row = Row(entry if isinstance(entry, dict) else {"score": entry}, path, number, "item")
            yield _graded(name, row)
        return
    for row in read_rows(path):
        if not any(name in row.data for name in ("question_id", "id", "index", "name")):
            raise row.bad(
                "is no grade of an item: it names none",
                "give the judge's grade file; a table of capability scores holds no items",
            )
        key = row_id(row, "question_id", "id", "index", "name")
        yield _graded(name_of(key), row)


def _graded(name: str, row: Row) -> tuple[str, list[float], Any]:
    value = row.data.get("score")
    if value is None:
        value = [
            v for k, v in row.data.items() if _SCORE_COLUMN.fullmatch(k) and v not in ("", None)
        ]
    if not isinstance(value, list):
        value = [value]
    try:
        scores = [float(v) for v in value]
    except (TypeError, ValueError) as error:
        raise row.bad(f"the grades of {name} are {value!r}") from error
    if not scores:
        raise row.bad(
            f"{name} has no grade", "predictions are graded by a judge first: llava eval judge"
        )
    if not all(0.0 <= score <= 1.0 for score in scores):
        raise row.bad(f"{name} has a grade outside 0 to 1: {value!r}")
    return name, scores, row.data.get("content", "")
