"""LLaVA-1.6's tiles in training: which grids, how large pictures are, features packed into rows.

How a picture is cut and how many positions it takes is `llava_cli.tiles`, shared with inference;
features are packed by transformers' own code, which learns the vector that ends a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from llava_cli.errors import ImageError, UsageError
from llava_cli.tiles import Grid
from llava_train.conversations import Sample
from llava_train.dataset import Shapes, pictures_of
from llava_train.recipe import Recipe
from llava_train.sources import Picture

_UNKNOWN = (1, 1)
"""Of a picture that cannot be read: the loader leaves its sample out, or stops."""


def pinpoints(recipe: Recipe, size: int) -> list[list[int]]:
    """[height, width] in pixels of a recipe's grids, for a tower of `size` pixels."""
    found = []
    for text in recipe.tiles.split(","):
        rows, _, columns = text.strip().partition("x")
        if not (rows.isdecimal() and columns.isdecimal() and int(rows) and int(columns)):
            raise UsageError(f"tiles: {text!r} is no grid", "write ROWSxCOLUMNS, like 1x2,2x2")
        found.append([int(rows) * size, int(columns) * size])
    return found


def grid_of(config: Any) -> Grid | None:
    """The grids of a model's config; None where it cuts no tiles."""
    if config.model_type != "llava_next":
        return None
    vision = config.vision_config
    pairs = tuple((int(high), int(wide)) for high, wide in config.image_grid_pinpoints)
    return Grid(pairs, vision.image_size, vision.image_size // vision.patch_size)


def shapes_of(samples: Sequence[Sample], images: Path | None, workers: int) -> list[Shapes]:
    """(width, height) of every sample's pictures, upright; mostly their headers are read."""
    pictures = [pictures_of(sample, images) for sample in samples]
    every = list(dict.fromkeys(picture for own in pictures for picture in own))
    with ThreadPoolExecutor(workers, "llava-sizes") as pool:
        known = dict(zip(every, pool.map(_size, every), strict=True))
    return [tuple(known[picture] for picture in own) for own in pictures]


def packed(model: Any, features: torch.Tensor, shapes: Shapes) -> torch.Tensor:
    """(positions, D) of pictures of (width, height), from their squares' (squares, N, D)."""
    grid = grid_of(model.config)
    assert grid is not None, "only a model with tiles has pictures of many shapes"
    parts = torch.split(features, [grid.tiles(shape) for shape in shapes])
    rows, _ = model.model.pack_image_features(
        parts,
        torch.tensor([[high, wide] for wide, high in shapes]),
        vision_feature_select_strategy=model.config.vision_feature_select_strategy,
        image_newline=model.model.image_newline,
    )
    return torch.cat(rows)


def _size(picture: Picture) -> tuple[int, int]:
    try:
        return picture.shape()
    except (ImageError, OSError):
        return _UNKNOWN
