"""LLaVA-Bench (COCO and In-the-Wild): a judge's scores of candidate against reference.

A category's score is a ratio of means, 100 x mean(candidate) / mean(reference), not a mean of
ratios. Reviews that could not be read are left out and counted; upstream averages their -1 in.
Several files are several runs. Not here: asking the judge (`judging`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

from llava_cli.evals.rows import Row, read_rows, row_id
from llava_cli.evals.scoring import Inputs, Notes, Verdict, find, metric_name, prediction_files

RULE = "first line of the review: two numbers; 100 x mean(candidate) / mean(reference)"
MISSING = "left out"
FAILED = (-1.0, -1.0)


def parse_review(text: str) -> tuple[float, float]:
    """The two numbers of a review's first line; (-1, -1) where there are not exactly two."""
    parts = text.split("\n")[0].replace(",", " ").split(" ")
    if len(parts) != 2:
        return FAILED
    try:
        first, second = float(parts[0]), float(parts[1])
    except ValueError:
        return FAILED
    if first != first or second != second or abs(first) + abs(second) == float("inf"):
        return FAILED
    return first, second


def category_of(name: Any) -> str:
    """conv, detail or complex; the names of In-the-Wild's rules carry a prefix."""
    return str(name).removeprefix("llava_bench_")


def verdicts(inputs: Inputs, notes: Notes) -> Iterator[Verdict]:
    """One verdict a review; with --annotations (the questions), one for each that lacks one."""
    expected = {
        row_id(row, "question_id"): row
        for path in find(inputs.annotations, "questions.jsonl", "*question*.jsonl")
        for row in read_rows(path)
    }
    runs = prediction_files(inputs.predictions)
    for number, path in enumerate(runs):
        seen: dict[Any, Row] = {}
        for row in read_rows(path):
            key = row_id(row, "question_id", "id")
            run = _run(row, number)
            if (key, run) in seen:
                raise row.bad(
                    f"question {key!r} again, first in {seen[key, run].where}",
                    "one review a question and run",
                )
            seen[key, run] = row
            if expected and key not in expected:
                notes.add("reviews are of questions that the annotations lack", row.where)
                continue
            yield _verdict(key, row, run, notes)
        for key, question in expected.items():
            if not any(known == key for known, _ in seen):
                group = category_of(question.data.get("category", ""))
                yield Verdict(key, None, None, None, 0.0, "missing", (group,), number)


def _run(row: Row, number: int) -> int:
    run = row.data.get("run", number)
    return run if isinstance(run, int) else number


def _verdict(key: Any, row: Row, run: int, notes: Notes) -> Verdict:
    pair = _pair(row)
    content = row.data.get("content")
    if isinstance(content, str) and pair != FAILED and parse_review(content) not in (pair, FAILED):
        notes.add("reviews say other numbers than their tuple; the tuple counts", row.where)
    groups = (category_of(row.data.get("category", "")),)
    text = content if isinstance(content, str) else str(list(pair))
    if pair[0] < 0 or pair[1] < 0:
        return Verdict(key, None, text, None, 0.0, "unparsable", groups, run)
    score = min(1.0, pair[1] / pair[0]) if pair[0] else 0.0
    return Verdict(key, pair[0], text, list(pair), score, "match", groups, run)


def _pair(row: Row) -> tuple[float, float]:
    for name in ("tuple", "score"):
        value = row.data.get(name)
        if isinstance(value, list) and len(value) == 2:
            if all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in value):
                return float(value[0]), float(value[1])
            raise row.bad(f"{name} is {value!r}, not two numbers")
    content = row.data.get("content")
    if isinstance(content, str):
        return parse_review(content)
    raise row.bad("tuple and content are missing", "give the judge's reviews")


def metrics(items: Iterable[Verdict]) -> dict[str, float]:
    """`relative_score`, by category, the two means x 10, and each run's score."""
    pairs: dict[str, list[tuple[float, float]]] = {"": []}
    runs: dict[Any, list[tuple[float, float]]] = {}
    for item in items:
        if item.parsed is None:
            continue
        pair = (item.parsed[0], item.parsed[1])
        pairs[""].append(pair)
        runs.setdefault(item.extra, []).append(pair)
        if item.groups[0]:
            pairs.setdefault(metric_name(item.groups[0]), []).append(pair)
    scores = {run: _relative(found) for run, found in sorted(runs.items())}
    found = {"relative_score": fmean(scores.values()) if scores else 0.0}
    for name, group in pairs.items():
        suffix = f"_{name}" if name else ""
        if group:
            found[f"relative_score{suffix}"] = (
                found["relative_score"] if not name else _relative(group)
            )
            found[f"reference_mean{suffix}"] = 10.0 * fmean(a for a, _ in group)
            found[f"candidate_mean{suffix}"] = 10.0 * fmean(b for _, b in group)
    if len(scores) > 1:
        found |= {f"relative_score_run_{n}": s for n, s in enumerate(scores.values(), 1)}
    return found


def _relative(pairs: list[tuple[float, float]]) -> float:
    reference = fmean(a for a, _ in pairs)
    return 100.0 * fmean(b for _, b in pairs) / reference if reference else 0.0


def questions(path: Path) -> list[Row]:
    """The questions of a question file."""
    return list(read_rows(path))
