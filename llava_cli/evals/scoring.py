"""What every scorer takes and gives: inputs, verdicts on items, metrics, counts, remarks.

A benchmark's module has `verdicts(inputs, notes)`, one verdict an item of the gold, and
`metrics(verdicts)`; both are pure. `score` runs the second over the first, so that a million items
pass without being held. Not here: any benchmark, any printing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import fsum
from pathlib import Path
from statistics import StatisticsError
from typing import Any, Literal, NamedTuple, Protocol

from llava_cli.errors import DataError, UsageError
from llava_cli.evals.rows import Key, Row, read_rows

Reason = Literal["match", "partial", "no match", "unparsable", "missing", "excluded"]
Join = Literal["auto", "llava", "m4c"]


class Verdict(NamedTuple):
    """What became of one item."""

    key: Any
    """The item's id, as the gold has it."""
    gold: Any
    text: str | None
    """The raw answer; None where there is none."""
    parsed: Any
    """What the scorer understood; None where it understood nothing."""
    score: float
    """0 to 1."""
    reason: Reason
    groups: tuple[str, ...] = ()
    extra: Any = None
    """What only this benchmark's `metrics` needs."""

    def row(self) -> dict[str, Any]:
        """One line of `--details`."""
        return {
            "question_id": self.key,
            "gold": self.gold,
            "text": self.text,
            "parsed": self.parsed,
            "score": self.score,
            "correct": self.score == 1.0,
            "reason": self.reason,
            "groups": list(self.groups),
        }


class Notes:
    """Remarks on the data, counted, each with the first place where it was met."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, str]] = {}

    def add(self, problem: str, where: str = "", count: int = 1) -> None:
        """One more case of `problem` (a text that reads on after a number)."""
        seen, first = self._found.get(problem, (0, where))
        self._found[problem] = (seen + count, first)

    def texts(self) -> list[str]:
        """For people."""
        return [
            f"{count} {problem}" + (f" (first: {where})" if where else "")
            for problem, (count, where) in self._found.items()
        ]


@dataclass(frozen=True)
class Inputs:
    """The files of one scoring, and how to read them."""

    predictions: tuple[Path, ...]
    annotations: tuple[Path, ...] = ()
    questions: Path | None = None
    splits: Path | None = None
    split: str = "test"
    use_stored: bool = False
    join: Join = "auto"
    answered_only: bool = False
    lenient: bool = False
    """Also read answers leniently, where a benchmark has a rule for that."""


class Counts(NamedTuple):
    """How many items there were, and what became of them."""

    expected: int
    answered: int
    missing: int
    unparsable: int


@dataclass(frozen=True)
class Result:
    """What `llava eval score --json` prints."""

    benchmark: str
    metrics: Mapping[str, float]
    """Percentages are 0-100, unrounded."""
    counts: Counts
    protocol: Mapping[str, Any] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "benchmark": self.benchmark,
            "metrics": dict(self.metrics),
            "counts": self.counts._asdict(),
            "protocol": dict(self.protocol),
        }


class Scorer(Protocol):
    """A benchmark's module."""

    @property
    def RULE(self) -> str:
        """How answers are read and compared, in one line."""
        ...

    @property
    def MISSING(self) -> str:
        """What becomes of items without a prediction: `counted as wrong` or `left out`."""
        ...

    def verdicts(self, inputs: Inputs, notes: Notes) -> Iterator[Verdict]: ...

    def metrics(self, items: Iterable[Verdict]) -> dict[str, float]: ...


def score(
    name: str, scorer: Scorer, inputs: Inputs, sink: Callable[[Verdict], None] | None = None
) -> Result:
    """Score predictions; `sink` gets every verdict. DataError where a file cannot be used."""
    notes = Notes()
    strict = replace(inputs, lenient=False)
    counted = _Counter(inputs.answered_only, sink)
    nothing = DataError(
        f"{', '.join(map(str, inputs.predictions))}: no prediction for any item of the gold",
        "check that predictions and annotations belong together",
    )
    try:
        metrics = scorer.metrics(counted.watch(scorer.verdicts(strict, notes)))
    except (StatisticsError, ZeroDivisionError) as error:  # a mean of nothing
        raise nothing from error
    counts = counted.counts()
    if counts.answered == 0:
        raise nothing
    if inputs.lenient:
        metrics |= _lenient(scorer, inputs)
    if counts.missing:
        how = "left out" if inputs.answered_only else scorer.MISSING
        notes.add(f"of {counts.expected} items have no prediction: {how}", count=counts.missing)
    protocol: dict[str, Any] = {"rule": scorer.RULE}
    if inputs.answered_only:
        protocol["answered_only"] = True
    protocol["warnings"] = notes.texts()
    return Result(name, metrics, counts, protocol)


def _lenient(scorer: Scorer, inputs: Inputs) -> dict[str, float]:
    """The same figures with answers read leniently, named so."""
    counted = _Counter(inputs.answered_only, None)
    found = scorer.metrics(counted.watch(scorer.verdicts(inputs, Notes())))
    return {f"lenient_{name}": value for name, value in found.items()}


def lenient_letter(text: str, letters: str = "ABCD") -> str | None:
    """The one letter that stands by itself in a text; None where there are several, or none."""
    found = set(re.findall(rf"(?<![A-Za-z])[{letters}](?![A-Za-z])", text))
    return found.pop() if len(found) == 1 else None


def lenient_yes_no(text: str) -> str | None:
    """The first yes or no among a text's words."""
    match = re.search(r"\b(yes|no)\b", text, re.IGNORECASE)
    return match[1].lower() if match else None


class _Counter:
    """Counts verdicts as they pass."""

    def __init__(self, answered_only: bool, sink: Callable[[Verdict], None] | None) -> None:
        self._answered_only = answered_only
        self._sink = sink
        self._all = self._missing = self._unparsable = 0

    def watch(self, items: Iterable[Verdict]) -> Iterator[Verdict]:
        sink = self._sink
        for item in items:
            self._all += 1
            if item.reason == "missing":
                self._missing += 1
            elif item.reason == "unparsable":
                self._unparsable += 1
            if sink is not None:
                sink(item)
            if self._answered_only and item.reason == "missing":
                continue
            yield item

    def counts(self) -> Counts:
        return Counts(self._all, self._all - self._missing, self._missing, self._unparsable)


def judged(right: bool) -> Reason:
    """The reason for a verdict of right or wrong."""
    return "match" if right else "no match"


def graded(score: float) -> Reason:
    """The reason for a verdict between 0 and 1."""
    return "match" if score == 1 else "partial" if score > 0 else "no match"


class Mean:
    """Means by group, exact whatever the order: equal scores are counted, then summed."""

    def __init__(self) -> None:
        self._groups: dict[str, dict[float, int]] = {}

    def add(self, group: str, value: float) -> None:
        """One more item."""
        counts = self._groups.setdefault(group, {})
        counts[value] = counts.get(value, 0) + 1

    def __contains__(self, group: str) -> bool:
        return group in self._groups

    def percent(self, group: str) -> float:
        """100 x the mean; 0 for a group without items."""
        counts = self._groups.get(group, {})
        n = sum(counts.values())
        if all(value in (0.0, 1.0) for value in counts):
            return 100.0 * counts.get(1.0, 0) / n if n else 0.0
        return 100.0 * fsum(value * count for value, count in counts.items()) / n

    def percents(self) -> dict[str, float]:
        """Of every group, in the order met."""
        return {group: self.percent(group) for group in self._groups}


def grouped(items: Iterable[Verdict], prefix: str = "accuracy") -> dict[str, float]:
    """`accuracy` of all items and `accuracy_GROUP` of each group."""
    means = Mean()
    for item in items:
        means.add("", item.score)
        for group in item.groups:
            means.add(group, item.score)
    groups = sorted(group for group in means.percents() if group)
    return {
        prefix: means.percent(""),
        **{f"{prefix}_{metric_name(group)}": means.percent(group) for group in groups},
    }


def metric_name(text: str) -> str:
    """A group's name as part of a metric's: lower case, words joined by _."""
    return "_".join("".join(c if c.isalnum() else " " for c in text.lower()).split())


class Answer(NamedTuple):
    """A prediction's text and its place; small, for there may be millions."""

    text: str
    path: Path
    number: int
    unit: str

    @property
    def where(self) -> str:
        """For messages."""
        return f"{self.path}, {self.unit} {self.number}"


Answers = dict[Key, Answer]


def answer_map(
    rows: Iterable[Row],
    key: Callable[[Row], Any],
    text: Callable[[Row], str],
    notes: Notes,
) -> dict[Any, Answer]:
    """Key to answer. The same answer twice is remarked on; two answers to one item are an error."""
    found: dict[Any, Answer] = {}
    for row in rows:
        name, said = key(row), text(row)
        if name not in found:
            found[name] = Answer(said, row.path, row.number, row.unit)
            continue
        before = found[name]
        if before.text != said:
            raise row.bad(
                f"a second answer to {name!r}, different from {before.where}",
                "an item may be answered once: remove one of the rows",
            )
        notes.add("rows repeat an earlier row; used once", row.where)
    return found


def leftovers(answers: Mapping[Any, Answer], notes: Notes) -> None:
    """Remark on answers that no item of the gold has taken."""
    if answers:
        first = next(iter(answers.values()))
        notes.add(
            "predictions have ids that the annotations do not", first.where, count=len(answers)
        )


def needed(paths: tuple[Path, ...], what: str) -> tuple[Path, ...]:
    """The annotations, which this benchmark cannot do without."""
    if not paths:
        raise UsageError(f"--annotations is missing: {what}", "see llava eval ls")
    return paths


def find(paths: tuple[Path, ...], *patterns: str) -> list[Path]:
    """The files given, with folders replaced by the files in them that match a pattern."""
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        inside = next((sorted(path.glob(p)) for p in patterns if any(path.glob(p))), [])
        if not inside:
            raise DataError(
                f"{path}: holds no {' or '.join(patterns)}", "give the file itself, or its folder"
            )
        found.extend(inside)
    return found


def prediction_files(paths: tuple[Path, ...]) -> list[Path]:
    """The predictions given, with folders replaced by the files of one kind in them."""
    own = ("predictions*.jsonl", "reviews*.jsonl", "grades.json", "ratings*.jsonl")
    return find(paths, *own, "*.jsonl", "*.json", "*.csv", "*.tsv", "*.xlsx")


def prediction_rows(inputs: Inputs, member: str | None = None) -> Iterator[Row]:
    """All rows of all prediction files."""
    for path in prediction_files(inputs.predictions):
        yield from read_rows(path, member)
