"""Other people's data as LLaVA samples: COCO captions, VQA, ShareGPT; ScienceQA has its own module.

Each function reads files row by row and yields samples in LLaVA's layout; what cannot become one is
counted by reason.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from llava_cli.errors import DataError
from llava_train.samples.draws import draw
from llava_train.samples.json_stream import fields, items, opens_with
from llava_train.samples.paths import stays_inside
from llava_train.samples.reading import Row

SHORT_ANSWER = "Answer the question using a single word or phrase."
"""LLaVA-1.5's suffix, after which models answer briefly."""
_SPEAKERS = {
    "human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt", "chatgpt": "gpt",
    "bing": "gpt", "bard": "gpt",
}  # fmt: skip


def sample(name: str, image: str | None, turns: Sequence[tuple[str, str]]) -> Row:
    """Question and answer pairs as a sample; a picture is asked about from the first turn on."""
    rows = []
    for position, (question, answer) in enumerate(turns):
        lead = "<image>\n" if position == 0 and image is not None else ""
        rows.append({"from": "human", "value": f"{lead}{question}"})
        rows.append({"from": "gpt", "value": answer})
    picture = {} if image is None else {"image": image}
    return {"id": name, **picture, "conversations": rows}


def coco(
    path: Path, prefix: str, requests: Sequence[str], seed: int, left_out: Counter[str]
) -> Iterator[Row]:
    """COCO captions: one sample a caption, with a request for a brief description in front."""
    base = sqlite3.connect("", isolation_level=None)
    try:
        base.execute("PRAGMA journal_mode = OFF")
        base.execute("CREATE TABLE names (id TEXT PRIMARY KEY, name TEXT) WITHOUT ROWID")
        base.execute("BEGIN")
        for _, row in fields(path, {"images"}):
            if isinstance(row, dict) and isinstance(row.get("file_name"), str):
                if not stays_inside(row["file_name"]):
                    continue
                values = (str(row.get("id")), prefix + row["file_name"])
                base.execute("INSERT OR IGNORE INTO names VALUES (?, ?)", values)
        for position, (_, row) in enumerate(fields(path, {"annotations"})):
            text = row.get("caption") if isinstance(row, dict) else None
            if not isinstance(text, str) or not text.strip():
                left_out["no caption"] += 1
                continue
            found = base.execute(
                "SELECT name FROM names WHERE id = ?", (str(row.get("image_id")),)
            ).fetchone()
            if found is None or not stays_inside(found[0]):
                left_out["no picture"] += 1
                continue
            name = str(row.get("id", position))
            request = requests[draw(seed, name, "request", len(requests))]
            yield sample(name, found[0], [(request, " ".join(text.split()))])
    finally:
        base.close()


def vqa(
    questions: Path, annotations: Path, image_name: str, left_out: Counter[str]
) -> Iterator[Row]:
    """VQA v2 and its kin: question and most frequent answer, with LLaVA-1.5's suffix.

    image_name: a pattern with the picture's number in it, `COCO_train2014_{image_id:012d}.jpg`.
    """
    answers = sqlite3.connect("", isolation_level=None)
    try:
        answers.execute("PRAGMA journal_mode = OFF")
        answers.execute("CREATE TABLE answers (id TEXT PRIMARY KEY, text TEXT) WITHOUT ROWID")
        answers.execute("BEGIN")
        for _, row in fields(annotations, {"annotations"}):
            text = most_frequent_answer(row) if isinstance(row, dict) else None
            if text is not None:
                values = (str(row.get("question_id")), text)
                answers.execute("INSERT OR IGNORE INTO answers VALUES (?, ?)", values)
        for _, row in fields(questions, {"questions"}):
            question = row.get("question") if isinstance(row, dict) else None
            if not isinstance(question, str):
                left_out["no question"] += 1
                continue
            name = str(row.get("question_id"))
            found = answers.execute("SELECT text FROM answers WHERE id = ?", (name,)).fetchone()
            if found is None:
                left_out["no answer"] += 1
                continue
            image = _image_name(image_name, row)
            yield sample(name, image, [(f"{question.strip()}\n{SHORT_ANSWER}", found[0])])
    finally:
        answers.close()


def most_frequent_answer(row: Row) -> str | None:
    """What most annotators said; the first of those that tie."""
    given = row.get("answers")
    texts = [
        answer.get("answer") if isinstance(answer, dict) else answer
        for answer in (given if isinstance(given, list) else [])
    ]
    said = Counter(text.strip() for text in texts if isinstance(text, str) and text.strip())
    if said:
        return said.most_common(1)[0][0]
    chosen = row.get("multiple_choice_answer")
    return chosen if isinstance(chosen, str) and chosen.strip() else None


def sharegpt(path: Path, left_out: Counter[str]) -> Iterator[Row]:
    """ShareGPT conversations, text only: speakers renamed, system turns and loose ends dropped."""
    for position, row in enumerate(items(path)):
        turns = row.get("conversations") or row.get("messages") if isinstance(row, dict) else None
        if not isinstance(turns, list):
            left_out["no conversation"] += 1
            continue
        texts = [pair for turn in turns if (pair := _said(turn)) is not None]
        while texts and texts[0][0] == "gpt":
            texts.pop(0)
        while texts and texts[-1][0] == "human":
            texts.pop()
        speakers = [speaker for speaker, _ in texts]
        if not texts or speakers != ["human", "gpt"] * (len(texts) // 2):
            left_out["turns do not alternate" if texts else "no question with an answer"] += 1
            continue
        if any("<image>" in text for _, text in texts):
            left_out["holds <image>"] += 1
            continue
        pairs = [(texts[i][1], texts[i + 1][1]) for i in range(0, len(texts), 2)]
        yield sample(str(row.get("id", position)), None, pairs)


def _said(turn: Any) -> tuple[str, str] | None:
    """(speaker, text) of a turn in either of the two layouts that are about."""
    if not isinstance(turn, dict):
        return None
    speaker = _SPEAKERS.get(str(turn.get("from", turn.get("role", ""))).lower())
    text = turn.get("value", turn.get("content"))
    if speaker is None or not isinstance(text, str) or not text.strip():
        return None
    return speaker, text.strip()


def _image_name(pattern: str, row: Row) -> str:
    number = row.get("image_id")
    try:
        name = pattern.format(image_id=int(str(number)) if str(number).isdigit() else number)
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise DataError(
            f"{pattern!r} gives no name for image {number!r}",
            "write {image_id}, or {image_id:012d} for twelve digits",
        ) from error
    if not stays_inside(name):
        raise DataError(f"{name!r} leaves the folder of pictures", "correct --image-name")
    return name


def looks_like_object(path: Path) -> bool:
    """Whether a file is one JSON object, as COCO's, VQA's and ScienceQA's are."""
    return opens_with(path) == "{"
