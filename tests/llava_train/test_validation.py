"""Samples held out: never trained on, measured and answered; and the page that shows a run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llava_cli.errors import UsageError
from llava_train import report
from llava_train.loop import Watch, train
from llava_train.recipe import Recipe
from llava_train.validation import ValidationLog

RECIPE = Recipe(
    batch=4, micro_batch=2, lr=2e-2, steps=8, workers=1, prefetch=1, save_every=2,
    grouping="none", precision="float32", val_samples=3, val_every=4, val_answers=2,
)  # fmt: skip


@pytest.fixture
def places(language_model: Path, vision_tower: Path, talks: Path, pictures: Path) -> dict[str, Any]:
    return {
        "model": language_model, "vision_tower": vision_tower, "data": [talks], "images": pictures
    }  # fmt: skip


def weights(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


def test_measuring_changes_nothing_and_survives_a_stop(
    places: dict[str, Any], tmp_path: Path
) -> None:
    seen: list[ValidationLog] = []
    train(RECIPE, **places, output=tmp_path / "run", watch=Watch(on_validation=seen.append))
    train(replace(RECIPE, val_every=0), **places, output=tmp_path / "rarely")
    assert weights(tmp_path / "run") == weights(tmp_path / "rarely")
    assert [line.step for line in seen] == [4, 8] and seen[1].loss < seen[0].loss
    for stop in (6, 8):
        train(RECIPE, **places, output=tmp_path / "stopped", max_steps=stop)
    logs = [(tmp_path / name / "validation.jsonl").read_text() for name in ("run", "stopped")]
    assert logs[0] == logs[1] and len(logs[0].splitlines()) == 2
    answer = json.loads(logs[0].splitlines()[0])["answers"][0]
    assert answer["sample"].startswith("talk-") and answer["expected"]
    assert "USER:" in answer["question"] and answer["expected"] not in answer["question"]


def test_what_is_held_out_is_never_trained_on(places: dict[str, Any]) -> None:
    from llava_train.assemble import assemble
    from llava_train.dataset import Plan
    from llava_train.loading import load_data

    parts = assemble(RECIPE, model=places["model"], vision_tower=places["vision_tower"])
    data = load_data(RECIPE, parts, places["data"], places["images"])
    plan = Plan(data, RECIPE)
    read = {int(i) for step in range(plan.per_epoch * 3) for i in plan.batch(step)}
    assert read == set(range(12)) - set(plan.held_out.tolist()) and len(plan.held_out) == 3
    assert np.array_equal(plan.held_out, Plan(data, RECIPE).held_out)
    with pytest.raises(UsageError, match="leave none to train on"):
        Plan(data, replace(RECIPE, val_samples=12))


def test_the_page_shows_curves_answers_and_origins(places: dict[str, Any], tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(RECIPE, **places, output=run)
    page = report.write(run).read_text()
    assert page.count("<svg") == 3 and page.count("<img") >= 1 and "base64," in page
    origin = json.loads((run / "run.json").read_text())
    assert origin["versions"]["torch"] in page and "batch = 4" in page
    assert "http" not in page.replace("http-equiv", "")  # nothing is fetched
    answer = json.loads((run / "validation.jsonl").read_text().splitlines()[-1])["answers"][0]
    assert answer["sample"] in page


def test_the_page_escapes_what_files_say(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(
        '{"step": 1, "loss": NaN, "lr": 0.1, "tokens": 3, "seconds": 1}\n{"step": 2, "lo'
    )
    line = {"sample": "<script>", "question": "<b>", "answer": "&", "expected": "x", "pictures": []}
    (tmp_path / "validation.jsonl").write_text(
        json.dumps({"step": 1, "loss": 1.0, "answers": [line]})
    )
    page = report.write(tmp_path).read_text()
    assert "<script>" not in page and "&lt;script&gt;" in page and "&lt;b&gt;" in page


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no log.jsonl"):
        report.write(tmp_path)


def test_a_long_curve_is_thinned_and_an_empty_one_says_so() -> None:
    points = [(float(i), float(i % 7)) for i in range(10_000)]
    assert len(report._thinned(points)) <= 600
    assert "nothing was logged" in report.curve([("x", [])])
