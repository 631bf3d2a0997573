"""Beside everything that `llava data` writes lies a card that says where it comes from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llava_train.scene_files import write_scenes
from tests.llava_train.datagen.server import DETAIL, Reply, serving, well_behaved
from tests.llava_train.samples.conftest import Run

Card = Callable[[str], dict[str, Any]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_scenes(folder, n=6, seed=4, size=64, also=("coco", "vqa", "scienceqa"))
    return folder


def read(path: Path) -> dict[str, Any]:
    """A card; its page must hold the same title."""
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    page = path.with_suffix(".md").read_text("utf-8")
    assert page.startswith(f"# {found['title']}\n") and found["made_by"].startswith("llava ")
    return found


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("line", "source", "counts"),
    [
        ("split {world}/instruct.json --part a=1 -o {out} --seed 3", "instruct.json", {"a": 18}),
        ("mix {world}/instruct.json=4 -o {out}/m.json --seed 3", "instruct.json", 4),
        ("convert coco {world}/captions.json -o {out}/c.jsonl --seed 3", "captions.json", 30),
        ("convert llava {world}/instruct.json -o {out}/c.parquet --seed 3", "instruct.json", 18),
        (
            "convert scienceqa {world}/scienceqa/problems.json -o {out}/s.json --seed 3",
            "scienceqa/problems.json",
            6,
        ),
        ("filter {world}/stage1.json -o {out}/f.json --least 1 --seed 3", "stage1.json", 6),
    ],
)
def test_what_is_made_of_files_names_them_with_their_digest(
    data: Run, world: Path, tmp_path: Path, line: str, source: str, counts: Any
) -> None:
    code, _, err = data(*(part.format(world=world, out=tmp_path) for part in line.split()))
    assert code == 0, err
    (path,) = tmp_path.glob("*card.json")
    card = read(path)
    named = card["source"][0] if isinstance(card["source"], list) else card["source"]
    assert named["name"] == Path(source).name and named["sha256"] == digest(world / source)
    assert (card["seed"], card["samples"]) == (3, counts)


def test_a_drawn_world_has_its_seed_and_no_date(data: Run, world: Path, tmp_path: Path) -> None:
    assert data("scenes", "-o", tmp_path, "--n", "2", "--seed", "3")[0] == 0
    card = read(tmp_path / "card.json")
    assert card["seed"] == 3 and card["samples"]["instruct"] == 6 and "made_at" not in card


def test_generated_data_has_models_prompts_rejections_and_cost(
    data: Run, world: Path, tmp_path: Path
) -> None:
    prices = tmp_path / "prices.toml"
    prices.write_text("[m]\ninput = 1000\noutput = 2000\n")

    def script(body: dict[str, Any], times: int) -> Reply:
        refused = len(body["messages"][-1]["content"]) % 2
        return Reply("I'm sorry, no. " + DETAIL) if refused else well_behaved(body, times)

    with serving(script) as server:
        options = ["--llm", "m", "--base-url", server.url, "--prices", prices, "--kind", "detail"]
        files = ["--captions", world / "coco_captions.json"]
        files += ["--instances", world / "coco_instances.json", "-o", tmp_path / "out"]
        assert data("generate", *files, *options, "--seed", "3")[0] == 0
    card = read(tmp_path / "out" / "card.json")
    source = card["source"]
    assert source["instances"]["sha256"] == digest(world / "coco_instances.json")
    assert (card["seed"], card["language_model"]["model"]) == (3, "m")
    assert card["language_model"]["endpoint"] == f"{server.url}/"
    assert all(len(text) == 64 for text in card["prompts_sha256"].values())
    assert card["samples"]["all"] + card["rejected"]["all"] == 6 == card["planned"]["detail"]
    assert card["rejected"].get("refusal", 0) == card["rejected"]["all"]
    assert card["spent"]["cost"] == pytest.approx(6 * 1.2)
