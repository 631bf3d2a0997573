"""The data of a run, encoded for its model; and what its frozen tower sees, where that is kept.

Not here: files (`sources.py`), the order of samples (`dataset.py`), batches (`loader.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from llava_cli.errors import UsageError
from llava_cli.pixels import normalise
from llava_cli.prompts import FORMATS
from llava_train import dataset
from llava_train.assemble import Parts
from llava_train.dataset import EncodedData
from llava_train.features import APicture, FeatureCache
from llava_train.labels import Encoder
from llava_train.loader import decoded
from llava_train.parallel import Group
from llava_train.recipe import Recipe
from llava_train.scienceqa import in_order
from llava_train.stepping import autocast, tower_features
from llava_train.tiling import grid_of, shapes_of

Note = Callable[[str], None]


def load_data(
    recipe: Recipe,
    parts: Parts,
    data: Sequence[str | Path],
    images: str | Path | None,
    note: Note = lambda text: None,
) -> EncodedData:
    """Read and encode all samples of a run."""
    longest = parts.model.config.text_config.max_position_embeddings
    limit = min(recipe.max_length, longest or recipe.max_length)
    encoder = Encoder(parts.tokenizer, image_tokens=parts.image_tokens, max_length=limit)
    folder = None if images is None else Path(images)
    found = dataset.gather(
        [Path(path) for path in data], folder, broken_limit=recipe.broken_limit, note=note
    )
    samples = in_order(found.samples, recipe.answer_order)
    grid = grid_of(parts.model.config)
    encoded = dataset.encode(
        samples, folder, encoder, FORMATS[recipe.prompt_format], parts.pad_id,
        place=recipe.image_place, weights=found.weights, grid=grid,
        shapes=shapes_of(samples, folder, recipe.workers) if grid else (),
    )  # fmt: skip
    note(
        f"{len(encoded)} samples, {int(encoded.lengths.sum())} positions, "
        f"{int(encoded.loss.sum())} of them bear loss"
    )
    if encoded.cut:
        note(f"{encoded.cut} samples are longer than {limit} and were cut at the end")
    return encoded


def feature_cache(
    recipe: Recipe,
    parts: Parts,
    encoded: EncodedData,
    place: Path,
    group: Group,
    note: Note,
) -> FeatureCache | None:
    """The tower's output for every picture of the run, if the recipe says so."""
    pictures = [picture for images in encoded.images for picture in images]
    if not recipe.feature_cache or not pictures:
        return None
    if recipe.train_vision_tower:
        raise UsageError("feature_cache needs a frozen tower", "set train_vision_tower=false")
    if encoded.grid is not None:
        raise UsageError("feature_cache keeps no tiles", "use --set feature_cache=false")
    model, config = parts.model, parts.pixels
    dtype = torch.float32 if recipe.precision == "float32" else torch.bfloat16
    width = model.config.vision_config.hidden_size
    rows = parts.image_tokens
    cache = FeatureCache(place / "features", pictures, (rows, width), dtype)

    def pixels(picture: APicture) -> npt.NDArray[np.float32]:
        return normalise(decoded(picture, config, str(picture))[0], config)

    def tower(batch: torch.Tensor) -> torch.Tensor:
        with autocast(recipe, group.device), torch.no_grad():
            return tower_features(model, batch.to(group.device))

    layer = f"{recipe.feature_layer} {recipe.select} {recipe.aspect} {recipe.precision}"
    parts.module("vision_tower").eval()
    if group.first:
        cache.fill(f"{parts.source} {layer}", pixels, tower, recipe.workers, note)
    group.wait()
    return cache
