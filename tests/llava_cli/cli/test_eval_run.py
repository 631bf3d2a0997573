"""`llava eval run`, end to end for every benchmark: prompts, rows, resuming, uploads, scores."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from tests.llava_cli.cli.conftest import FAKE, InProcess, process_environment
from tests.llava_cli.evals.layouts import CHOICE, LAYOUTS, SHORT, make

UNANSWERABLE = (
    "When the provided information is insufficient, respond with 'Unanswerable'.\n" + SHORT
)
PROMPTS = {
    "vqav2": f"Is it red?\n{SHORT}",
    "gqa": f"Is it red?\n{SHORT}",
    "vizwiz": f"Is it red?\n{UNANSWERABLE}",
    "textvqa": f"what brand?\nReference OCR token: MIA, intel\n{SHORT}",
    "pope": f"Is there a snowboard in the image?\n{SHORT}",
    "mme": f"A?\n{SHORT}",
    "mmbench": f"See it\nWhich?\nA. yes\nB. no\n{CHOICE}",
    "mmbench-cn": "See it\nWhich?\nA. yes\nB. no\n请直接回答选项字母。",
    "seed": f"Which?\nA. aa\nB. bb\nC. cc\nD. dd\n{CHOICE}",
    "scienceqa": f"Context: Look.\nIs it?\nA. yes\nB. no\n{CHOICE}",
    "llava-bench": "What is it?",
    "mm-vet": "What is x?",
    "owleval": "What is it?",
    "okvqa": f"Is it red?\n{SHORT}",
    "coco-caption": "Provide a one-sentence caption for the provided image.",
    "scenes": "How many shapes are there?",
}


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_benchmark_is_asked_as_llava_asks_it(
    llava: InProcess, tmp_path: Path, name: str
) -> None:
    data, out = make(name, tmp_path / "data"), tmp_path / "out"
    said = "A" if CHOICE in PROMPTS[name] or name == "mmbench-cn" else "Yes"
    ran = llava("eval", "run", name, "--data", data, "-o", out, "--json", script=[f" {said} "])
    assert ran.code == 0, ran.err
    conversation, sampling = _first(llava)
    assert conversation.messages[-1].text == PROMPTS[name]
    assert sampling.temperature == 0
    assert sampling.max_tokens == (128 if SHORT in PROMPTS[name] or name == "seed" else 1024)
    rows = rows_of(out / "predictions.jsonl")
    assert all(row["text"] == said for row in rows)
    assert {"question_id", "prompt", "text", "answer_id", "model_id", "metadata"} <= rows[0].keys()
    protocol = json.loads((out / "protocol.json").read_text(encoding="utf-8"))
    assert protocol["prompt_format"] == "vicuna_v1"
    assert protocol["image_mode"] == "pad"
    score = ran.json["score"]
    assert (score is None) == (name in ("llava-bench", "mm-vet", "owleval"))
    if score is not None:
        assert score["counts"]["missing"] == 0
        assert json.loads((out / "score.json").read_text(encoding="utf-8")) == score


def _first(llava: InProcess) -> Any:
    """The first task: the fake answers a window from its end."""
    assert llava.engine is not None
    return llava.engine.asked[-1]


def test_pictures_are_padded_to_a_square_in_llavas_colour(llava: InProcess, tmp_path: Path) -> None:
    data = make("gqa", tmp_path / "data")
    llava("eval", "run", "gqa", "--data", data, "-o", tmp_path / "out")
    pixels = _first(llava)[0].images[0].open()
    assert pixels.size == (24, 24)
    assert pixels.getpixel((0, 0)) == (122, 116, 104)
    llava("eval", "run", "gqa", "--data", data, "-o", tmp_path / "o2", "--image-mode", "model")
    assert _first(llava)[0].images[0].open().size == (24, 16)
    llava("eval", "run", "gqa", "--data", data, "-o", tmp_path / "o3", "--image-mode", "crop")
    assert _first(llava)[0].images[0].open().size == (16, 16)


def test_mmbench_rows_leave_the_suffix_out_and_say_what_was_shown(
    llava: InProcess, tmp_path: Path
) -> None:
    data = make("mmbench", tmp_path / "data")
    llava("eval", "run", "mmbench", "--data", data, "-o", tmp_path / "o", script=["A"])
    row = rows_of(tmp_path / "o" / "predictions.jsonl")[0]
    assert row["prompt"] == "See it\nWhich?\nA. yes\nB. no"
    assert (row["round_id"], row["options"], row["option_char"]) == (0, ["yes", "no"], ["A", "B"])
    assert len(rows_of(tmp_path / "o" / "predictions.jsonl")) == 3
    sheet = openpyxl.load_workbook(tmp_path / "o" / "upload.xlsx").worksheets[0]
    table = list(sheet.iter_rows(values_only=True))
    assert table[0] == (
        "index", "question", "A", "B", "C", "D", "prediction", "answer", "split",
    )  # fmt: skip
    assert table[2] == (1000000, "Which?", "no", "yes", None, None, "A", "B", "dev")
    llava("eval", "run", "mmbench", "--data", data, "-o", tmp_path / "r", "--all-rounds")
    rounds = rows_of(tmp_path / "r" / "predictions.jsonl")
    assert [row["round_id"] for row in rounds] == [0, 1, 0, 1, 0, 1]
    assert rounds[1]["prompt"] == "See it\nWhich?\nA. no\nB. yes"
    assert rounds[1]["option_char"] == ["B", "A"]


def test_scienceqa_rows_put_the_picture_back_into_the_prompt(
    llava: InProcess, tmp_path: Path
) -> None:
    data = make("scienceqa", tmp_path / "data")
    llava("eval", "run", "scienceqa", "--data", data, "-o", tmp_path / "o", script=["A"])
    rows = rows_of(tmp_path / "o" / "predictions.jsonl")
    assert rows[0]["prompt"] == f"<image>\nContext: Look.\nIs it?\nA. yes\nB. no\n{CHOICE}"
    assert rows[1]["prompt"] == f"Is it not?\nA. yes\nB. no\n{CHOICE}"


def test_upload_files_have_the_servers_forms(llava: InProcess, tmp_path: Path) -> None:
    def upload(name: str, script: str = "Yes.") -> Any:
        out = tmp_path / name
        llava("eval", "run", name, "--data", make(name, tmp_path / f"d{name}"), "-o", out,
              script=[script])  # fmt: skip
        path = next(p for p in sorted(out.glob("upload*")))
        if path.is_dir():
            return {p.name: p.read_text(encoding="utf-8") for p in sorted(path.iterdir())}
        text = path.read_text(encoding="utf-8")
        return json.loads(text) if path.suffix == ".json" else rows_of(path)

    assert upload("vqav2", "The Wall.") == [
        {"question_id": 420, "answer": "wall"},
        {"question_id": 421, "answer": "wall"},
    ]
    assert upload("gqa")[0] == {"questionId": "201307251", "prediction": "yes"}
    assert upload("vizwiz")[0] == {"image": "VizWiz_val_00000000.jpg", "answer": "yes"}
    assert upload("seed", "A") == [
        {"question_id": "101669", "prediction": "A"},
        {"question_id": "v10_7", "prediction": "A"},
    ]
    assert upload("mm-vet") == {"v1_0": "Yes.", "v1_1": "Yes."}
    assert upload("coco-caption") == [{"image_id": 42, "caption": "Yes."}]
    assert upload("okvqa", "To the wall.")[0] == {"answer": "wall", "question_id": 420}
    assert upload("mme", "Yes,\tI\nthink") == {
        "artwork.txt": "1.txt\tA? Please answer yes or no.\tYes\tYes, I think\n"
        "1.txt\tB? Please answer yes or no.\tNo\tYes, I think\n",
        "existence.txt": "0001.txt\tIs it red? Please answer yes or no.\tYes\tYes, I think\n"
        "0001.txt\tIs it blue?  Please answer yes or no.\tNo\tYes, I think\n",
    }
    assert upload("owleval")[0] == {
        "image": "1.jpg", "question_id": 1, "question": "What is it?", "answer": "Yes.",
        "model_id": "llava-demo",
    }  # fmt: skip


def test_vqav2_test_uploads_every_question_of_the_larger_set(
    llava: InProcess, tmp_path: Path
) -> None:
    data = make("vqav2", tmp_path / "data")
    (data / "v2_mscoco_val2014_annotations.json").unlink()
    (data / "v2_OpenEnded_mscoco_val2014_questions.json").unlink()
    questions = [{"image_id": 42, "question": "q?", "question_id": n} for n in (1, 2, 3)]
    for subtype, count in (("test-dev2015", 1), ("test2015", 3)):
        document = {"data_subtype": subtype, "questions": questions[:count]}
        path = data / f"v2_OpenEnded_mscoco_{subtype}_questions.json"
        path.write_text(json.dumps(document), encoding="utf-8")
    (data / "val2014").rename(data / "test2015")
    image = data / "test2015" / "COCO_val2014_000000000042.jpg"
    image.rename(image.with_name("COCO_test2015_000000000042.jpg"))
    ran = llava("eval", "run", "vqav2", "--data", data, "-o", tmp_path / "o")
    assert "which one?" in ran.err
    ran = llava(
        "eval", "run", "vqav2", "--data", data, "-o", tmp_path / "o", "--split", "test-dev2015",
        "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert ran.json["score"] is None
    assert json.loads((tmp_path / "o" / "upload.json").read_text(encoding="utf-8")) == [
        {"question_id": 1, "answer": "ok"},
        {"question_id": 2, "answer": ""},
        {"question_id": 3, "answer": ""},
    ]


def test_a_run_goes_on_after_a_kill_and_ends_with_the_same_bytes(tmp_path: Path) -> None:
    data = make("pope", tmp_path / "data")

    def command(out: Path) -> list[str]:
        return [
            sys.executable,
            str(FAKE),
            "eval",
            "run",
            "pope",
            "--data",
            str(data),
            "-o",
            str(out),
        ]

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command(whole), env=process_environment(["No"]), check=True, timeout=200)
    slow = subprocess.Popen(command(killed), env=process_environment(["No", 1.0]))
    path = killed / "predictions.jsonl"
    deadline = time.monotonic() + 200
    while not (path.exists() and path.read_bytes().count(b"\n") >= 2):
        assert time.monotonic() < deadline
        assert slow.poll() is None
        time.sleep(0.05)
    os.kill(slow.pid, signal.SIGKILL)
    slow.wait()
    before = path.read_bytes()
    assert 2 <= before.count(b"\n") < 6
    path.write_bytes(before + b'{"question_id": 5, "prom')  # a write that was cut off
    subprocess.run(command(killed), env=process_environment(["No"]), check=True, timeout=200)
    assert path.read_bytes() == (whole / "predictions.jsonl").read_bytes()
    for name in ("score.json", "protocol.json", "items.jsonl"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()


def test_finished_questions_are_not_asked_again(llava: InProcess, tmp_path: Path) -> None:
    data, out = make("gqa", tmp_path / "data"), tmp_path / "o"
    first = llava("eval", "run", "gqa", "--data", data, "-o", out, "--limit", "1", "--json")
    assert first.json["score"]["counts"] == {
        "expected": 2, "answered": 1, "missing": 1, "unparsable": 0,
    }  # fmt: skip
    assert first.json["score"]["metrics"]["accuracy"] == 0
    assert first.json["uploads"] == []
    llava("eval", "run", "gqa", "--data", data, "-o", out)
    assert llava.engine is not None
    assert len(llava.engine.asked) == 1
    llava("eval", "run", "gqa", "--data", data, "-o", out)
    assert len(llava.engine.asked) == 0
    llava("eval", "run", "gqa", "--data", data, "-o", out, "--no-resume")
    assert len(llava.engine.asked) == 2


def test_another_protocol_does_not_continue_a_run(llava: InProcess, tmp_path: Path) -> None:
    data, out = make("gqa", tmp_path / "data"), tmp_path / "o"
    llava("eval", "run", "gqa", "--data", data, "-o", out)
    ran = llava(
        "eval", "run", "gqa", "--data", data, "-o", out, "--suffix", "Say it.", "-q", "--json"
    )
    assert ran.code == 2
    assert "another suffix" in ran.error["message"]
    ran = llava("eval", "run", "gqa", "--data", data, "-o", tmp_path / "p", "--suffix", "Say it.")
    assert _first(llava)[0].messages[-1].text == "Is it red?\nSay it."


def test_shards_share_the_questions_and_score_together(llava: InProcess, tmp_path: Path) -> None:
    data, out = make("pope", tmp_path / "data"), tmp_path / "o"
    for n in (1, 2, 3, 4):
        ran = llava("eval", "run", "pope", "--data", data, "-o", out, "--shard", f"{n}/4", "--json")
        if n < 4:
            assert ran.code == 0, ran.err
    assert ran.code == 2  # six questions in blocks of two leave nothing to a fourth
    assert len(list(out.glob("predictions-*-of-4.jsonl"))) == 3
    score = json.loads((out / "score.json").read_text(encoding="utf-8"))
    assert score["counts"]["answered"] == 6
    assert llava("eval", "run", "pope", "--data", data, "-o", out, "--shard", "5/4").code == 2


def test_llavas_own_question_files_are_asked_as_they_are(llava: InProcess, tmp_path: Path) -> None:
    data = make("gqa", tmp_path / "data")
    questions = tmp_path / "llava_gqa.jsonl"
    row = {"question_id": "201307251", "image": "n161313.jpg", "text": "As it is\nhere"}
    questions.write_text(json.dumps(row) + "\n", encoding="utf-8")
    ran = llava(
        "eval", "run", "gqa", "--data", data, "-o", tmp_path / "o", "--questions", questions,
        "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert _first(llava)[0].messages[-1].text == "As it is\nhere"
    assert ran.json["answered"] == 1


def test_a_bad_picture_fails_alone_and_a_missing_one_before_the_model_is_loaded(
    llava: InProcess, tmp_path: Path
) -> None:
    data = make("gqa", tmp_path / "data")
    (data / "images/n161313.jpg").write_bytes(b"no picture")
    ran = llava("eval", "run", "gqa", "--data", data, "-o", tmp_path / "o", "--json")
    assert ran.code == 5
    assert ran.json["failures"][0]["question_id"] == "201307251"
    assert ran.json["answered"] == 1
    (data / "images/n161313.jpg").unlink()
    llava.engine = None
    assert llava("eval", "run", "gqa", "--data", data, "-o", tmp_path / "o").code == 4
    assert llava.engine is None


@pytest.mark.parametrize("name", ["gqa", "textvqa", "seed", "mm-vet"])
def test_a_folder_without_the_files_is_explained(
    llava: InProcess, tmp_path: Path, name: str
) -> None:
    ran = llava("eval", "run", name, "--data", tmp_path, "--json")
    assert ran.code == 1
    assert "holds no" in ran.error["message"]


def test_the_list_says_what_each_benchmark_needs(llava: InProcess) -> None:
    ran = llava("eval", "ls")
    assert all(name in ran.out for name in LAYOUTS)
    rows = llava("eval", "ls", "--json").json
    assert {row["name"] for row in rows} == set(LAYOUTS)
    assert all(row["needs"] and row["source"] for row in rows)
    assert "did you mean pope?" in llava("eval", "run", "popes", "--data", ".").err
