"""`llava eval report` and `compare`: published numbers, warnings, plots, paired statistics."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llava_cli.evals import comparing
from tests.llava_cli.cli.conftest import InProcess
from tests.llava_cli.evals.layouts import lines, make, put


def result(folder: Path, name: str, metrics: dict[str, float], **protocol: Any) -> Path:
    counts = {"expected": 12578, "answered": 12578, "missing": 0, "unparsable": 0}
    counts |= protocol.pop("counts", {})
    document = {"benchmark": name, "metrics": metrics, "counts": counts,
                "protocol": {"rule": "r", "warnings": [], **protocol}}  # fmt: skip
    put(folder / name / "score.json", document)
    return folder / name


def test_ours_stands_beside_the_published_number(llava: InProcess, tmp_path: Path) -> None:
    result(tmp_path, "gqa", {"accuracy": 61.5}, prompt_format="vicuna_v1", image_mode="pad")
    ran = llava("eval", "report", tmp_path, "--json")
    row = ran.json["results"][0]
    assert (row["ours"], row["published"]) == (61.5, 62.0)
    assert row["difference"] == pytest.approx(-0.5)
    assert row["warnings"] == []
    assert llava("eval", "report", tmp_path, "--against", "gpt-9").code == 2


def test_whatever_makes_a_result_incomparable_is_said(llava: InProcess, tmp_path: Path) -> None:
    result(
        tmp_path, "gqa", {"accuracy": 61.5}, prompt_format="mistral", image_mode="crop", suffix="x",
        sampling={"temperature": 0.7},
        counts={"expected": 100, "answered": 90, "missing": 10, "unparsable": 2},
    )  # fmt: skip
    result(tmp_path, "mm-vet", {"mean_score": 30.0}, judge_models=["gpt-5"], judge_rule_file="ours")
    out = llava("eval", "report", tmp_path).out
    for said in (
        "100 items; the published number is of 12,578", "10 items without an answer",
        "2 answers could not be read", "prompt_format is 'mistral'", "image_mode is 'crop'",
        "suffix is 'x'", "temperature 0.7", "judged by gpt-5; published: gpt-4-0613",
        "judged by our wording",
    ):  # fmt: skip
        assert said in out


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.append(tag)


def test_the_page_has_table_radar_and_bars_and_escapes_names(
    llava: InProcess, tmp_path: Path
) -> None:
    result(tmp_path, "gqa", {"accuracy": 61.5, "accuracy_open": 50.0}, model="<script>x")
    result(tmp_path, "pope", {"f1_mean": 85.0})
    result(tmp_path, "mme", {"perception": 1500.0, "existence_accuracy": 90.0})
    page = tmp_path / "r" / "report.html"
    assert llava("eval", "report", tmp_path, "--html", page).code == 0
    text = page.read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(text)
    assert "script" not in tags.seen
    assert tags.seen.count("svg") == 3
    assert "&lt;script&gt;" in text
    assert "http" not in text


def test_no_result_is_explained(llava: InProcess, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert llava("eval", "report", tmp_path / "empty").code == 1
    put(tmp_path / "x.json", {"benchmark": "gqa"})
    assert "no result of llava eval" in llava("eval", "report", tmp_path / "x.json").err


def items(path: Path, scores: list[float]) -> Path:
    lines(path, [{"question_id": n, "score": s, "reason": "match"} for n, s in enumerate(scores)])
    return path


def test_two_results_are_compared_item_by_item(llava: InProcess, tmp_path: Path) -> None:
    a = items(tmp_path / "a.jsonl", [1, 1, 1, 0, 0, 0, 0, 0, 0, 0])
    b = items(tmp_path / "b.jsonl", [1, 1, 0, 1, 1, 1, 1, 1, 1, 0, 1])
    found = llava("eval", "compare", a, b, "--json").json
    assert (found["mean_a"], found["mean_b"]) == (30, 80)
    assert found["difference"] == pytest.approx(50)
    assert found["only_b"] == 1
    # 1 against 6: 2 * (C(7,0) + C(7,1)) / 2^7
    assert found["mcnemar"] == {"a_right_b_wrong": 1, "b_right_a_wrong": 6, "p": 0.125}
    low, high = found["interval"]
    assert low < 50 < high
    assert llava("eval", "compare", a, b, "--json").json == found
    assert "only in B are left out" in llava("eval", "compare", a, b).err


def test_the_interval_agrees_with_the_normal_one_on_many_items() -> None:
    rng = np.random.default_rng(3)
    a = {str(n): float(rng.random() < 0.5) for n in range(4000)}
    b = {k: float(v if rng.random() < 0.8 else 1 - v) for k, v in a.items()}
    gap = np.array([b[k] - a[k] for k in a])
    half = 100 * 1.96 * gap.std() / np.sqrt(len(gap))
    low, high = comparing.compare(a, b).interval
    assert low == pytest.approx(100 * gap.mean() - half, abs=0.1)
    assert high == pytest.approx(100 * gap.mean() + half, abs=0.1)


def test_soft_scores_have_no_mcnemar_and_strangers_cannot_be_compared(
    llava: InProcess, tmp_path: Path
) -> None:
    a, b = items(tmp_path / "a.jsonl", [0.3, 1]), items(tmp_path / "b.jsonl", [0.6, 1])
    assert llava("eval", "compare", a, b, "--json").json["mcnemar"] is None
    lines(b, [{"question_id": "x", "score": 1}])
    assert "no item in common" in llava("eval", "compare", a, b).err


def test_a_run_can_be_reported_and_compared_at_once(llava: InProcess, tmp_path: Path) -> None:
    data = make("gqa", tmp_path / "data")
    for name, said in (("a", "Yes"), ("b", "wall")):
        llava("eval", "run", "gqa", "--data", data, "-o", tmp_path / "r" / name, script=[said])
    found = llava("eval", "compare", tmp_path / "r/a", tmp_path / "r/b", "--json").json
    assert (found["items"], found["difference"]) == (2, 0)
    rows = llava("eval", "report", tmp_path / "r", "--json").json["results"]
    assert [row["model"] for row in rows] == ["llava-demo", "llava-demo"]
    assert json.dumps(rows)
