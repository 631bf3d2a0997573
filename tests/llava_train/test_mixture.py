"""The samples that the bundled model's stage 2 learns from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from llava_train.demo.mixture import mix, searches, short
from llava_train.scenes import sample_scene

SCENES, ROUNDS = 6, 2


def _mixed(folder: Path, seed: int = 1) -> list[dict[str, Any]]:
    """The samples about a few scenes."""
    records = [
        {"image": f"images/{i:06}.png", **sample_scene(7, i)[0].record()} for i in range(SCENES)
    ]
    scenes, out = folder / "scenes.jsonl", folder / "mixed.jsonl"
    scenes.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    assert mix(scenes, out, seed, ROUNDS, ("mixed", "short")) == 2 * ROUNDS * SCENES
    return [json.loads(line) for line in out.read_text("utf-8").splitlines()]


def _questions(sample: dict[str, Any]) -> list[str]:
    turns = [turn["value"] for turn in sample["conversations"] if turn["from"] == "human"]
    return [turn.replace("<image>\n", "") for turn in turns]


def test_every_picture_comes_back_in_long_and_in_short_samples(tmp_path: Path) -> None:
    samples = _mixed(tmp_path)
    long = [s for s in samples if s["id"].split("-")[1].startswith("mixed")]
    short = [s for s in samples if s["id"].split("-")[1].startswith("short")]
    assert len(long) == len(short) == ROUNDS * SCENES
    assert min(len(_questions(s)) for s in long) > max(len(_questions(s)) for s in short)
    assert len({s["id"] for s in samples}) == len(samples)


def test_a_short_sample_begins_with_the_odd_one_out() -> None:
    turns = [short(sample_scene(7, i)[0], np.random.default_rng([3, i])) for i in range(40)]
    assert all(turn[0].topic == "unusual" for turn in turns)
    assert {"position", "color"} & {turn.topic for each in turns for turn in each}


def test_a_search_begins_with_any_of_its_questions_and_ends_with_the_description() -> None:
    turns = [searches(sample_scene(7, i)[0], np.random.default_rng([3, i])) for i in range(80)]
    topics = [[turn.topic for turn in each] for each in turns]
    assert {"color", "position", "unusual"} < {each[0] for each in topics}
    described = [each for each in topics if "detail" in each]
    assert 0 < len(described) < 40
    assert all(each.index("detail") == len(each) - 1 for each in described)


def test_a_seed_gives_the_same_samples_and_another_others(tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    first = _mixed(tmp_path)
    assert _mixed(tmp_path / "again") == first
    assert _mixed(tmp_path / "again", seed=2) != first
