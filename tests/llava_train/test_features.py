"""The tower's output on disk: the run learns the same, and a kill costs no finished row."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from llava_cli.errors import UsageError
from llava_train.features import FeatureCache
from llava_train.loop import train
from llava_train.recipe import Recipe

RECIPE = Recipe(
    stage="stage1", prompt_format="plain", train_language_model=False, batch=5, micro_batch=3,
    lr=5e-2, steps=5, workers=1, prefetch=1, precision="float32",
)  # fmt: skip


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_run_learns_the_same_with_the_cache(
    precision: str, language_model: Path, vision_tower: Path, pairs: Path, pictures: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    weights = []
    for cached in (False, True):
        output = tmp_path / str(cached)
        recipe = replace(RECIPE, feature_cache=cached, precision=precision)
        train(
            recipe, model=language_model, vision_tower=vision_tower, data=[pairs],
            images=pictures, output=output,
        )  # fmt: skip
        weights.append(load_file(output / "model" / "model.safetensors"))
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-5, atol=1e-5)
    assert not (tmp_path / "True" / "features").exists()  # of no use after its run


def test_a_tower_that_is_trained_has_no_cache(
    language_model: Path, vision_tower: Path, pairs: Path, pictures: Path, tmp_path: Path
) -> None:
    recipe = replace(RECIPE, feature_cache=True, train_vision_tower=True)
    with pytest.raises(UsageError, match="frozen"):
        train(
            recipe, model=language_model, vision_tower=vision_tower, data=[pairs],
            images=pictures, output=tmp_path / "run",
        )  # fmt: skip


def test_only_missing_rows_are_computed_and_another_tower_computes_all(tmp_path: Path) -> None:
    pictures = [tmp_path / f"{i}.png" for i in range(70)]
    for path in pictures:
        path.write_bytes(b"picture")
    read: list[Path] = []

    def pixels(path: Any) -> Any:
        read.append(path)
        return np.full((3, 2, 2), int(path.stem), np.float32)

    def tower(batch: torch.Tensor) -> torch.Tensor:
        return batch[:, 0].reshape(-1, 1, 4)

    def filled(identity: str) -> FeatureCache:
        read.clear()
        cache = FeatureCache(tmp_path / "features", pictures, (1, 4), torch.bfloat16)
        cache.fill(identity, pixels, tower, 1, lambda text: None)
        return cache

    cache = filled("tower A")
    assert read == pictures
    assert cache[[pictures[69], pictures[3]]][:, 0, 0].tolist() == [69.0, 3.0]
    assert not filled("tower A")._done("another digest") and read == []
    state = tmp_path / "features" / "features.json"
    state.write_text(state.read_text().replace('"done": 70', '"done": 64'))  # as after a kill
    filled("tower A")
    assert read == pictures[64:]
    filled("tower B")
    assert read == pictures
