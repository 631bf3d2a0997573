"""The files that the organisers' servers (and their own scripts) take."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llava_cli.errors import DataError
from llava_cli.evals import gqa, mmbench, mme, mmvet, seed
from llava_cli.evals.normalise import evalai, pica
from llava_cli.evals.rows import canonical, read_rows, row_id
from llava_cli.evals.tasks import Plan

Rows = Sequence[Mapping[str, Any]]


def write(name: str, rows: Rows, plan: Plan, out: Path) -> list[Path]:
    """Write the upload files of a benchmark, each whole or not at all; none where there is none."""
    if name in ("mmbench", "mmbench-cn"):
        return [_workbook(rows, plan, out / "upload.xlsx")]
    if name == "mme":
        return _mme(rows, plan, out / "upload")
    if name == "seed":
        lines = [json.dumps(row, ensure_ascii=False) for row in _seed(rows, plan)]
        return [put(out / "upload.jsonl", "\n".join([*lines, ""]))]
    make = _DOCUMENTS.get(name)
    return [] if make is None else [put(out / "upload.json", _dumps(make(rows, plan)))]


def put(path: Path, text: str) -> Path:
    """Write a text file aside, flush it to the disk, rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".part")
    with aside.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
    return path


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1) + "\n"


def _vqav2(rows: Rows, plan: Plan) -> list[dict[str, Any]]:
    """Every question of the split; one without a prediction gets an empty answer."""
    said = {canonical(row["question_id"]): evalai(row["text"]) for row in rows}
    every = [row_id(row, "question_id") for row in read_rows(Path(plan.upload), "questions")]
    return [{"question_id": key, "answer": said.get(key, "")} for key in every]


def _gqa(rows: Rows, plan: Plan) -> list[dict[str, Any]]:
    return [
        {"questionId": str(row["question_id"]), "prediction": gqa.processed(row["text"])}
        for row in rows
    ]


def _vizwiz(rows: Rows, plan: Plan) -> list[dict[str, Any]]:
    return [{"image": row["question_id"], "answer": evalai(row["text"])} for row in rows]


def _okvqa(rows: Rows, plan: Plan) -> list[dict[str, Any]]:
    return [{"answer": pica(row["text"]), "question_id": row["question_id"]} for row in rows]


def _mm_vet(rows: Rows, plan: Plan) -> dict[str, str]:
    return {mmvet.name_of(row["question_id"]): row["text"] for row in rows}


def _captions(rows: Rows, plan: Plan) -> list[dict[str, Any]]:
    return [{"image_id": row["question_id"], "caption": row["text"]} for row in rows]


def _owleval(rows: Rows, plan: Plan) -> list[dict[str, Any]]:
    names = ("image", "question_id", "question")
    return [
        {**{n: row.get(n) for n in names}, "answer": row["text"], "model_id": row.get("model_id")}
        for row in rows
    ]


_DOCUMENTS: dict[str, Callable[[Rows, Plan], Any]] = {
    "vqav2": _vqav2,
    "gqa": _gqa,
    "vizwiz": _vizwiz,
    "okvqa": _okvqa,
    "mm-vet": _mm_vet,
    "coco-caption": _captions,
    "owleval": _owleval,
}


def _seed(rows: Rows, plan: Plan) -> list[dict[str, Any]]:
    said = {canonical(row["question_id"]): row["text"] for row in rows}
    found = []
    for row in seed.questions(Path(plan.upload))[0]:
        key = row_id(row, "question_id")
        if key in said:
            found.append({"question_id": row.data["question_id"], "prediction": said[key]})
    return found


_DROPPED = ("hint", "category", "source", "image", "comment", "l2-category")


def _workbook(rows: Rows, plan: Plan, path: Path) -> Path:
    """The organisers' table without six of its columns, `prediction` as the seventh."""
    import openpyxl

    said = {canonical(row["question_id"]): row["text"] for row in rows if not row.get("round_id")}
    book = openpyxl.Workbook(write_only=True)
    sheet = book.create_sheet("Sheet1")
    names: list[str] | None = None
    for row in read_rows(Path(plan.upload)):
        if names is None:
            names = [name for name in row.data if name not in _DROPPED]
            sheet.append([*names[:6], "prediction", *names[6:]])
        cells = [_cell(name, row.data[name]) for name in names]
        sheet.append([*cells[:6], _text(said.get(row_id(row, "index"))), *cells[6:]])
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".part")
    book.save(aside)
    with aside.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(aside, path)
    return path


def _cell(name: str, value: Any) -> Any:
    if mmbench.is_none(value):
        return None
    return canonical(value) if name == "index" else _text(value)


def _text(value: Any) -> Any:
    """A cell's text, without the control characters that no workbook holds."""
    import openpyxl.cell.cell as cells

    if not isinstance(value, str):
        return value
    clean: str = cells.ILLEGAL_CHARACTERS_RE.sub("", value)
    return clean


def _mme(rows: Rows, plan: Plan, folder: Path) -> list[Path]:
    """One text file a category: picture, question, gold, answer."""
    gold = {(q.category, q.image, mme.bare(q.text)): q for q in mme.read_gold(plan.gold[0])}
    lines: dict[str, list[str]] = {}
    for row in rows:
        category, _, name = str(row["question_id"]).partition("/")
        question = gold.get((category, mme.stem(name), mme.bare(row["prompt"])))
        if question is None:
            raise DataError(f"{row['question_id']}: not a question of MME", "see llava eval ls")
        answer = " ".join(str(row["text"]).split())
        fields = (f"{question.image}.txt", question.text, question.gold.capitalize(), answer)
        lines.setdefault(category, []).append("\t".join(fields))
    return [
        put(folder / f"{category}.txt", "\n".join([*found, ""]))
        for category, found in lines.items()
    ]


def complete(rows: Rows, plan: Plan) -> bool:
    """Whether every task has its row: servers refuse files with gaps."""
    return len(rows) == len(plan.tasks)
