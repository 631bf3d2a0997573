"""`llava eval score` as a command: files after an option, JSON, details, errors."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.llava_cli.cli.conftest import InProcess, Run
from tests.llava_cli.evals.layouts import lines, make, put


def gqa(tmp_path: Path) -> tuple[Path, Path]:
    data = make("gqa", tmp_path / "data")
    rows = [{"question_id": "201307251", "text": "Yes."}, {"question_id": "201640614", "text": "x"}]
    lines(tmp_path / "a.jsonl", rows)
    return tmp_path / "a.jsonl", data / "testdev_balanced_questions.json"


def test_the_document_has_the_four_promised_members(llava: InProcess, tmp_path: Path) -> None:
    predictions, gold = gqa(tmp_path)
    ran = llava(
        "eval", "score", "gqa", "--predictions", predictions, "--annotations", gold, "--json"
    )
    assert ran.code == 0, ran.err
    assert list(ran.json) == ["benchmark", "metrics", "counts", "protocol"]
    assert ran.json["metrics"] == {"accuracy": 50, "accuracy_binary": 100, "accuracy_open": 0}
    assert ran.json["counts"] == {"expected": 2, "answered": 2, "missing": 0, "unparsable": 0}
    assert ran.err == ""


def test_a_person_gets_a_table_and_remarks_on_stderr(llava: InProcess, tmp_path: Path) -> None:
    predictions, gold = gqa(tmp_path)
    lines(predictions, [{"question_id": "201307251", "text": "Yes."}])
    ran = llava("eval", "score", "gqa", "--predictions", predictions, "--annotations", gold.parent)
    assert "accuracy" in ran.out and "50.00" in ran.out
    assert "missing 1" in ran.out
    assert "warning: 1 of 2 items have no prediction" in ran.err


def test_details_have_a_row_an_item(llava: InProcess, tmp_path: Path) -> None:
    predictions, gold = gqa(tmp_path)
    out = tmp_path / "new" / "d.jsonl"
    llava(
        "eval", "score", "gqa", "--predictions", predictions, "--annotations", gold,
        "--details", out,
    )  # fmt: skip
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert rows[1] == {
        "question_id": 201640614, "gold": "wall", "text": "x", "parsed": "x", "score": 0.0,
        "correct": False, "reason": "no match", "groups": ["open"],
    }  # fmt: skip


def test_several_files_may_follow_an_option(llava: InProcess, tmp_path: Path) -> None:
    data = make("pope", tmp_path / "data")
    rows = [
        {"question_id": n, "image": "COCO_val2014_000000310196.jpg", "category": split,
         "prompt": f"Is there a {thing} in the image?", "text": text}
        for split in ("random", "popular", "adversarial")
        for n, (thing, text) in enumerate([("snowboard", "Yes"), (split, "No")])
    ]  # fmt: skip
    lines(tmp_path / "1.jsonl", rows[:3])
    lines(tmp_path / "2.jsonl", rows[3:])
    golds = sorted(data.glob("coco_pope_*.json"))
    ran = llava(
        "eval", "score", "--annotations", *golds, "--predictions", tmp_path / "1.jsonl",
        tmp_path / "2.jsonl", "pope", "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert ran.json["metrics"]["f1_mean"] == 100
    assert ran.json["counts"]["answered"] == 6


def test_wrong_use_is_explained(llava: InProcess, tmp_path: Path) -> None:
    predictions, gold = gqa(tmp_path)
    base = ("eval", "score", "gqa", "--json", "--predictions")
    assert llava(*base, tmp_path / "none.jsonl", "--annotations", gold).code == 2
    assert llava(*base, predictions, "--annotations", tmp_path / "none.json").code == 2
    ran = llava(*base, predictions)
    assert ran.code == 2
    assert "--annotations is missing" in ran.error["message"]
    put(tmp_path / "o.json", {"a": 1})
    ran = llava(*base, tmp_path / "o.json", "--annotations", gold)
    assert ran.code == 1
    assert "JSON object where rows" in ran.error["message"]
    (tmp_path / "b.jsonl").write_bytes(b"\xff\x00\x01\x02")
    assert "not a text file" in llava(*base, tmp_path / "b.jsonl", "--annotations", gold).err
    assert llava("eval", "score", "nope", "--predictions", predictions).code == 2


def test_scoring_imports_neither_torch_nor_llama_cpp(run: Run, tmp_path: Path) -> None:
    predictions, gold = gqa(tmp_path)
    code = (
        "import sys; from llava_cli.cli import main; code = main(sys.argv[1:]);"
        "bad = {'torch', 'transformers', 'llama_cpp'} & set(sys.modules);"
        "sys.exit(f'{bad}' if bad else code)"
    )
    import subprocess

    from tests.llava_cli.cli.conftest import process_environment

    done = subprocess.run(
        [sys.executable, "-c", code, "eval", "score", "gqa", "--predictions", str(predictions),
         "--annotations", str(gold), "--json"],
        capture_output=True, text=True, env=process_environment(), check=False, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
