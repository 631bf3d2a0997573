"""The first 20 losses equal those of a plain loop that uses transformers' own loss, in float32.

The reference shares with the loop the encoded samples and their order: it does one sample a forward
pass, and masks, scatters and averages by transformers' own code. Tiles are cut by its processor,
too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llava_cli.images import Image
from llava_cli.pixels import normalise, prepare
from llava_train.assemble import Parts, assemble
from llava_train.dataset import Plan
from llava_train.export import image_processor
from llava_train.labels import IGNORE_INDEX
from llava_train.loading import load_data
from llava_train.loop import train
from llava_train.recipe import Recipe
from llava_train.tiling import grid_of

STAGE1 = Recipe(
    stage="stage1", prompt_format="plain", train_language_model=False, batch=5, micro_batch=2,
    lr=2e-2, steps=20, workers=1, prefetch=1, save_every=0, precision="float32", warmup=0.1,
)  # fmt: skip
STAGE2 = replace(
    STAGE1, stage="stage2", prompt_format="vicuna_v1", train_language_model=True, lr=2e-3, batch=6
)
LORA = replace(STAGE2, stage="lora", adapter="lora", lora_rank=4, lora_alpha=8.0, lora_dropout=0.0,
               lr=1e-2, lr_connector=1e-3)  # fmt: skip
DORA = replace(LORA, adapter="dora")
TILES = replace(STAGE2, aspect="anyres", train_vision_tower=True, lr_vision_tower=1e-3)
SIGLIP = replace(STAGE2, train_vision_tower=True, aspect="crop")


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()]


def seen(parts: Parts, pictures: list[Any]) -> dict[str, Any]:
    """What transformers' model takes for these pictures."""
    grid = grid_of(parts.model.config)
    if grid is None:
        squares = [normalise(prepare(picture, parts.pixels), parts.pixels) for picture in pictures]
        return {"pixel_values": torch.from_numpy(np.stack(squares))}
    return dict(image_processor(parts.pixels, grid)(images=pictures, return_tensors="pt"))


def reference(recipe: Recipe, parts: Parts, data: Path, pictures: Path) -> Iterator[float]:
    """Losses of a loop with one sample a pass."""
    encoded = load_data(recipe, parts, [data], pictures)
    plan = Plan(encoded, recipe)
    groups = [
        {"params": [p for _, p in parts.parameters(name)], "peak": recipe.lr_of(name)}
        for name in ("vision_tower", "connector", "language_model")
    ]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=0.0, weight_decay=0.0)
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    warm = math.ceil(recipe.warmup * recipe.steps)
    parts.model.train()
    for step in range(recipe.steps):
        rows = plan.batch(step)
        pairs = [(row, *encoded.row(int(row))) for row in rows]
        answers = sum(int((labels[1:] != IGNORE_INDEX).sum()) for _, _, labels in pairs)
        total = 0.0
        for row, ids, labels in pairs:
            opened = [Image.from_path(p.path).open() for p in encoded.images[int(row)]]
            out = parts.model(
                input_ids=torch.from_numpy(ids)[None],
                labels=torch.from_numpy(labels)[None],
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                **(seen(parts, opened) if opened else {}),
                num_items_in_batch=torch.tensor(answers),
            )
            if out.loss.requires_grad:
                out.loss.backward()
            total += float(out.loss.detach())
        torch.nn.utils.clip_grad_norm_(trained, recipe.clip)
        past = (step - warm) / (recipe.steps - warm)
        share = (step + 1) / warm if step < warm else (1 + math.cos(math.pi * past)) / 2
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * share
        optimizer.step()
        optimizer.zero_grad()
        yield total


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe",
    [STAGE1, STAGE2, replace(STAGE2, pack=220), LORA, DORA, TILES, replace(TILES, pack=256),
     SIGLIP],
    ids=["stage1", "stage2", "packed", "lora", "dora", "tiles", "tiles packed", "siglip"],
)  # fmt: skip
def test_twenty_losses_equal_the_reference(
    recipe: Recipe, language_model: Path, vision_tower: Path, siglip_tower: Path, pairs: Path,
    talks: Path, pictures: Path, tmp_path: Path,
) -> None:  # fmt: skip
    if recipe is SIGLIP:
        vision_tower = siglip_tower
    data = pairs if recipe.stage == "stage1" else talks
    start: dict[str, Any] = {"model": language_model, "vision_tower": vision_tower}
    if recipe.stage != "stage1":  # from a finished stage 1, as a user has it
        first = replace(STAGE1, steps=2)
        train(first, **start, data=[pairs], images=pictures, output=tmp_path / "align")
        start = {"from_run": tmp_path / "align"}
    train(recipe, **start, data=[data], images=pictures, output=tmp_path / "run")
    ours = losses(tmp_path / "run")
    theirs = list(reference(recipe, assemble(recipe, **start), data, pictures))
    assert len(ours) == len(theirs) == 20
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < 1e-5
    assert ours[-1] < ours[0] - 0.05
