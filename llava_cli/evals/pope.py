"""POPE: is there such an object? Three splits, the mean of their F1 is reported.

Answers are joined on (split, picture, object), because revisions differ in order, number and
spelling; ids restart in each of the organisers' files and are LLaVA's own in LLaVA's.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from llava_cli.errors import DataError
from llava_cli.evals.rows import Key, Row, read_rows, row_id, row_text
from llava_cli.evals.scoring import (
    Answer,
    Inputs,
    Notes,
    Verdict,
    find,
    judged,
    leftovers,
    lenient_yes_no,
    needed,
    prediction_files,
)

RULE = "first sentence without commas; any word of No, not, no is no, all else yes"
MISSING = "left out"
FILES = ("coco_pope_*.json", "*pope*.json", "*pope*.jsonl")
SPLITS = ("random", "popular", "adversarial")
_OBJECT = re.compile(r"\bis there (?:an?\s+)?(.+?) in the im", re.IGNORECASE)
_TEXTS = ("text", "answer")


def parse(text: str) -> str:
    """Yes or no, as POPE reads it: an empty answer is yes, and so is NO."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if any(word in ("No", "not", "no") for word in words) else "yes"


def asked_for(question: str) -> str:
    """The object a question asks for."""
    match = _OBJECT.search(question)
    return (match[1] if match else question.split("\n")[0]).strip().lower()


class Item(NamedTuple):
    """One question of the gold."""

    split: str
    image: str
    object: str
    label: str
    key: Any


def split_of(path: Path) -> str:
    """The split, which only the organisers' file names tell."""
    found = [name for name in SPLITS if name in path.stem]
    return found[0] if len(found) == 1 else path.stem.split("pope_")[-1]


def gold_items(paths: Iterable[Path]) -> list[Item]:
    """All questions of all splits."""
    items = []
    for path in paths:
        for row in read_rows(path):
            label = row_text(row, "label").strip().lower()
            if label not in ("yes", "no"):
                raise row.bad(f"label is {label!r}, neither yes nor no")
            question = row_text(row, "text", "question")
            image = Path(row_text(row, "image")).name
            key = row.data.get("question_id", row.number)
            items.append(Item(split_of(path), image, asked_for(question), label, key))
    return items


def verdicts(inputs: Inputs, notes: Notes) -> Iterator[Verdict]:
    """One verdict a question, split by split."""
    files = find(needed(inputs.annotations, FILES[0]), *FILES)
    asked = inputs.questions or next((path for path in files if _asks(path)), None)
    gold = gold_items(path for path in files if path != asked)
    answers = _Joined(inputs, gold, notes, asked).answers
    for item in gold:
        waiting = answers.get(item[:3])
        key, groups = f"{item.split}/{item.key}", (item.split,)
        if not waiting:
            yield Verdict(key, item.label, None, None, 0.0, "missing", groups)
            continue
        answer = waiting.pop(0) if len(waiting) > 1 else waiting[0]
        said = (inputs.lenient and lenient_yes_no(answer.text)) or parse(answer.text)
        right = said == item.label
        reason = judged(right)
        yield Verdict(key, item.label, answer.text, said, float(right), reason, groups)


def metrics(items: Iterable[Verdict]) -> dict[str, float]:
    """`f1_mean`, `accuracy`, and per split F1, accuracy, precision, recall, yes ratio, counts."""
    table: dict[str, dict[tuple[str, str], int]] = {}
    for item in items:
        if item.parsed is not None:
            cell = table.setdefault(item.groups[0], defaultdict(int))
            cell[item.parsed, item.gold] += 1
    found: dict[str, float] = {}
    f1s, right, total = [], 0, 0
    for split, cell in table.items():
        tp, fp = cell["yes", "yes"], cell["yes", "no"]
        tn, fn = cell["no", "no"], cell["no", "yes"]
        n = tp + fp + tn + fn
        f1s.append(_share(2 * tp, 2 * tp + fp + fn))
        found[f"{split}_f1"] = f1s[-1]
        found[f"{split}_accuracy"] = _share(tp + tn, n)
        found[f"{split}_precision"] = _share(tp, tp + fp)
        found[f"{split}_recall"] = _share(tp, tp + fn)
        found[f"{split}_yes_ratio"] = _share(tp + fp, n)
        counts = {"tp": tp, "fp": fp, "tn": tn, "fn": fn}
        found |= {f"{split}_{name}": float(count) for name, count in counts.items()}
        right, total = right + tp + tn, total + n
    mean = sum(f1s) / len(f1s) if f1s else 0.0
    return {"f1_mean": mean, "accuracy": _share(right, total), **found}


def _share(part: int, whole: int) -> float:
    """Percent; 0 where there is nothing, as F1 is where every answer is no."""
    return 100.0 * part / whole if whole else 0.0


Place = tuple[str, str, str]


class _Joined:
    """The predictions, each at its (split, picture, object)."""

    def __init__(self, inputs: Inputs, gold: list[Item], notes: Notes, asked: Path | None) -> None:
        self._gold = gold
        self._known = {item[:3] for item in gold}
        self._notes = notes
        self.answers: dict[Place, list[Answer]] = {}
        self._unknown: dict[Any, Answer] = {}
        questions = _questions(asked)
        files = {path: list(read_rows(path)) for path in prediction_files(inputs.predictions)}
        rows = [row for found in files.values() for row in found]
        if questions:
            self._by_question(rows, questions)
        elif rows and all("image" in row.data for row in rows):
            self._by_picture(files)
        else:
            self._by_order(files)
        leftovers(self._unknown, notes)

    def _by_question(self, rows: list[Row], questions: dict[Key, Place]) -> None:
        seen: dict[Key, Answer] = {}
        for row in rows:
            key = row_id(row, "question_id")
            answer = _answer(row)
            if key in seen:
                self._repeated(row, key, seen[key])
                continue
            seen[key] = answer
            place = questions.get(key)
            if place is None:
                self._unknown[key] = answer
            else:
                self._put(place, answer)

    def _by_picture(self, files: dict[Path, list[Row]]) -> None:
        splits = {item.split for item in self._gold}
        seen: dict[Place, Answer] = {}
        for path, rows in files.items():
            for row in rows:
                split = row.data.get("category", row.data.get("split"))
                if split is None:
                    split = next(iter(splits)) if len(splits) == 1 else split_of(path)
                asked = asked_for(row_text(row, "question", "prompt"))
                place = (str(split), Path(row_text(row, "image")).name, asked)
                if place in seen:
                    self._repeated(row, place, seen[place])
                    continue
                seen[place] = _answer(row)
                self._put(place, seen[place])

    def _by_order(self, files: dict[Path, list[Row]]) -> None:
        """No pictures are named: the objects asked for must run as in the gold, split by split."""
        splits: dict[str, list[Item]] = {}
        for item in self._gold:
            splits.setdefault(item.split, []).append(item)
        found: set[str] = set()
        for rows in files.values():
            asked = [asked_for(row_text(row, "question", "prompt")) for row in rows]
            start = 0
            while start < len(rows):
                name = _next_split(
                    asked, start, {s: i for s, i in splits.items() if s not in found}
                )
                if name is None:
                    raise rows[start].bad(
                        "cannot be joined: it names no picture, and the objects asked for do not"
                        " run as in the annotations",
                        "give LLaVA's question file with --questions",
                    )
                for item, row in zip(splits[name], rows[start:], strict=False):
                    self._put(item[:3], _answer(row))
                start += len(splits[name])
                found.add(name)

    def _put(self, place: Place, answer: Answer) -> None:
        if place in self._known:
            self.answers.setdefault(place, []).append(answer)
        else:
            self._unknown[place] = answer

    def _repeated(self, row: Row, key: Any, before: Answer) -> None:
        if _answer(row).text != before.text:
            raise row.bad(
                f"a second answer to {key!r}, different from {before.where}",
                "an item may be answered once: remove one of the rows",
            )
        self._notes.add("rows repeat an earlier row; used once", row.where)


def _next_split(asked: list[str], start: int, splits: dict[str, list[Item]]) -> str | None:
    for name, items in splits.items():
        if asked[start : start + len(items)] == [item.object for item in items]:
            return name
    return None


def _answer(row: Row) -> Answer:
    return Answer(row_text(row, *_TEXTS), row.path, row.number, row.unit)


def _asks(path: Path) -> bool:
    """Whether a file is LLaVA's questions: they name their category and hold no label."""
    first = next(iter(read_rows(path)), None)
    return first is not None and "category" in first.data and "label" not in first.data


def _questions(path: Path | None) -> dict[Key, Place]:
    """LLaVA's question file: id to (split, picture, object)."""
    found: dict[Key, Place] = {}
    if path is None:
        return found
    for row in read_rows(path):
        image = Path(row_text(row, "image")).name
        place = (row_text(row, "category"), image, asked_for(row_text(row, "text")))
        if found.setdefault(row_id(row, "question_id"), place) != place:
            raise row.bad("the same id stands for another question above")
    if not found:
        raise DataError(f"{path}: no questions", "give LLaVA's question file")
    return found
