"""What differs between CLIP and SigLIP towers: a first position for the class, and pixel values.

A tower is found in a folder of its own, of a whole CLIP or SigLIP, or of a LLaVA, by config.json.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from llava_cli.errors import ModelInvalid
from llava_cli.pixels import PixelConfig

LLAVAS = {
    "llava": "LlavaForConditionalGeneration",
    "llava_next": "LlavaNextForConditionalGeneration",
}
"""model_type -> transformers' class, of models that are trained on."""
_TOWERS = {
    "clip": "CLIPVisionModel", "clip_vision_model": "CLIPVisionModel",
    "siglip": "SiglipVisionModel", "siglip_vision_model": "SiglipVisionModel",
}  # fmt: skip
_HALF = (0.5, 0.5, 0.5)
Load = Callable[[Any, Path], Any]


def tower_of(folder: Path, kind: object, load: Load) -> Any:
    """The tower in a folder whose config says it is a `kind`; `load` loads a class from it."""
    import transformers

    if kind in LLAVAS:
        return load(getattr(transformers, LLAVAS[str(kind)]), folder).model.vision_tower
    if kind not in _TOWERS:
        raise ModelInvalid(
            f"{folder} is no CLIP or SigLIP vision tower (its model_type is {kind!r})",
            "give --vision-tower a CLIPModel, CLIPVisionModel, SiglipModel, SiglipVisionModel or "
            "LLaVA",
        )
    tower = load(getattr(transformers, _TOWERS[str(kind)]), folder)
    if getattr(tower, "use_head", False):  # SigLIP's pooling, which no LLaVA reads
        tower.use_head = tower.config.vision_use_head = False
        del tower.head
    return tower


def has_class(vision: Any) -> bool:
    """Whether the tower of this config puts a position for the class in front of the patches."""
    return bool(vision.model_type == "clip_vision_model")


def positions(vision: Any, select: str) -> int:
    """Positions that one square takes: 336 px in patches of 14 are 24 x 24 = 576."""
    return int((vision.image_size // vision.patch_size) ** 2) + (select == "full")


def usual_pixels(vision: Any) -> PixelConfig:
    """How a tower's pictures are prepared where its folder does not say."""
    if has_class(vision):
        return PixelConfig(size=vision.image_size)
    return PixelConfig(vision.image_size, _HALF, _HALF, pad_color=(127, 127, 127))
