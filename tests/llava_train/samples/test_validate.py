"""Every fault has a name, a count and its first places; what is good passes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llava_train.samples.validate import ERRORS, WARNINGS, faults, validate
from tests.llava_train.samples.conftest import Run, sample, write


def turns(*pairs: tuple[str, str], image: str | None = None) -> dict[str, Any]:
    rows = [{"from": speaker, "value": text} for speaker, text in pairs]
    picture = {} if image is None else {"image": image}
    return {"id": "x", **picture, "conversations": rows}


@pytest.mark.parametrize(
    ("row", "codes"),
    [
        (sample("a"), []),
        (sample("a", "0.png", "Q", "A", "Q2", "A2"), []),
        (sample("a", None), ["no_picture"]),
        ({**sample("a"), "image": ["0.png"]}, []),
        ("text", ["not_an_object"]),
        ({}, ["no_id", "no_conversations"]),
        ({"id": 1, "conversations": {}}, ["no_conversations"]),
        ({"id": 1, "conversations": []}, ["no_answer", "no_picture"]),
        (turns(("human", "Q")), ["no_answer", "no_picture"]),
        (turns(("user", "Q"), ("gpt", "A")), ["bad_turn"]),
        ({"id": 1, "conversations": [{"from": "human", "value": 5}]}, ["bad_turn"]),
        ({"id": 1, "conversations": ["Q"]}, ["bad_turn"]),
        (turns(("human", "Q"), ("human", "Q"), ("gpt", "A")), ["not_alternating", "no_picture"]),
        (turns(("gpt", "A"), ("human", "Q"), ("gpt", "A")), ["starts_with_gpt", "no_picture"]),
        (turns(("human", "Q"), ("gpt", "A"), ("human", "Q")), ["ends_with_human", "no_picture"]),
        (turns(("human", "Q"), ("gpt", " ")), ["no_picture", "empty_answer"]),
        (turns(("human", "<image>\n"), ("gpt", "A"), image="a"), ["empty_question"]),
        (turns(("human", "Q"), ("gpt", "A"), image="a"), ["no_image_token"]),
        (turns(("human", "<image> Q"), ("gpt", "A")), ["image_token_without_image"]),
        (
            turns(("human", "<image><image> Q"), ("gpt", "A"), image="a"),
            ["repeated_image_token"],
        ),
        (
            turns(*[("human", "<image> Q"), ("gpt", "A")] * 2, image="a"),
            ["several_image_tokens"],
        ),
        (
            turns(("human", "<image> Q"), ("gpt", "An <image>"), image="a"),
            ["image_token_in_answer"],
        ),
        (sample("a", "../a.png"), ["bad_image"]),
        (sample("a", "/etc/passwd"), ["bad_image"]),
        (sample("a", "C:\\a.png"), ["bad_image"]),
        ({**sample("a"), "image": 5}, ["bad_image"]),
        ({**sample("a"), "image": ["a", "b"]}, ["bad_image"]),
    ],
)
def test_faults_of_one_row(row: Any, codes: list[str]) -> None:
    found = [code for code, _ in faults(row)]
    assert found == codes
    assert set(found) <= {*ERRORS, *WARNINGS}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (8, 8), "red").save(folder / "0.png")
    (folder / "broken.png").write_bytes((folder / "0.png").read_bytes()[:40])
    return folder


def test_good_data_passes(data: Run, tmp_path: Path, images: Path) -> None:
    path = write(tmp_path / "x.json", [sample(str(i), "0.png", f"Q{i}", "A") for i in range(3)])
    code, out, _ = data("validate", path, "--images", images, "--json")
    assert code == 0
    assert json.loads(out) == {
        "samples": 3, "bad_samples": 0, "errors": {}, "warnings": {}, "examples": {},
        "longest": None,
    }  # fmt: skip


def test_what_only_the_whole_and_the_disk_show(data: Run, tmp_path: Path, images: Path) -> None:
    rows = [
        sample("a"),
        sample("b"),
        sample("a", "0.png", "Another?", "Yes."),
        sample("c", "broken.png"),
        sample("d", "broken.png", "Again?", "Yes."),
        sample("e", "none.png"),
    ]
    path = write(tmp_path / "x.jsonl", rows)
    code, out, err = data("validate", path, "--images", images, "--json")
    found = json.loads(out)
    assert code == 1 and json.loads(err)["error"]["type"] == "DataError"
    assert found["errors"] == {"duplicate": 1, "image_missing": 1, "image_broken": 1}
    assert found["warnings"] == {"duplicate_id": 1} and found["bad_samples"] == 3
    assert found["examples"]["duplicate"] == ["x.jsonl[1] (b)"]
    assert found["examples"]["image_broken"][0].startswith("x.jsonl[3] (c): broken.png")
    code, out, _ = data("validate", path, "--images", images, "--no-decode", "--json")
    assert "image_broken" not in json.loads(out)["errors"]


def test_a_file_that_breaks_off_is_a_fault_with_its_place(data: Run, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(sample("a")) + "\n{broken\n")
    code, out, _ = data("validate", path)
    assert code == 1
    assert "1 samples" in out and "x.jsonl[1]" in out and "unreadable" in out


def test_examples_are_few_and_counts_are_all(tmp_path: Path) -> None:
    path = write(tmp_path / "x.json", [{}] * 50)
    report = validate([path])
    assert (report.counts["no_conversations"], report.bad) == (50, 50)
    assert len(report.examples["no_conversations"]) == 5


def test_too_long_under_a_tokenizer(data: Run, tmp_path: Path) -> None:
    loose = turns(("gpt", "A"), ("human", "Q"), ("gpt", "A"), ("human", "Q"))
    rows = [sample("a"), sample("b", None, "Q", "shape " * 500), loose]
    path = write(tmp_path / "x.json", rows)
    options = ("--tokenizer", "llava-demo", "--image-tokens", "36", "--max-length", "300")
    code, out, _ = data("validate", path, *options, "--json")
    found = json.loads(out)
    assert (code, found["errors"]) == (1, {"too_long": 1})
    assert found["longest"] > 500


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--tokenizer", "nowhere"], 1, "is no tokenizer"),
        (["--tokenizer", "llava-demo", "--prompt-format", "v9"], 2, "unknown prompt format"),
        (["--images", "nowhere"], 2, "nowhere"),
    ],
)
def test_mistakes_are_said(
    data: Run, tmp_path: Path, options: list[str], code: int, said: str
) -> None:
    got, out, err = data("validate", write(tmp_path / "x.json", [sample("a")]), *options)
    assert (got, out) == (code, "") and said in err


def test_no_sample_is_an_error(data: Run, tmp_path: Path) -> None:
    assert data("validate", write(tmp_path / "x.json", []))[0] == 1


def test_no_escape_reaches_the_terminal(data: Run, tmp_path: Path) -> None:
    path = write(tmp_path / "x.json", [{**sample("\x1b[2J"), "image": "../\x1b[31m"}])
    for command in ("validate", "preview"):
        _, out, err = data(command, path)
        assert "\x1b" not in out + err
