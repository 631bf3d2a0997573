"""The world in the files of other data sets: their layout, and nothing that is not true."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llava_cli.cli import main
from llava_train.datagen.coco import Coco
from llava_train.samples.validate import validate
from llava_train.scene_exports import EXPORTS
from llava_train.scene_files import write_scenes

N = 12
Scenes = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_scenes(folder, n=N, seed=9, size=64, also=EXPORTS)
    return folder


@pytest.fixture(scope="module")
def scenes(world: Path) -> Scenes:
    """What is true, by picture."""
    rows = map(json.loads, (world / "scenes.jsonl").read_text().splitlines())
    return {row["image"]: row for row in rows}


def document(path: Path) -> Any:
    return json.loads(path.read_text())


def test_nothing_else_changes_and_nothing_comes_unasked(world: Path, tmp_path: Path) -> None:
    write_scenes(tmp_path, n=N, seed=9, size=64)
    plain = {p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file()}
    assert len(plain) == N + 6
    same = [name for name in plain if not name.name.startswith("card.")]  # they name the others
    assert all((world / name).read_bytes() == (tmp_path / name).read_bytes() for name in same)


def test_the_same_bytes_again_in_the_same_folder(world: Path, tmp_path: Path) -> None:
    for _ in range(2):
        write_scenes(tmp_path, n=N, seed=9, size=64, also=EXPORTS, workers=1)
    names = {p.relative_to(world) for p in world.rglob("*") if p.is_file()}
    assert names == {p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file()}
    assert all((world / name).read_bytes() == (tmp_path / name).read_bytes() for name in names)


def test_coco_has_its_two_files_with_the_same_pictures(world: Path) -> None:
    captions, boxes = (document(world / f"coco_{name}.json") for name in ("captions", "instances"))
    assert {"info", "licenses", "images", "annotations"} == set(captions)
    assert {"info", "licenses", "images", "annotations", "categories"} == set(boxes)
    assert set(captions["annotations"][0]) == {"id", "image_id", "caption"}
    assert {"id", "image_id", "category_id", "bbox", "area", "iscrowd"} <= set(
        boxes["annotations"][0]
    )
    for rows in (captions["annotations"], boxes["annotations"]):
        assert [row["id"] for row in rows] == list(range(1, len(rows) + 1))
    one = Coco(world / "captions.json")
    two = Coco(world / "coco_captions.json", world / "coco_instances.json")
    assert list(one.pictures()) == list(two.pictures()) and one.usable() == N
    one.close()
    two.close()


def test_vqas_answers_are_true_and_convert(world: Path, scenes: Scenes, tmp_path: Path) -> None:
    questions = document(world / "v2_OpenEnded_mscoco_scenes_questions.json")["questions"]
    annotations = document(world / "v2_mscoco_scenes_annotations.json")["annotations"]
    assert [q["question_id"] for q in questions] == [a["question_id"] for a in annotations]
    asked: dict[str, int] = {}
    for question, row in zip(questions, annotations, strict=True):
        objects = scenes[row["image_id"]]["objects"]
        answer, topic = row["multiple_choice_answer"], row["question_type"]
        assert {said["answer"] for said in row["answers"]} == {answer} and len(row["answers"]) == 10
        assert "single word" not in question["question"]
        true = {
            "count": {str(len(objects))},
            "color": {o["color"] for o in objects},
            "shape": {o["shape"] for o in objects},
            "position": {o["cell"] for o in objects},
            "size": {o["size"] for o in objects},
            "presence": {"yes", "no"},
        }
        assert answer in true[topic]
        asked[topic] = asked.get(topic, 0) + 1
    assert asked["count"] == asked["color"] == N and len(asked) == 6
    out = tmp_path / "vqa.json"
    files = [world / "v2_OpenEnded_mscoco_scenes_questions.json", "--annotations"]
    files += [world / "v2_mscoco_scenes_annotations.json", "--image-name", "{image_id}"]
    assert main(["data", "convert", "vqa", *map(str, files), "-o", str(out), "-q"]) == 0
    report = validate([out], images=world)
    assert (report.samples, report.errors) == (len(questions), 0)


@pytest.mark.parametrize("split", ["random", "popular", "adversarial"])
def test_popes_questions_are_half_true_and_half_not(
    world: Path, scenes: Scenes, split: str
) -> None:
    lines = (world / f"coco_pope_{split}.json").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["label"] for row in rows] == ["yes", "no"] * N
    for row in rows:
        thing = row["text"].removeprefix("Is there a").removeprefix("n").strip()
        name = thing.removesuffix(" in the image?")
        there = {f"{o['color']} {o['shape']}" for o in scenes[row["image"]]["objects"]}
        assert (name in there) == (row["label"] == "yes")
        words = {word for other in there for word in other.split()}
        assert split != "adversarial" or words & set(name.split())


def test_scienceqas_problems_are_true_and_convert(
    world: Path, scenes: Scenes, tmp_path: Path
) -> None:
    problems = document(world / "scienceqa" / "problems.json")
    splits = document(world / "scienceqa" / "pid_splits.json")
    assert sorted(splits["trainval"] + splits["test"]) == sorted(problems) and len(problems) == N
    for key, problem in problems.items():
        scene = scenes[f"images/{int(key) - 1:06d}.png"]
        right = problem["choices"][problem["answer"]]
        assert len(set(problem["choices"])) == len(problem["choices"]) >= 2
        if problem["skill"] == "Tell the count":
            assert right == str(len(scene["objects"]))
        elif problem["skill"] == "Tell the odd":
            odd = scene["odd"]
            assert right == f"the {odd['color']} {odd['shape']} in the {odd['cell']}"
        else:
            word = problem["skill"].removeprefix("Tell the ")
            (o,) = [o for o in scene["objects"] if f"in the {o['cell']}?" in problem["question"]]
            assert right == o[word]
        picture = world / "scienceqa" / problem["split"] / key / problem["image"]
        assert picture.read_bytes() == (world / scene["image"]).read_bytes()
    out, folder = tmp_path / "train.json", world / "scienceqa"
    options = ["--splits", str(folder / "pid_splits.json"), "--split", "train", "-o", str(out)]
    convert = ["data", "convert", "scienceqa", str(folder / "problems.json")]
    assert main([*convert, *options, "-q"]) == 0
    report = validate([out], images=folder)
    assert (report.samples, report.errors) == (len(splits["train"]), 0)
