"""From the synthetic world to data that validates and that training reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llava_cli.cli import main
from llava_train.samples.validate import validate
from tests.llava_train.datagen.conftest import read_lines
from tests.llava_train.datagen.server import serving

KINDS = ["conversation", "detail", "reasoning"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six scenes; COCO's own two files beside the one that holds both."""
    folder = tmp_path_factory.mktemp("world")
    drawn = ["data", "scenes", "-o", str(folder), "--n", "6", "--seed", "3", "--size", "64"]
    assert main([*drawn, "--also", "coco", "-q"]) == 0
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


def test_from_cocos_files_to_a_trained_model_and_a_page(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    out, run, page = tmp_path / "out", tmp_path / "run", tmp_path / "page.html"
    data = str(out / "instruct.json")

    def llava(*arguments: str) -> str:
        code = main(list(arguments))
        said, err = capsys.readouterr()
        assert code == 0, err
        return said

    with serving() as server:
        llava(
            *("data", "generate", "--captions", str(world / "coco_captions.json")),
            *("--instances", str(world / "coco_instances.json"), "--images", str(world)),
            *("--llm", "m", "--base-url", server.url, "-o", str(out), "-q"),
        )
    samples = read_lines(out / "instruct.jsonl")
    assert sorted({row["kind"] for row in samples}) == KINDS
    checked = json.loads(llava("data", "validate", data, "--images", str(world), "--json"))
    assert (checked["samples"], checked["errors"]) == (len(samples), {})
    counted = json.loads(llava("data", "stats", data, "--json"))
    assert sum(counted["kinds"].values()) == len(samples)

    steps = ["--max-steps", "1", "--set", "batch=2", "--set", "feature_cache=false"]
    recipe = ["--recipe", "demo-stage2", "--output", str(run), "-q", *steps]
    llava(
        "train", "stage2", "--from", "llava-demo", "--data", data, "--images", str(world), *recipe
    )
    assert (run / "model" / "model.safetensors").is_file()
    (step,) = read_lines(run / "log.jsonl")
    assert step["loss"] > 0 and step["answer_tokens"] > 0

    llava("data", "preview", data, "--images", str(world), "--html", str(page), "-q")
    assert page.read_text().count("data:image/") == len(samples)
    shown = llava("data", "preview", data)
    assert all(turn["value"] in shown for row in samples for turn in row["conversations"])
