"""ScienceQA: multiple choice in nine columns; a reply that names no option is wrong, never guessed.

Reads LLaVA's rows, upstream's summary file (`results`, `outputs`) and its detail file (`correct`,
`incorrect`). Not here: the prompts (`scienceqa_prompts`), ensembles (`ensemble`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_cli.errors import DataError, UsageError
from llava_cli.evals.rows import (
    Row,
    canonical,
    first_character,
    is_json_lines,
    read_json,
    read_object,
    read_rows,
    row_id,
    row_text,
    stream_object,
)
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
    needed,
    prediction_files,
)

RULE = "a letter; or `X. ` in front; or exactly one `The answer is X` and a character; else wrong"
MISSING = "counted as wrong"
FILES = ("problems.json", "*problems*.json")
LETTERS = "ABCDE"
SUBJECTS = {"natural science": "nat", "social science": "soc", "language science": "lan"}
COLUMNS = ("nat", "soc", "lan", "txt", "img", "no", "g1_6", "g7_12", "avg")
_STATED = re.compile(r"The answer is ([A-Z]).")


@dataclass(frozen=True)
class Problem:
    """One problem."""

    key: Any
    row: Row
    answer: int
    choices: int

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the published table that it counts in."""
        data = self.row.data
        has_text, has_image = bool(data.get("hint")), bool(data.get("image"))
        found = [SUBJECTS.get(str(data.get("subject")), "")]
        found += ["txt"] * has_text + ["img"] * has_image
        found += ["no"] * (not has_text and not has_image)
        grade = re.fullmatch(r"grade(\d+)", str(data.get("grade", "")))
        if grade:
            found.append("g1_6" if int(grade[1]) <= 6 else "g7_12")
        return tuple(name for name in found if name)


def parse(text: str) -> str | None:
    """The letter of a reply; None where it names none."""
    if len(text) == 1 and text in LETTERS:
        return text
    if len(text) >= 3 and text[0] in LETTERS and text[1:3] == ". ":
        return text[0]
    stated = _STATED.findall(text)
    return stated[0] if len(stated) == 1 else None


def choice(text: str, choices: int) -> int | None:
    """The index of the option a reply names; None for none, and for a letter beyond the options."""
    letter = parse(text)
    index = LETTERS.find(letter) if letter else -1
    return index if 0 <= index < choices else None


def problems(inputs: Inputs) -> list[Problem]:
    """The problems of the split: by --splits, else by their own `split`."""
    files = find(needed(inputs.annotations, FILES[0]), *FILES)
    splits = inputs.splits or _beside(inputs.annotations)
    problem_file = next((f for f in files if f != splits), None)
    if problem_file is None:
        raise UsageError("--annotations names only the splits", "give problems.json, too")
    found = {key: _problem(key, row) for key, row in stream_object(problem_file)}
    if splits is None:
        own = [p for p in found.values() if p.row.data.get("split") == inputs.split]
        return own or list(found.values())
    table = read_object(splits)
    if not isinstance(table.get(inputs.split), list):
        raise UsageError(
            f"{splits}: has no split {inputs.split!r}", f"known: {', '.join(sorted(table))}"
        )
    keys = [canonical(name) for name in table[inputs.split]]
    absent = [key for key in keys if key not in found]
    if absent:
        raise DataError(
            f"{problem_file}: {len(absent)} problems of the split are not there, {absent[0]} first",
            "problems and splits must be of one release",
        )
    return [found[key] for key in keys if key is not None]


def _beside(paths: tuple[Path, ...]) -> Path | None:
    """pid_splits.json among the annotations, or in the folder given."""
    for path in paths:
        if path.is_dir() and (path / "pid_splits.json").is_file():
            return path / "pid_splits.json"
        if path.is_file() and path.name.startswith("pid_splits"):
            return path
    return None


def _problem(key: Any, row: Row) -> Problem:
    answer, choices = row.data.get("answer"), row.data.get("choices")
    if not isinstance(choices, list) or not isinstance(answer, int):
        raise row.bad(f"problem {key} has no choices or no answer", "give problems.json")
    return Problem(key, row, answer, len(choices))


def verdicts(inputs: Inputs, notes: Notes) -> Iterator[Verdict]:
    """One verdict a problem of the split."""
    items = problems(inputs)
    answers: dict[Any, Answer] = {}
    stored: dict[Any, int] = {}
    for path in prediction_files(inputs.predictions):
        read(path, answers, stored, notes)
    if inputs.use_stored and not stored:
        raise UsageError("--use-stored: the predictions hold no stored results", "leave it out")
    for item in items:
        yield _verdict(item, answers, stored if inputs.use_stored else None, inputs.lenient)
    leftovers(answers, notes)


def _verdict(
    item: Problem, answers: dict[Any, Answer], stored: dict[Any, int] | None, lenient: bool
) -> Verdict:
    gold, columns = LETTERS[item.answer], item.columns
    answer = answers.pop(item.key, None)
    text = answer.text if answer else None
    if stored is not None:
        index = stored.get(item.key)
        if index is None:
            return Verdict(item.key, gold, text, None, 0.0, "missing", columns)
        text = text if text is not None else ""
    elif text is None:
        return Verdict(item.key, gold, None, None, 0.0, "missing", columns)
    else:
        index = choice(text, item.choices)
        if index is None and lenient:
            index = LETTERS.find(lenient_letter(text, LETTERS) or "-")
    if index is None or not 0 <= index < item.choices:
        return Verdict(item.key, gold, text, None, 0.0, "unparsable", columns)
    right = index == item.answer
    reason = judged(right)
    return Verdict(item.key, gold, text, LETTERS[index], float(right), reason, columns)


def metrics(items: Iterable[Verdict]) -> dict[str, float]:
    """`accuracy`, `image_accuracy`, and the nine columns of the published table."""
    means = Mean()
    for item in items:
        means.add("avg", item.score)
        for column in item.groups:
            means.add(column, item.score)
    found = {"accuracy": means.percent("avg")}
    if "img" in means:
        found["image_accuracy"] = means.percent("img")
    return found | {name: means.percent(name) for name in COLUMNS if name in means}


def read(path: Path, answers: dict[Any, Answer], stored: dict[Any, int], notes: Notes) -> None:
    """One file of predictions, in any of its three forms."""
    if first_character(path) == "{" and not is_json_lines(path):
        document = read_json(path)
        if isinstance(document, Mapping) and "outputs" in document:
            _summary(document, path, answers, stored)
            return
        if isinstance(document, Mapping) and "correct" in document and "incorrect" in document:
            rows = [
                Row({"question_id": r.get("question_id"), "text": r.get("pred")}, path, n, "item")
                for n, r in enumerate([*document["correct"], *document["incorrect"]], 1)
                if isinstance(r, dict)
            ]
            _merge(rows, answers, notes)
            return
        raise DataError(
            f"{path}: neither rows nor upstream's summary (results, outputs)",
            "give LLaVA's answers, or the file of --output-result",
        )
    _merge(read_rows(path), answers, notes)


def _merge(rows: Iterable[Row], answers: dict[Any, Answer], notes: Notes) -> None:
    found = answer_map(
        rows, lambda r: row_id(r, "question_id", "id"), lambda r: row_text(r, "text", "pred"), notes
    )
    for key, answer in found.items():
        before = answers.setdefault(key, answer)
        if before.text != answer.text:
            raise DataError(
                f"{answer.where}: a second answer to {key!r}, different from {before.where}",
                "an item may be answered once: remove one of the rows",
            )


def _summary(
    document: Mapping[str, Any], path: Path, answers: dict[Any, Answer], stored: dict[Any, int]
) -> None:
    """Upstream's summary: raw texts, and the indices that were scored when it was written."""
    for number, (name, text) in enumerate(dict(document["outputs"]).items(), 1):
        row = Row({"question_id": name, "text": text}, path, number, "output")
        answers[canonical(name)] = Answer(row_text(row, "text"), path, number, "output")
    for number, (name, index) in enumerate(dict(document.get("results") or {}).items(), 1):
        if index is None:
            index = -1
        if isinstance(index, bool) or not isinstance(index, int):
            raise Row({}, path, number, "result").bad(f"{index!r} is not the index of an option")
        stored[canonical(name)] = index
