"""`llava eval judge` against a loopback judge that is malformed, slow, rate-limited, dishonest."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.llava_cli.cli.conftest import InProcess, Ran
from tests.llava_cli.evals.layouts import lines, make, put
from tests.llava_cli.evals.loopback_judge import LoopbackJudge, Reply

pytest.importorskip("openai")
Say = Callable[[int, dict[str, Any]], Reply]


@pytest.fixture
def start() -> Iterator[Callable[[Say], LoopbackJudge]]:
    judges: list[LoopbackJudge] = []

    def go(say: Say) -> LoopbackJudge:
        judges.append(LoopbackJudge(say))
        return judges[-1]

    yield go
    for judge in judges:
        judge.close()


class Case:
    """A small LLaVA-Bench or MM-Vet, answered, and its judging."""

    def __init__(self, llava: InProcess, folder: Path, name: str) -> None:
        self.llava, self.name = llava, name
        self.data, self.out = make(name, folder / "data"), folder / "out"
        self.answers = folder / "answers.jsonl"
        said = ["It is a wall.", "A red wall."]
        rows = [
            {"question_id": n, "text": text, "answer_id": f"a{n}"} for n, text in enumerate(said)
        ]
        lines(self.answers, rows)

    def judge(self, judge: LoopbackJudge, *options: str | Path) -> Ran:
        return self.llava(
            "eval", "judge", self.name, "--predictions", self.answers, "--data", self.data,
            "-o", self.out, "--url", judge.url, "--judge-model", "judge", "--json", "-q",
            "--workers", "1", "--retries", "0", *options,
        )  # fmt: skip

    def reviews(self, name: str = "reviews-1.jsonl") -> list[dict[str, Any]]:
        text = (self.out / name).read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def wild(llava: InProcess, tmp_path: Path) -> Case:
    return Case(llava, tmp_path, "llava-bench")


@pytest.fixture
def vet(llava: InProcess, tmp_path: Path) -> Case:
    return Case(llava, tmp_path, "mm-vet")


def test_reviews_have_upstreams_rows_and_the_message_its_sections(wild: Case, start: Any) -> None:
    judge = start(lambda n, _: ["8 6\nfine", "10 5\nfine"][n % 2])
    ran = wild.judge(judge, "--runs", "2")
    assert ran.code == 0, ran.err
    row = wild.reviews()[1]
    assert row == {
        "id": 2, "question_id": 1, "answer1_id": 1, "answer2_id": "a1",
        "category": "llava_bench_detail", "content": "10 5\nfine", "tuple": [10, 5],
        "judge": "judge-0001",
    }  # fmt: skip
    request = judge.requests[0]
    assert (request["temperature"], request["max_tokens"]) == (0.2, 1024)
    content = request["messages"][1]["content"]
    assert content.startswith(
        "[Context]\nA red wall.\n\n[Question]\nWhat is it?\n\n[Assistant 1]\nA wall.\n\n"
        "[End of Assistant 1]\n\n[Assistant 2]\nIt is a wall.\n\n[End of Assistant 2]\n\n[System]\n"
    )
    score = ran.json["score"]
    assert score["metrics"]["relative_score"] == pytest.approx(100 * 11 / 18)
    assert score["protocol"]["judge_models"] == ["judge-0001"]
    assert len(score["protocol"]["judge_rule"]) == 12
    assert ran.json["judged"]["requests"] == 4


def test_nothing_is_judged_twice(wild: Case, start: Any) -> None:
    judge = start(lambda *_: "8 6")
    wild.judge(judge)
    before = wild.reviews()
    ran = wild.judge(judge)
    assert len(judge.requests) == 6
    assert ran.json["judged"]["kept"] == 6
    assert wild.reviews() == before


def test_replies_that_cannot_be_read_are_asked_for_again_then_counted(
    wild: Case, start: Any
) -> None:
    replies = ["Well, both are nice.", "11 200", "8 6 7", "nan nan", "9 6\nok"]
    judge = start(lambda n, _: replies[min(n, 4)])
    ran = wild.judge(judge, "--runs", "1")
    assert [row["tuple"] for row in wild.reviews()] == [[-1, -1], [9, 6]]
    assert ran.json["score"]["counts"]["unparsable"] == 1
    assert ran.json["score"]["metrics"]["relative_score"] == pytest.approx(100 * 6 / 9)
    ran = wild.judge(judge, "--runs", "1", "--retry-failed")
    assert ran.json["score"]["counts"]["unparsable"] == 0
    assert [row["question_id"] for row in wild.reviews()] == [0, 1]


@pytest.mark.parametrize(
    "bad",
    [
        (500, {"error": {"message": "down"}}),
        (429, {"error": {"message": "slow down"}}),
        (200, b"{not json"),
        (200, {"choices": []}),
        (200, {"model": "x", "choices": [{"index": 0, "message": {"role": "assistant"}}]}),
        (400, {"error": {"message": "too long"}}),
        3.0,
    ],
)
def test_an_item_without_a_reply_is_a_failure_that_the_next_run_mends(
    wild: Case, start: Any, bad: Reply
) -> None:
    broken = True

    def say(_: int, request: dict[str, Any]) -> Reply:
        first = "What is it?" in request["messages"][1]["content"]
        return bad if first and broken else "8 6"

    judge = start(say)
    ran = wild.judge(judge, "--runs", "1", "--timeout", "1")
    assert ran.code == 5
    assert len(ran.json["judged"]["failures"]) == 1
    assert [row["question_id"] for row in wild.reviews()] == [1]
    assert ran.json["score"]["counts"]["missing"] == 1
    broken = False
    ran = wild.judge(judge, "--runs", "1")
    assert ran.code == 0
    assert [row["id"] for row in wild.reviews()] == [1, 2]


def test_a_rate_limit_is_waited_out(wild: Case, start: Any) -> None:
    judge = start(lambda n, _: (429, {"error": {}}) if n % 2 == 0 else "8 6")
    assert wild.judge(judge, "--runs", "1", "--retries", "2").code == 0
    assert len(wild.reviews()) == 2


def test_a_wrong_key_ends_the_run_at_once(wild: Case, start: Any) -> None:
    judge = start(lambda *_: (401, {"error": {"message": "no"}}))
    ran = wild.judge(judge)
    assert ran.code == 1
    assert "check --url" in ran.error["hint"]
    assert len(judge.requests) == 1


def test_a_budget_stops_and_the_next_run_goes_on(wild: Case, start: Any) -> None:
    judge = start(lambda *_: "8 6")
    ran = wild.judge(judge, "--max-requests", "3")
    assert ran.code == 5
    assert ran.json["judged"]["left"] > 0
    assert len(judge.requests) == 3
    ran = wild.judge(judge, "--max-total-tokens", "20")
    assert len(judge.requests) == 5
    assert wild.judge(judge).code == 0
    assert len(judge.requests) == 6


def test_another_rule_or_other_answers_do_not_mix(wild: Case, start: Any, tmp_path: Path) -> None:
    judge = start(lambda *_: "8 6")
    wild.judge(judge, "--runs", "1")
    rule = {"role": "Assistant", "prompt": "Rate."}
    put(tmp_path / "rule.json", {"llava_bench_conv": rule, "llava_bench_detail": rule})
    ran = wild.judge(judge, "--rule", tmp_path / "rule.json")
    assert ran.code == 2
    assert "another rule" in ran.error["message"]
    rows = [{"question_id": n, "text": "New.", "answer_id": f"b{n}"} for n in (0, 1)]
    lines(wild.answers, rows)
    ran = wild.judge(judge, "--runs", "1")
    assert "of another answer" in ran.error["message"]
    wild.out = tmp_path / "other"
    assert wild.judge(judge, "--rule", tmp_path / "rule.json", "--runs", "1").code == 0
    assert judge.requests[-1]["messages"][1]["content"].endswith("[System]\nRate.\n\n")


def test_references_are_written_by_the_text_only_model(wild: Case, start: Any) -> None:
    def say(_: int, request: dict[str, Any]) -> Reply:
        return "8 6" if "[System]" in request["messages"][1]["content"] else "From words: a wall."

    boxes = [{"category": "wall", "bbox": [0.1, 0.2, 0.3, 0.4]}]
    context = {"id": "1", "image": "001.jpg", "captions": ["A wall.", "Red."], "instances": boxes}
    lines(wild.data / "context.jsonl", [context])
    judge = start(say)
    ran = wild.judge(judge, "--make-references", "--runs", "1")
    assert ran.code == 0, ran.err
    asked = judge.requests[0]["messages"][1]["content"]
    assert asked == "A wall.\nRed.\n\nwall: [0.1, 0.2, 0.3, 0.4]\n\nWhat is it?"
    assert "From words: a wall." in judge.requests[-1]["messages"][1]["content"]
    assert wild.reviews()[0]["category"] == "conv"
    assert len(wild.reviews("references.jsonl")) == 2


def test_both_orders_show_what_the_first_place_is_worth(wild: Case, start: Any) -> None:
    judge = start(lambda *_: "9 7\nthe first is better")
    ran = wild.judge(judge, "--runs", "1", "--swap")
    metrics = ran.json["score"]["metrics"]
    assert metrics["position_bias"] == 2
    assert metrics["verdicts_changed_by_order"] == 100
    assert [row["tuple"] for row in wild.reviews("swapped-1.jsonl")] == [[7, 9]] * 2


def test_mm_vet_grades_in_the_organisers_form(vet: Case, start: Any) -> None:
    replies = {
        "What is x?": iter(["0.5", "0.6"]),
        "Color?": iter(["bad", "2", "-1", "x", "y", "1"]),
    }

    def say(_: int, request: dict[str, Any]) -> Reply:
        row = request["messages"][0]["content"].splitlines()[-1]
        return next(replies[row.split(" | ")[0]])

    judge = start(say)
    ran = vet.judge(judge, "--runs", "2")
    assert ran.code == 0, ran.err
    grades = json.loads((vet.out / "grades.json").read_text(encoding="utf-8"))
    assert grades["v1_0"] == {"model": ["judge-0001"] * 2, "content": ["0.5", "0.6"],
                              "score": [0.5, 0.6]}  # fmt: skip
    assert grades["v1_1"]["score"] == [0.0, 1.0]
    assert [r["temperature"] for r in judge.requests[1:6]] == [0, 0.5, 1.0, 1.5, 2.0]
    last = judge.requests[0]["messages"][0]["content"].splitlines()[-1]
    assert last == "What is x? | -1 <AND> -5 | It is a wall. | "
    assert ran.json["score"]["metrics"]["mean_score"] == pytest.approx(100 * 2.1 / 4)
    assert ran.json["score"]["counts"]["unparsable"] == 1


def test_mm_vet_reads_the_organisers_predictions(vet: Case, start: Any) -> None:
    put(vet.answers, {"v1_0": "x = -1", "v1_1": "red"})
    judge = start(lambda *_: "0.1")
    assert vet.judge(judge, "--runs", "1").json["judged"]["done"] == 2


def test_what_cannot_work_is_said_before_anything_is_sent(wild: Case, start: Any) -> None:
    judge = start(lambda *_: "8 6")
    (wild.data / "answers_gpt4.jsonl").unlink()
    ran = wild.judge(judge)
    assert ran.code == 2
    assert "--make-references" in ran.error["hint"]
    ran = wild.judge(judge, "--make-references", "--url", "https://judge.example/v1")
    assert "no key" in ran.error["message"]
    assert judge.requests == []


def test_files_are_joined_by_id_not_by_line(wild: Case, start: Any) -> None:
    rows = [{"question_id": n, "text": f"answer {n}", "answer_id": f"a{n}"} for n in (1, 0)]
    lines(wild.answers, rows)
    judge = start(lambda *_: "8 6")
    assert wild.judge(judge, "--runs", "1").code == 0
    content = judge.requests[0]["messages"][1]["content"]
    assert "What is it?" in content
    assert "answer 0" in content
