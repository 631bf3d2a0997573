"""Two processes train what one trains: with pictures, without, mixed; and one goes on for two."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
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
from tests.llava_train import processes

RECIPE = Recipe(
    batch=6, micro_batch=2, lr=3e-3, steps=5, workers=1, prefetch=1, save_every=2, grouping="none",
    precision="float32", weight_decay=0.1,
)  # fmt: skip
SPLIT = 1e-5
"""Gradients of shards are added in float32, and AdamW divides what is left by its own size."""


def two_ranks(recipe: Recipe, places: Sequence[Path], output: Path, stop: int) -> None:
    """Train with two processes, as torchrun starts them."""
    model, tower, data, pictures = places
    arguments = {
        "recipe": recipe, "model": model, "vision_tower": tower, "data": [data],
        "images": pictures, "output": output, "max_steps": stop,
    }  # fmt: skip
    assert processes.together(arguments) == [0, 0]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Matrix products cut up as in the processes of `two_ranks`."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
    changes: dict[str, Any], one_thread: None,
) -> None:  # fmt: skip
    recipe = replace(RECIPE, **changes)
    places = (language_model, vision_tower, talks, pictures)
    two_ranks(recipe, places, tmp_path / "two", 5)
    train(
        recipe, model=language_model, vision_tower=vision_tower, data=[talks], images=pictures,
        output=tmp_path / "one",
    )  # fmt: skip
    assert farthest(tmp_path / "one", tmp_path / "two") == 0
    assert len((tmp_path / "two" / "log.jsonl").read_text().splitlines()) == 5
    assert json.loads((tmp_path / "two" / "run.json").read_text())["processes"] == 2


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "changes",
    [{}, {"grouping": "modality", "batch": 3},
     {"micro_batch": 6, "aspect": "anyres", "train_vision_tower": True}],
    ids=["mixed", "text-only batches", "tiles, a rank without a batch"],
)  # fmt: skip
def test_split_parameters_learn_what_whole_ones_learn(
    language_model: Path, vision_tower: Path, talks: Path, pictures: Path, tmp_path: Path,
    changes: dict[str, Any], one_thread: None,
) -> None:  # fmt: skip
    """FSDP2: sums in another order, so that AdamW ends a little apart; nothing hangs."""
    recipe = replace(RECIPE, shard=True, **changes)
    places = (language_model, vision_tower, talks, pictures)
    two_ranks(recipe, places, tmp_path / "two", 3)  # to a checkpoint, and on from it
    two_ranks(recipe, places, tmp_path / "two", 5)
    train(
        recipe, model=language_model, vision_tower=vision_tower, data=[talks], images=pictures,
        output=tmp_path / "one", max_steps=4,
    )  # fmt: skip
    (tmp_path / "both").mkdir()
    for output in ("one", "two"):  # one process goes on from either's state
        shutil.copytree(tmp_path / output / "checkpoints" / "step-4", tmp_path / "both" / output)
    states = [load_file(tmp_path / "both" / n / "weights.safetensors") for n in ("one", "two")]
    assert states[0].keys() == states[1].keys()
    worst = max(float((states[0][k] - states[1][k]).abs().max()) for k in states[0])
    assert worst < SPLIT
    train(
        recipe, model=language_model, vision_tower=vision_tower, data=[talks], images=pictures,
        output=tmp_path / "one",
    )  # fmt: skip
    assert farthest(tmp_path / "one", tmp_path / "two") < SPLIT


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_one_process_goes_on_where_two_stopped(
    language_model: Path, vision_tower: Path, talks: Path, pictures: Path, tmp_path: Path,
    one_thread: None,
) -> None:  # fmt: skip
    places = (language_model, vision_tower, talks, pictures)
    two_ranks(RECIPE, places, tmp_path / "run", 3)
    for output in ("run", "one"):
        train(
            RECIPE, model=language_model, vision_tower=vision_tower, data=[talks],
            images=pictures, output=tmp_path / output,
        )  # fmt: skip
    assert farthest(tmp_path / "one", tmp_path / "run") == 0


def test_sums_in_float64_do_not_depend_on_their_order() -> None:
    torch.manual_seed(0)
    grads = [torch.randn(4096) * 10.0**power for power in (-4, 0, 3, -2, 1, 2, -3, 0)]
    sums = []
    for order in (grads, grads[::-1], grads[::2] + grads[1::2]):
        parameter = torch.nn.Parameter(torch.zeros(4096))
        total = parallel.GradientSum([parameter], torch.float64)
        for grad in order:
            parameter.grad = grad.clone()
            total.add()
        total.finish(parallel.Group())
        assert parameter.grad is not None and parameter.grad.dtype == torch.float32
        sums.append(parameter.grad)
    assert torch.equal(sums[0], sums[1]) and torch.equal(sums[0], sums[2])
    assert not torch.equal(sum(grads), sum(grads[::-1]))  # type: ignore[arg-type]


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
    every = [torch.zeros(3, dtype=kind) for kind in sizes]
    assert [len(bucket) for bucket in parallel._buckets(every)] == [2, 1, 1]
