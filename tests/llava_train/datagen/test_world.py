"""From the synthetic world to data that validates and that training reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llava_cli.cli import main
from llava_train.samples.validate import validate
from llava_train.scene_files import write_scenes
from tests.llava_train.datagen.conftest import read_lines
from tests.llava_train.datagen.server import serving

KINDS = ["conversation", "detail", "reasoning"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six scenes; COCO's own two files beside the one that holds both."""
    folder = tmp_path_factory.mktemp("world")
    write_scenes(folder, n=6, seed=3, size=64)
    both = json.loads((folder / "captions.json").read_text())
    captions = {"images": both["images"], "annotations": both["annotations"]}
    instances = {
        "images": both["images"],
        "annotations": both["instances"],
        "categories": both["categories"],
    }
    (folder / "coco_captions.json").write_text(json.dumps(captions))
    (folder / "coco_instances.json").write_text(json.dumps(instances))
    return folder


@pytest.mark.parametrize(
    "files",
    [
        ("--captions", "captions.json"),
        ("--captions", "coco_captions.json", "--instances", "coco_instances.json"),
        ("--captions", "captions.json", "--instances", "captions.json"),
        ("--captions", "captions.json", "--instances", "coco_instances.json"),
    ],
)
def test_the_world_gives_three_kinds_that_validate(
    world: Path, tmp_path: Path, files: tuple[str, ...]
) -> None:
    paths = [part if part.startswith("--") else str(world / part) for part in files]
    out = tmp_path / "out"
    with serving() as server:
        options = ["--images", str(world), "--llm", "m", "--base-url", server.url, "-o", str(out)]
        assert main(["data", "generate", *paths, *options, "-q"]) == 0
    rows = read_lines(out / "instruct.jsonl")
    assert sorted({row["kind"] for row in rows}) == KINDS
    report = validate([out / "instruct.json"], images=world)
    assert (report.errors, report.bad) == (0, 0)
    boxes = json.loads((world / "captions.json").read_text())["instances"]
    for body in server.asked:
        _, _, lines = body["messages"][-1]["content"].partition("\n\n")
        assert len(lines.splitlines()) in {0, *(_boxes_of(boxes).values())}
    assert any("\n\n" in body["messages"][-1]["content"] for body in server.asked)


def _boxes_of(rows: list[dict[str, int]]) -> dict[int, int]:
    counts: dict[int, int] = {}
    for row in rows:
        counts[row["image_id"]] = counts.get(row["image_id"], 0) + 1
    return counts


def test_training_learns_from_what_was_generated(world: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from llava_train.dataset import read

    out = tmp_path / "out"
    with serving() as server:
        options = ["--llm", "m", "--base-url", server.url, "-o", str(out), "-q"]
        assert main(["data", "generate", "--captions", str(world / "captions.json"), *options]) == 0
    found = read([out / "instruct.json"])
    assert len(found) == len(read_lines(out / "instruct.jsonl"))
    assert all(sample.image_turns == (0,) for sample in found)
    assert all((world / str(sample.images[0])).is_file() for sample in found)
    steps = ["--max-steps", "1", "--set", "batch=2", "--set", "feature_cache=false"]
    data = ["--data", str(out / "instruct.json"), "--images", str(world)]
    run = ["--recipe", "demo-stage2", "--output", str(tmp_path / "run"), "-q"]
    assert main(["train", "stage2", "--from", "llava-demo", *data, *run, *steps]) == 0
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
