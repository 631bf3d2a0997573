"""`llava eval ensemble scienceqa`: the paper's two ensembles by hand, of files or an endpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.llava_cli.cli.conftest import InProcess, Ran
from tests.llava_cli.evals.layouts import lines, put
from tests.llava_cli.evals.loopback_judge import LoopbackJudge

GOLD = "ABABA"


class Case:
    """Five problems; the first model has 1, 2 and 5 right, the second 1, 3 and 4."""

    def __init__(self, llava: InProcess, folder: Path) -> None:
        self.llava, self.folder = llava, folder
        put(folder / "problems.json", {
            str(n): {"question": f"q{n}", "choices": ["x", "y"], "answer": "AB".index(a),
                     "hint": "", "image": None, "split": "test", "subject": "natural science",
                     "grade": "grade3"}
            for n, a in enumerate(GOLD, 1)
        })  # fmt: skip
        first = ["The answer is A.", "The answer is B.", "The answer is B.", "no idea", "A"]
        lines(folder / "first.jsonl", [
            {"question_id": str(n), "text": text} for n, text in enumerate(first, 1)
        ])  # fmt: skip
        second = ["The answer is A.", "I cannot see it.", "The answer is A.", "The answer is B.",
                  "The answer is C."]  # fmt: skip
        outputs = {str(n): text for n, text in enumerate(second, 1)}
        put(folder / "second.json", {"acc": 0, "results": {}, "outputs": outputs})

    def __call__(self, mode: str, *options: str | Path) -> Ran:
        return self.llava(
            "eval", "ensemble", "scienceqa", "--mode", mode, "--predictions",
            self.folder / "first.jsonl", "--annotations", self.folder / "problems.json",
            "-o", self.folder / "out", "--json", *options,
        )  # fmt: skip


@pytest.fixture
def case(llava: InProcess, tmp_path: Path) -> Case:
    return Case(llava, tmp_path)


def test_complement_takes_the_second_and_fills_up_with_the_first(case: Case) -> None:
    found = case("complement", "--second", case.folder / "second.json").json
    # second: A, -, A, B, (C is beyond the choices); first fills 2 with B and 5 with A
    assert found["metrics"]["accuracy"] == 100
    assert found["protocol"]["sources"] == {"second": 3, "first": 2}
    rows = (case.folder / "out" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(row)["source"] for row in rows] == [
        "second", "first", "second", "second", "first",
    ]  # fmt: skip


def test_judge_decides_where_they_differ_else_the_first_stays(case: Case) -> None:
    replies = case.folder / "again.jsonl"
    again = {"2": "The answer is A.", "3": "hm", "4": "The answer is B."}
    lines(replies, [{"question_id": k, "text": v} for k, v in again.items()])
    found = case("judge", "--second", case.folder / "second.json", "--judge-replies", replies).json
    # 1 both A; 2 judge A (wrong); 3 unreadable: first's B (wrong); 4 judge B; 5 no reply: A
    assert found["metrics"]["accuracy"] == 60
    assert found["protocol"]["sources"] == {"both": 1, "judge": 2, "first": 2}


def test_an_endpoint_stands_in_for_both_files(case: Case) -> None:
    pytest.importorskip("openai")

    def say(_: int, request: dict[str, Any]) -> str:
        text = request["messages"][1]["content"]
        return "The answer is A." if "Two replies" in text else "The answer is B."

    judge = LoopbackJudge(say)
    try:
        options = ("--url", judge.url, "--judge-model", "m")
        found = case("judge", *options).json
        # second says B throughout; differs from the first at 1, 4 (none) and 5: judge says A
        assert found["protocol"]["sources"] == {"judge": 3, "both": 2}
        assert len(judge.requests) == 8
        assert case("judge", *options).json == found
        assert len(judge.requests) == 8
    finally:
        judge.close()


def test_what_is_missing_is_said_first(case: Case) -> None:
    assert case("complement").code == 2
    assert case("judge", "--second", case.folder / "second.json").code == 2
    assert case("complement", "--url", "http://127.0.0.1:1/v1").code == 2
