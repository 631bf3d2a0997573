"""Two processes train what one trains: with pictures, without, mixed; and one goes on for two."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llava_cli.errors import UsageError
from llava_train import parallel
from llava_train.loop import train
from llava_train.recipe import Recipe

RECIPE = Recipe(
    batch=6, micro_batch=2, lr=3e-3, steps=5, workers=1, prefetch=1, save_every=2, grouping="none",
    precision="float32", weight_decay=0.1,
)  # fmt: skip
SUMS = 5e-6
"""Gradients are summed in another order, and AdamW divides what is left by its own size."""
PROGRAM = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from llava_train.loop import train
from llava_train.parallel import leave
from llava_train.recipe import parse
recipe, model, tower, data, pictures, output, stop = sys.argv[1:]
train(
    parse(Path(recipe).read_text(), recipe), model=model, vision_tower=tower, data=[data],
    images=pictures, output=output, max_steps=int(stop),
)
leave()
"""


def two_ranks(tmp_path: Path, recipe: Recipe, *arguments: object) -> None:
    """Start PROGRAM twice, as torchrun does."""
    path = tmp_path / "recipe.toml"
    path.write_text(recipe.to_toml())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
              "OMP_NUM_THREADS": "1"}  # fmt: skip
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(path), *map(str, arguments)],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    try:
        assert [process.wait(timeout=280) for process in ranks] == [0, 0]
    finally:
        for process in ranks:
            process.kill()


def farthest(one: Path, two: Path) -> float:
    """The largest difference of any weight."""
    a, b = (load_file(run / "model" / "model.safetensors") for run in (one, two))
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "changes",
    [{}, {"grouping": "modality", "batch": 3}, {"micro_batch": 6}, {"pack": 220},
     {"adapter": "lora", "lora_rank": 4, "lora_dropout": 0.2}],
    ids=["mixed", "text-only batches", "a rank without a batch", "packed", "lora"],
)  # fmt: skip
def test_two_processes_learn_what_one_learns(
    language_model: Path, vision_tower: Path, talks: Path, pictures: Path, tmp_path: Path,
    changes: dict[str, Any],
) -> None:  # fmt: skip
    recipe = replace(RECIPE, **changes)
    places = (language_model, vision_tower, talks, pictures)
    two_ranks(tmp_path, recipe, *places, tmp_path / "two", 5)
    train(
        recipe, model=language_model, vision_tower=vision_tower, data=[talks], images=pictures,
        output=tmp_path / "one",
    )  # fmt: skip
    assert farthest(tmp_path / "one", tmp_path / "two") < SUMS
    assert len((tmp_path / "two" / "log.jsonl").read_text().splitlines()) == 5
    assert json.loads((tmp_path / "two" / "run.json").read_text())["processes"] == 2


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_one_process_goes_on_where_two_stopped(
    language_model: Path, vision_tower: Path, talks: Path, pictures: Path, tmp_path: Path
) -> None:
    places = (language_model, vision_tower, talks, pictures)
    two_ranks(tmp_path, RECIPE, *places, tmp_path / "run", 3)
    for output in ("run", "one"):
        train(
            RECIPE, model=language_model, vision_tower=vision_tower, data=[talks],
            images=pictures, output=tmp_path / output,
        )  # fmt: skip
    assert farthest(tmp_path / "one", tmp_path / "run") < SUMS


def test_torchruns_variables_must_be_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="RANK"), parallel.group("cpu"):
        pass
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(UsageError, match="MASTER_ADDR"), parallel.group("cpu"):
        pass


def test_buckets_hold_neighbours_of_one_type() -> None:
    sizes = [torch.float32, torch.float32, torch.bfloat16, torch.float32]
    every = [torch.nn.Parameter(torch.zeros(3, dtype=kind)) for kind in sizes]
    assert [len(bucket) for bucket in parallel._buckets(every)] == [2, 1, 1]
