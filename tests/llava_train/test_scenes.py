"""The synthetic world: deterministic, true to its records, and varied as promised."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from llava_train.scene_files import write_scenes
from llava_train.scenes import (
    BACKGROUNDS,
    CELLS,
    COLORS,
    SHAPES,
    SIZES,
    odd_one,
    sample_layout,
    sample_scene,
)


def _files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_same_bytes_for_any_number_of_workers(tmp_path: Path) -> None:
    write_scenes(tmp_path / "one", n=12, seed=3, workers=1)
    write_scenes(tmp_path / "two", n=12, seed=3, workers=2)
    assert _files(tmp_path / "one") == _files(tmp_path / "two")


def test_another_seed_is_another_world() -> None:
    worlds = [[sample_scene(seed, i)[0] for i in range(5)] for seed in (1, 2)]
    assert worlds[0] != worlds[1]


def test_the_world_is_as_large_as_promised() -> None:
    assert len(COLORS) >= 8 and len(SHAPES) >= 6 and len(SIZES) == 2 and len(CELLS) == 9
    scenes = [sample_layout(np.random.default_rng([5, i])) for i in range(600)]
    assert {len(s.objects) for s in scenes} == set(range(1, 10))
    assert {s.background for s in scenes} == set(BACKGROUNDS)
    assert {o.shape for s in scenes for o in s.objects} == set(SHAPES)
    assert {o.color for s in scenes for o in s.objects} == set(COLORS)
    odd = sum(s.odd is not None for s in scenes) / len(scenes)
    assert 0.35 < odd < 0.65


def test_boxes_lie_in_their_cells_and_hold_their_colour() -> None:
    for index in range(40):
        scene, picture = sample_scene(8, index)
        assert picture.size == (scene.width, scene.height)
        pixels = np.asarray(picture).astype(int)
        for o in scene.objects:
            x, y = (o.box[0] + o.box[2]) / 2, (o.box[1] + o.box[3]) / 2
            assert CELLS[int(y * 3) * 3 + int(x * 3)] == o.place
            seen = pixels[int(y * scene.height), int(x * scene.width)]
            ground = np.array(BACKGROUNDS[scene.background])
            nearest = min(np.abs(seen - np.array(c)).sum() for c in COLORS[o.color])
            assert nearest < np.abs(seen - ground).sum()


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ([("circle", "red", "small")] * 3 + [("circle", "blue", "small")], 3),
        ([("circle", "red", "small"), ("star", "red", "large"), ("circle", "red", "large")], 1),
        ([("circle", "red", "small")] * 4 + [("star", "blue", "small")], 4),
        ([("circle", "red", "small")] * 4 + [("circle", "red", "large")], 4),
        ([("circle", "red", "small"), ("circle", "blue", "small")], None),
        ([("circle", "red", "small")] * 5, None),
        ([("circle", "red", "small")] * 2 + [("star", "blue", "small")] * 2, None),
    ],
)
def test_the_odd_one_is_the_only_exception(
    kinds: list[tuple[str, str, str]], expected: int
) -> None:
    assert odd_one(kinds) == expected


def test_two_candidates_for_the_odd_one_are_refused() -> None:
    with pytest.raises(ValueError, match="two objects"):
        odd_one(
            [("circle", "red", "small")] * 3
            + [("star", "red", "small"), ("circle", "blue", "small")]
        )


def test_every_file_of_a_data_set_agrees_with_its_scenes(tmp_path: Path) -> None:
    write_scenes(tmp_path, n=10, seed=4, size=200, image_format="jpg")
    scenes = [json.loads(line) for line in (tmp_path / "scenes.jsonl").read_text().splitlines()]
    assert len(scenes) == 10
    for scene in scenes:
        with PIL.Image.open(tmp_path / scene["image"]) as picture:
            assert picture.format == "JPEG"
            assert picture.size == (scene["width"], scene["height"]) and max(picture.size) == 200
    captions = json.loads((tmp_path / "captions.json").read_text())
    per_image = [[a for a in captions["annotations"] if a["image_id"] == i] for i in range(10)]
    assert all(len(rows) == 5 for rows in per_image)
    boxes = [[b for b in captions["instances"] if b["image_id"] == i] for i in range(10)]
    assert [len(b) for b in boxes] == [len(s["objects"]) for s in scenes]
    stage1 = json.loads((tmp_path / "stage1.json").read_text())
    assert [len(s["conversations"]) for s in stage1] == [2] * 10
    instruct = json.loads((tmp_path / "instruct.json").read_text())
    kinds = [s["id"].split("-")[1] for s in instruct]
    assert kinds == ["conversation", "detail", "reasoning"] * 10
    for sample in [*stage1, *instruct]:
        turns = sample["conversations"]
        assert [t["from"] for t in turns] == ["human", "gpt"] * (len(turns) // 2)
        assert turns[0]["value"].startswith("<image>\n")
        assert all("<image>" not in t["value"] for t in turns[1:])
