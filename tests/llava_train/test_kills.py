"""SIGKILL at ten random steps: what comes out is what an untouched run gives, bit for bit."""

from __future__ import annotations

import json
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from llava_train import checkpoint
from llava_train.recipe import Recipe
from tests.llava_train import processes

STAGE2 = Recipe(
    batch=6, micro_batch=3, lr=3e-3, steps=44, workers=1, prefetch=1, save_every=2,
    precision="float32",
)  # fmt: skip
RECIPES = {
    "stage1": replace(
        STAGE2, stage="stage1", prompt_format="plain", train_language_model=False, lr=5e-2
    ),
    "stage2": STAGE2,
    "lora": replace(STAGE2, stage="lora", adapter="lora", lora_rank=4, lora_dropout=0.1, lr=1e-2),
}
KILLS = 10


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", RECIPES)
def test_ten_kills_change_no_bit(
    kind: str, language_model: Path, vision_tower: Path, pairs: Path, talks: Path, pictures: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    recipe = RECIPES[kind]
    arguments: dict[str, Any] = {
        "recipe": recipe, "model": language_model, "vision_tower": vision_tower,
        "data": [pairs if kind == "stage1" else talks], "images": pictures,
    }  # fmt: skip
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    untouched = processes.start(arguments | {"output": whole})

    rng = np.random.default_rng(list(kind.encode()))
    for step in sorted(1 + rng.choice(recipe.steps - 4, KILLS, replace=False)):
        process = processes.start(arguments | {"output": killed}, pause=0.02)
        processes.wait_for_lines(killed / "log.jsonl", int(step), process)
        time.sleep(rng.uniform(0, 0.04))  # anywhere in a step, or while its state is written
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        left = checkpoint.steps(killed / "checkpoints")
        assert not left or left[-1] >= step - 2 - recipe.save_every  # what a kill may cost
        assert not (killed / "model").exists()
    last = processes.start(arguments | {"output": killed})
    assert processes.finish([untouched, last]) == [0, 0]

    lines = [(run / "log.jsonl").read_text().splitlines() for run in (whole, killed)]
    losses = [[json.loads(line)["loss"] for line in found] for found in lines]
    assert losses[0] == losses[1] and len(losses[0]) == recipe.steps
    ours, theirs = (load_file(run / "model" / "model.safetensors") for run in (killed, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
