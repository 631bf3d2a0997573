"""`llava eval rate`: blind, resumable, in the terminal and on a page; agreement by hand."""

from __future__ import annotations

import http.client
import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from llava_cli.evals import rating
from llava_cli.evals.rating_web import RatingServer
from llava_cli.evals.rows import Row
from llava_cli.evals.run import Journal
from tests.llava_cli.cli.conftest import InProcess, Ran
from tests.llava_cli.evals.layouts import lines, make


class Desk:
    """OwlEval's questions and the answers of two models."""

    def __init__(self, llava: InProcess, folder: Path) -> None:
        self.llava, self.folder = llava, folder
        self.data = make("owleval", folder / "data")
        for model in ("secret-one", "secret-two"):
            rows = [
                {"question_id": n, "answer": f"says {model[-3:]}{n}", "model_id": model}
                for n in (1, 2)
            ]  # fmt: skip
            lines(folder / f"{model}.jsonl", rows)
        self.ratings = folder / "ratings.jsonl"

    def options(self, rater: str) -> list[Any]:
        found: list[Any] = ["--questions", self.data / "questions.jsonl", "--rater", rater]
        for model in ("secret-one", "secret-two"):
            found += ["--predictions", self.folder / f"{model}.jsonl"]
        return [*found, "-o", self.ratings, "--images", self.data]

    def rate(self, rater: str, said: str) -> Ran:
        return self.llava("eval", "rate", *self.options(rater), "--json", stdin=said.encode())

    def rows(self) -> list[dict[str, Any]]:
        text = self.ratings.read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def desk(llava: InProcess, tmp_path: Path) -> Desk:
    return Desk(llava, tmp_path)


def test_answers_are_graded_blind_shuffled_and_where_the_session_stopped(desk: Desk) -> None:
    first = desk.rate("ann", "a\nx\ns\nB\nq\n")
    assert first.code == 0, first.err
    assert "secret" not in first.err
    assert [row["grade"] for row in desk.rows()] == ["A", "B"]
    second = desk.rate("ann", "C\nD\n")
    assert [row["grade"] for row in desk.rows()] == ["A", "B", "C", "D"]
    assert len({(row["model_id"], row["question_id"]) for row in desk.rows()}) == 4
    assert second.json["ratings"] == 4
    desk.rate("bob", "A\nA\nA\nA\n")
    orders = [
        [(row["model_id"], row["question_id"]) for row in desk.rows() if row["rater"] == name]
        for name in ("ann", "bob")
    ]
    assert orders[0] != orders[1]
    assert set(orders[0]) == set(orders[1])


def test_ratings_are_what_score_owleval_reads(desk: Desk) -> None:
    desk.rate("ann", "A\nA\nA\nD\n")
    ran = desk.llava(
        "eval", "score", "owleval", "--predictions", desk.ratings, "--annotations",
        desk.data / "questions.jsonl", "--json",
    )  # fmt: skip
    assert ran.json["metrics"]["grade_a"] == 75
    assert ran.json["metrics"]["grade_d_instruction"] == 25


def test_a_cut_off_rating_is_given_again(desk: Desk) -> None:
    desk.rate("ann", "A\n")
    desk.ratings.write_bytes(desk.ratings.read_bytes() + b'{"question_id": 1, "gra')
    desk.rate("ann", "B\nB\nB\n")
    assert [row["grade"] for row in desk.rows()] == ["A", "B", "B", "B"]


def row(model: str, question: int, rater: str, grade: str) -> Row:
    data = {"model_id": model, "question_id": question, "rater": rater, "grade": grade}
    return Row(data, Path("r"), 1)


def test_agreement_by_hand() -> None:
    found = rating.agreement(
        [row("m", 1, "a", "A"), row("m", 1, "b", "A"), row("m", 2, "a", "A"), row("m", 2, "b", "B"),
         row("m", 3, "a", "D")]
    )  # fmt: skip
    # Two shared items, one agreed on: 50 %. Grades of shared items: A 3/4, B 1/4.
    assert found["agreement"] == 50
    expected = (3 / 4) ** 2 + (1 / 4) ** 2
    assert found["fleiss_kappa"] == pytest.approx((0.5 - expected) / (1 - expected))
    assert found["models"]["m"] == {"A": 60, "B": 20, "C": 0, "D": 20}
    assert rating.agreement([])["agreement"] is None


def test_the_page_shows_one_answer_at_a_time_and_refuses_other_sites(desk: Desk) -> None:
    items = rating.items(
        desk.data / "questions.jsonl",
        [desk.folder / "secret-one.jsonl", desk.folder / "secret-two.jsonl"],
        desk.data,
    )
    journal = Journal(desk.ratings)
    journal.open()
    server = RatingServer(rating.Session(items, journal, "ann", 0))
    server.start()
    own = f"127.0.0.1:{server.port}"

    def request(method: str, path: str, body: str = "", host: str = own) -> tuple[int, bytes]:
        link = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        kind = {"Host": host, "Content-Type": "application/x-www-form-urlencoded"}
        link.request(method, path, body, kind)
        answer = link.getresponse()
        found = answer.status, answer.read()
        link.close()
        return found

    base = f"/{server.secret}/"
    try:
        assert request("GET", "/")[0] == 403
        assert request("GET", base, host="evil.example")[0] == 403
        for n in range(4):
            status, page = request("GET", base)
            text = page.decode()
            assert status == 200
            assert "secret" not in text
            assert f"{n} of 4" in text
            assert request("GET", base + "picture")[1].startswith(b"\x89PNG")
            found = re.search(r"name=token value=(\w+)", text)
            assert found is not None
            form = urlencode({"token": found[1], "grade": "B"})
            assert request("POST", base + "rate", form)[0] == 303
            assert request("POST", base + "rate", form)[0] == 303  # sent twice, counted once
        assert server.finished.is_set()
        assert "Everything is graded" in request("GET", base)[1].decode()
        assert request("POST", base + "rate", "x" * 5000)[0] == 400
    finally:
        server.close()
        journal.close()
    assert [r["grade"] for r in desk.rows()] == ["B"] * 4


def test_what_is_missing_is_said(desk: Desk) -> None:
    assert desk.llava("eval", "rate", "-o", desk.ratings).code == 2
    assert desk.llava("eval", "rate", *desk.options("ann"), "--no-input").code == 2
