"""MME: two yes-or-no questions a picture, fourteen categories.

A category's score is 100 x accuracy + 100 x the share of pictures with both answers right. Gold
comes from the organisers' folders, or from their answer files, which hold it beside the answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from llava_cli.errors import DataError, UsageError
from llava_cli.evals.rows import Row, first_character, read_rows, read_text, row_text
from llava_cli.evals.scoring import (
    Answer,
    Inputs,
    Notes,
    Verdict,
    find,
    judged,
    leftovers,
    lenient_yes_no,
)

RULE = "lower case; yes or no, else yes then no looked for in the first 4 characters, else wrong"
MISSING = "counted as wrong"
PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark",
    "artwork", "OCR",
)  # fmt: skip
COGNITION = (
    "commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning",
)  # fmt: skip
REQUEST = "Please answer yes or no."
SHORT = "Answer the question using a single word or phrase."


class Question(NamedTuple):
    """One of a picture's questions."""

    category: str
    image: str
    """Without its suffix: answers name it .png, .jpg or .txt."""
    text: str
    gold: str
    """yes or no."""


Place = tuple[str, str, str]


def parse(text: str) -> str:
    """yes, no or other, as the organisers read an answer."""
    said = text.lower()
    if said in ("yes", "no"):
        return said
    start = said[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def bare(question: str) -> str:
    """A question without its requests, blanks run together: what both sides are joined on."""
    return " ".join(question.replace(SHORT, " ").replace(REQUEST, " ").split())


def stem(name: str) -> str:
    """A picture's name up to its first dot."""
    return name.replace("\\", "/").split("/")[-1].split(".")[0]


def verdicts(inputs: Inputs, notes: Notes) -> Iterator[Verdict]:
    """One verdict a question, category by category."""
    stored: list[Question] = []
    answers = _answers(inputs, stored, notes)
    gold = [q for path in inputs.annotations for q in read_gold(path)] or stored
    if not gold:
        raise UsageError(
            "--annotations is missing: the folder MME_Benchmark_release_version",
            "LLaVA's answers hold no gold; the organisers' text files would",
        )
    absent = [name for name in (*PERCEPTION, *COGNITION) if name not in {q.category for q in gold}]
    if absent:
        notes.add("categories are not there: " + ", ".join(absent), count=len(absent))
    gold_of = {(q.category, q.image, bare(q.text)): q.gold for q in gold}
    for question in gold:
        place = (question.category, question.image, bare(question.text))
        key = f"{question.category}/{question.image}: {question.text}"
        extra, groups = question.image, (question.category,)
        waiting = answers.get(place)
        if not waiting:
            yield Verdict(key, gold_of[place], None, None, 0.0, "missing", groups, extra)
            continue
        answer = waiting.pop(0)
        said = (inputs.lenient and lenient_yes_no(answer.text)) or parse(answer.text)
        right = said == gold_of[place]
        reason = "unparsable" if said == "other" else judged(right)
        parsed = None if said == "other" else said
        yield Verdict(key, gold_of[place], answer.text, parsed, float(right), reason, groups, extra)
    leftovers({place: left[0] for place, left in answers.items() if left}, notes)


def metrics(items: Iterable[Verdict]) -> dict[str, float]:
    """`perception`, `cognition`, `total`, and each category's score, accuracy and accuracy+."""
    pictures: dict[str, dict[str, list[bool]]] = {}
    for item in items:
        rows = pictures.setdefault(item.groups[0], {}).setdefault(item.extra, [])
        rows.append(item.score == 1.0)
    scores: dict[str, float] = {}
    found: dict[str, float] = {}
    for category, rows_of in pictures.items():
        rows = [right for rows in rows_of.values() for right in rows]
        pairs = [rows[i : i + 2] for rows in rows_of.values() for i in range(0, len(rows), 2)]
        accuracy = 100.0 * sum(rows) / len(rows)
        plus = 100.0 * sum(len(pair) == 2 and all(pair) for pair in pairs) / len(pairs)
        scores[category] = accuracy + plus
        found[category] = accuracy + plus
        found[f"{category}_accuracy"] = accuracy
        found[f"{category}_accuracy_plus"] = plus
    perception = sum(scores.get(name, 0.0) for name in PERCEPTION)
    cognition = sum(scores.get(name, 0.0) for name in COGNITION)
    totals = {"perception": perception, "cognition": cognition, "total": perception + cognition}
    return {**totals, **found}


def read_gold(path: Path) -> Iterator[Question]:
    """The questions of the organisers' folders, of one category's folder, or of a rows file."""
    if path.is_file():
        for row in read_rows(path):
            place, gold = _llava_place(row), row_text(row, "answer", "label")
            yield Question(place[0], place[1], row_text(row, "text", "question"), _gold(row, gold))
        return
    folders = sorted(folder for folder in path.iterdir() if folder.is_dir())
    known = [folder for folder in folders if folder.name in (*PERCEPTION, *COGNITION)]
    folders = known or folders  # the release also holds the organisers' scripts
    found = [folder for folder in folders if any(question_files(folder))]
    if not found:
        raise DataError(
            f"{path}: holds no folders with questions", "give MME_Benchmark_release_version"
        )
    for folder in found:
        for file in question_files(folder):
            yield from read_questions(folder.name, file)


def question_files(folder: Path) -> list[Path]:
    """The text files of one category, which some keep in a folder of their own."""
    inner = folder / "questions_answers_YN"
    return sorted((inner if inner.is_dir() else folder).glob("*.txt"))


def read_questions(category: str, file: Path) -> Iterator[Question]:
    """The lines `question TAB Yes|No` of one picture."""
    for number, line in enumerate(read_text(file).split("\n"), 1):
        if not line.strip():
            continue
        row = Row({}, file, number)
        text, tab, gold = line.strip().rpartition("\t")
        if not tab:
            raise row.bad("not `question TAB Yes or No`")
        yield Question(category, file.name.split(".")[0], text, _gold(row, gold))


def _gold(row: Row, text: str) -> str:
    gold = text.strip().lower()
    if gold not in ("yes", "no"):
        raise row.bad(f"the gold is {text!r}, neither yes nor no")
    return gold


def _answers(inputs: Inputs, stored: list[Question], notes: Notes) -> dict[Place, list[Answer]]:
    """Answers by (category, picture, question); gold in the files goes to `stored`."""
    answers: dict[Place, list[Answer]] = {}
    files = find(inputs.predictions, "*.txt", "predictions*.jsonl", "*.jsonl", "*.json")
    texts = [path for path in files if path.stem in (*PERCEPTION, *COGNITION)]
    for path in texts or files:
        start = first_character(path)
        found = _of_rows(path) if start in ("{", "[") else _of_text(path, stored)
        for place, answer in found:
            before = answers.setdefault(place, [])
            if before and start in ("{", "["):
                _repeated(place, answer, before[0], notes)
            else:
                before.append(answer)
    return answers


def _repeated(place: Place, answer: Answer, before: Answer, notes: Notes) -> None:
    if answer.text != before.text:
        raise DataError(
            f"{answer.where}: a second answer to {place!r}, different from {before.where}",
            "an item may be answered once: remove one of the rows",
        )
    notes.add("rows repeat an earlier row; used once", answer.where)


def _of_rows(path: Path) -> Iterator[tuple[Place, Answer]]:
    for row in read_rows(path):
        text = row_text(row, "text", "answer")
        yield _llava_place(row), Answer(text, path, row.number, row.unit)


def _llava_place(row: Row) -> Place:
    name = row_text(row, "question_id")
    category, slash, _ = name.partition("/")
    if not slash:
        raise row.bad(f"question_id {name!r} is not category/picture")
    return category, stem(name), bare(row_text(row, "prompt", "text", "question"))


def _of_text(path: Path, stored: list[Question]) -> Iterator[tuple[Place, Answer]]:
    """The organisers' lines: picture, question, gold, answer."""
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        cells, row = line.split("\t"), Row({}, path, number)
        if len(cells) != 4:
            raise row.bad(
                f"{len(cells)} fields, not picture, question, gold and answer",
                "answers must hold no tab and no newline",
            )
        question = Question(path.stem, stem(cells[0]), cells[1], _gold(row, cells[2]))
        stored.append(question)
        yield (
            (question.category, question.image, bare(cells[1])),
            Answer(cells[3], path, number, "line"),
        )
