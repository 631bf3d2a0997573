"""Other people's data becomes LLaVA samples; what cannot is counted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llava_train.samples import scienceqa
from llava_train.samples.reading import samples
from llava_train.samples.validate import ERRORS, faults
from tests.llava_train.samples.conftest import Row, Run, sample

PROBLEM = {
    "question": "Which  is it?",
    "choices": ["a cat", "a dog"],
    "answer": 1,
    "hint": "Look\nclosely.",
    "image": "image.png",
    "lecture": "Dogs bark.\nCats do not.",
    "solution": "It barks.",
    "split": "train",
}
QUESTION = "Which is it?"
CONTEXT = "Context: Look\\nclosely."
OPTIONS = "Options: (A) a cat (B) a dog"
LECTURE = "Dogs bark.\\nCats do not."

Convert = Callable[..., tuple[int, list[Row], dict[str, Any]]]


@pytest.fixture
def convert(data: Run, tmp_path: Path) -> Convert:
    """`llava data convert KIND FILE …`: exit code, samples, document."""

    def run(kind: str, content: Any, *more: str) -> tuple[int, list[Row], dict[str, Any]]:
        source, out = tmp_path / "source.json", tmp_path / "out.json"
        source.write_text(json.dumps(content))
        out.unlink(missing_ok=True)
        code, said, err = data("convert", kind, source, "-o", out, *more, "--json")
        rows = list(samples(out)) if out.exists() else []
        for row in rows:
            assert not [code for code, _ in faults(row) if code in ERRORS]
        return code, rows, json.loads(said if code == 0 else err)

    return run


@pytest.mark.parametrize(
    ("form", "question", "answer"),
    [
        ("QCM-A", f"{QUESTION}\n{CONTEXT}\n{OPTIONS}", "The answer is B."),
        ("QCM-AL", f"{QUESTION}\n{CONTEXT}\n{OPTIONS}", "The answer is B. BECAUSE: It barks."),
        ("QCM-AE", f"{QUESTION}\n{CONTEXT}\n{OPTIONS}", f"The answer is B. BECAUSE: {LECTURE}"),
        (
            "QCM-ALE",
            f"{QUESTION}\n{CONTEXT}\n{OPTIONS}",
            f"The answer is B. BECAUSE: {LECTURE} It barks.",
        ),
        ("QCM-LEA", f"{QUESTION}\n{CONTEXT}\n{OPTIONS}", f"{LECTURE} It barks. The answer is B."),
        ("QCM-EA", f"{QUESTION}\n{CONTEXT}\n{OPTIONS}", "It barks. The answer is B."),
        (
            "QCM-LEPA",
            f"{QUESTION}\n{CONTEXT}\n{OPTIONS}",
            f"LECTURE: {LECTURE}\nSOLUTION: It barks.\n###\nANSWER: B.",
        ),
        ("CQM-A", f"{CONTEXT}\nQuestion: {QUESTION}\n{OPTIONS}", "The answer is B."),
        (
            "QCML-A",
            f"{QUESTION}\n{CONTEXT}\n{OPTIONS}\nBECAUSE: {LECTURE}",
            "The answer is B.",
        ),
        (
            "QCLEM-A",
            f"{QUESTION}\n{CONTEXT}\nBECAUSE: {LECTURE} It barks.\n{OPTIONS}",
            "The answer is B.",
        ),
    ],
)
def test_scienceqa_in_every_order(form: str, question: str, answer: str) -> None:
    assert scienceqa.texts(PROBLEM, *scienceqa.parse_format(form)) == (question, answer)


def test_scienceqa_becomes_samples_of_a_split(convert: Convert, tmp_path: Path) -> None:
    problems = {
        "1": PROBLEM,
        "2": {**PROBLEM, "image": None, "hint": "", "split": "test"},
        "3": {**PROBLEM, "choices": []},
        "4": {**PROBLEM, "answer": 7},
        "5": {**PROBLEM, "image": "../../x"},
    }
    code, rows, document = convert("scienceqa", problems)
    assert code == 0 and [row["id"] for row in rows] == ["1", "2"]
    assert rows[0]["image"] == "train/1/image.png"
    assert rows[0]["conversations"][0]["value"].endswith("\n<image>")
    assert "image" not in rows[1]
    assert "Context: N/A" in rows[1]["conversations"][0]["value"]
    assert document["left_out"] == {
        "no choices": 1, "no answer": 1, "picture outside the folder": 1
    }  # fmt: skip
    _, rows, _ = convert("scienceqa", problems, "--split", "test", "--image-prefix", "sqa")
    assert [row["id"] for row in rows] == ["2"]
    splits = tmp_path / "splits.json"
    splits.write_text(json.dumps({"minival": ["2", "1", "9"]}))
    _, rows, document = convert(
        "scienceqa", problems, "--splits", str(splits), "--split", "minival",
        "--image-prefix", "sqa/",
    )  # fmt: skip
    assert [row["id"] for row in rows] == ["2", "1"]
    assert rows[1]["image"] == "sqa/train/1/image.png"
    assert document["left_out"] == {"in the split, and not in the problems": 1}
    code, _, error = convert("scienceqa", problems, "--splits", str(splits), "--split", "x")
    assert code == 2 and "minival" in error["error"]["hint"]
    assert convert("scienceqa", problems, "--format", "QCM-Z")[0] == 2


def test_coco_gives_a_sample_a_caption(convert: Convert) -> None:
    content = {
        "images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "../b.jpg"}],
        "annotations": [
            {"id": 10, "image_id": 1, "caption": " One.\n"},
            {"id": 11, "image_id": 1, "caption": "Two."},
            {"id": 12, "image_id": 2, "caption": "Outside."},
            {"id": 13, "image_id": 9, "caption": "Nobody's."},
            {"id": 14, "image_id": 1, "caption": ""},
        ],
    }
    code, rows, document = convert("coco", content, "--image-prefix", "train2014")
    assert code == 0
    assert [(row["id"], row["image"]) for row in rows] == [
        ("10", "train2014/a.jpg"), ("11", "train2014/a.jpg")
    ]  # fmt: skip
    assert [row["conversations"][1]["value"] for row in rows] == ["One.", "Two."]
    assert document["left_out"] == {"no picture": 2, "no caption": 1}


def test_vqa_takes_the_most_frequent_answer(convert: Convert, tmp_path: Path) -> None:
    answers = tmp_path / "answers.json"
    rows = [
        {"question_id": 1, "answers": [{"answer": a} for a in ("red", "blue", "blue")]},
        {"question_id": 2, "multiple_choice_answer": "yes"},
    ]
    answers.write_text(json.dumps({"annotations": rows}))
    questions = [{"question_id": i, "image_id": 42, "question": f"Q{i}?"} for i in (1, 2, 3)]
    content = {"questions": questions}
    code, found, document = convert("vqa", content, "--annotations", str(answers))
    assert code == 0
    assert found[0] == sample(
        "1",
        "COCO_train2014_000000000042.jpg",
        "Q1?\nAnswer the question using a single word or phrase.",
        "blue",
    )
    assert found[1]["conversations"][1]["value"] == "yes"
    assert document["left_out"] == {"no answer": 1}
    assert convert("vqa", content)[0] == 2
    options = ("--annotations", str(answers), "--image-name", "{nothing}.jpg")
    assert convert("vqa", content, *options)[0] == 1


def test_sharegpt_is_cleaned(convert: Convert) -> None:
    def talk(*pairs: tuple[str, str]) -> Row:
        return {"id": "x", "conversations": [{"from": f, "value": v} for f, v in pairs]}

    content = [
        talk(("system", "S"), ("gpt", "hello"), ("human", "Q"), ("gpt", "A"), ("human", "bye")),
        {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]},
        talk(("human", "Q"), ("human", "Q"), ("gpt", "A")),
        talk(("human", "Q")),
        talk(("human", "an <image>"), ("gpt", "A")),
        {"nothing": 1},
        "text",
    ]
    code, rows, document = convert("sharegpt", content)
    assert code == 0
    assert rows == [sample("x", None, "Q", "A"), sample("1", None, "Q", "A")]
    assert document["left_out"] == {
        "turns do not alternate": 1, "no question with an answer": 1, "holds <image>": 1,
        "no conversation": 2,
    }  # fmt: skip


def test_samples_go_into_other_files_and_back(data: Run, tmp_path: Path) -> None:
    rows = [sample(str(i), f"{i}.png", kind="detail") for i in range(3)]
    source = tmp_path / "a.json"
    source.write_text(json.dumps(rows))
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(b"x")
    last = source
    for name in ("b.parquet", "c.jsonl", "shards", "d.json"):
        assert data("convert", "llava", last, "--images", tmp_path, "-o", tmp_path / name)[0] == 0
        last = tmp_path / name
        assert list(samples(last)) == rows
        assert (tmp_path / f"{name}.card.json").exists()


def test_nothing_that_fits_is_an_error_that_leaves_no_file(convert: Convert) -> None:
    code, rows, error = convert("sharegpt", [{"a": 1}])
    assert (code, rows) == (1, [])
    assert "1 × no conversation" in error["error"]["message"]
