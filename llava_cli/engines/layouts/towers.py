"""The vision tower of an original checkpoint: from its own tensors, or from a folder given for it.

The original code loads the tower that config.json names and ignores the one in the checkpoint,
unless that was trained. Which files a name stands for is the person's to say (`--vision-tower`);
where the checkpoint holds the tower and its shape is one that is known, nothing need be said.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llava_cli.engines.layouts.shards import open_tensors
from llava_cli.engines.layouts.tensors import Tensor, renamed
from llava_cli.errors import ModelInvalid
from llava_cli.models.folders import read_json
from llava_cli.models.tensor_names import VISION
from llava_cli.pixels import CLIP_MEAN, CLIP_STD

KNOWN: dict[tuple[str, int], dict[str, Any]] = {
    ("clip", 768): {"num_attention_heads": 12, "layers": 12},
    ("clip", 1024): {"num_attention_heads": 16, "layers": 24},
    ("siglip", 1152): {"num_attention_heads": 16, "layers": 27},
}
"""Kind and width -> what tensors do not tell, of OpenAI's CLIP B and L and SigLIP so400m."""


@dataclass(frozen=True)
class Tower:
    """A vision tower in llava-hf's form."""

    kind: Literal["clip", "siglip"]
    config: Mapping[str, Any]
    preprocessor: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    feature_layer: int
    notes: tuple[str, ...] = ()


def choose_tower(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], given: Path | None
) -> Tower:
    """The tower that the model was trained with."""
    inside = {name: tensor for name, tensor in tensors.items() if name.startswith(VISION)}
    trained = bool(config.get("unfreeze_mm_vision_tower")) or "mm_vision_tower" in str(
        config.get("mm_tunable_parts") or ""
    )
    named = config.get("mm_vision_tower") or "unknown"
    if given is None and not inside:
        raise ModelInvalid(
            f"the checkpoint does not hold its vision tower ({named})",
            f"name its folder or Hub id: --vision-tower {named}",
        )
    if given is None and trained is False and inside:
        return _tower(config, inside, None, own=True)
    outside = read_tower(given) if given is not None else None
    if inside and (trained or outside is None):
        return _tower(config, inside, outside, own=True)
    if outside is None:
        raise ModelInvalid("no vision tower was found", "give its folder: --vision-tower REF")
    return _tower(config, outside.tensors, outside, own=False)


@dataclass(frozen=True)
class _Folder:
    config: Mapping[str, Any]
    preprocessor: Mapping[str, Any] | None
    tensors: Mapping[str, Tensor]


def read_tower(folder: Path) -> _Folder:
    """A folder of CLIP or SigLIP, whole or its tower alone."""
    config = read_json(folder / "config.json")
    vision = config.get("vision_config") or config
    if not isinstance(vision, Mapping):
        raise ModelInvalid(f"vision_config in {folder / 'config.json'} is not an object")
    vision = dict(vision)
    if str(vision.get("model_type")) not in ("clip_vision_model", "siglip_vision_model"):
        raise ModelInvalid(
            f"{folder} holds a {vision.get('model_type')}, not a CLIP or SigLIP tower",
            "give the tower that config.json names as mm_vision_tower",
        )
    tensors = {
        name: tensor
        for name, tensor in renamed(open_tensors(folder)).items()
        if not re.match(r"text_model\.|logit_|text_projection|visual_projection", name)
    }
    if not any(name.startswith(VISION) for name in tensors):  # as transformers 5 saves a tower
        tensors = {VISION + name: tensor for name, tensor in tensors.items()}
    tensors = {name: tensor for name, tensor in tensors.items() if name.startswith(VISION)}
    path = folder / "preprocessor_config.json"
    return _Folder(vision, read_json(path) if path.is_file() else None, tensors)


def _tower(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], folder: _Folder | None, *, own: bool
) -> Tower:
    kind: Literal["clip", "siglip"] = (
        "clip" if VISION + "embeddings.class_embedding" in tensors else "siglip"
    )
    layers = len({m[1] for n in tensors if (m := re.search(r"encoder\.layers\.(\d+)\.", n))})
    vision = dict(folder.config) if folder else _from_shapes(kind, tensors, layers)
    vision["num_hidden_layers"] = layers
    vision.setdefault("image_size", 224)
    feature = config.get("mm_vision_select_layer")
    if kind == "siglip":
        # the original code cuts SigLIP's last layer off, also when it saves, and reads the end
        full = KNOWN.get((kind, int(vision.get("hidden_size", 0))), {}).get("layers", layers)
        whole = not own or (folder is None and layers == full)
        feature = -2 if whole else -1
    if not isinstance(feature, int) or isinstance(feature, bool):
        raise ModelInvalid("mm_vision_select_layer in config.json is not a whole number")
    preprocessor = dict((folder.preprocessor if folder else None) or {})
    return Tower(
        kind=kind,
        config=vision,
        preprocessor=preprocessor or _preprocessor(kind, int(vision["image_size"])),
        tensors=tensors,
        feature_layer=feature,
    )


def _from_shapes(
    kind: Literal["clip", "siglip"], tensors: Mapping[str, Tensor], layers: int
) -> dict[str, Any]:
    """Numbers of a tower that is known by its width."""
    try:
        width, _, patch, _ = tensors[VISION + "embeddings.patch_embedding.weight"].shape
        positions = tensors[VISION + "embeddings.position_embedding.weight"].shape[0]
        ffn = tensors[VISION + "encoder.layers.0.mlp.fc1.weight"].shape[0]
    except (KeyError, ValueError, IndexError) as error:
        raise ModelInvalid("the checkpoint's vision tower is not complete") from error
    known = KNOWN.get((kind, width))
    if known is None or layers not in (known["layers"], known["layers"] - 1):
        raise ModelInvalid(
            f"the checkpoint's vision tower ({width} wide, {layers} layers) is not one that is "
            "known by its shape",
            "name it, so that its config.json can be read: --vision-tower REF",
        )
    side = math.isqrt(positions - int(kind == "clip"))
    return {
        "model_type": f"{kind}_vision_model",
        "hidden_size": width,
        "intermediate_size": ffn,
        "num_attention_heads": known["num_attention_heads"],
        "image_size": 384 if (kind, side, patch) == ("siglip", 27, 14) else side * patch,
        "patch_size": patch,
        "hidden_act": "quick_gelu" if kind == "clip" else "gelu_pytorch_tanh",
        **({"vision_use_head": False} if kind == "siglip" else {}),
    }


def _preprocessor(kind: str, size: int) -> dict[str, Any]:
    """As OpenAI's CLIP and Google's SigLIP prepare pictures."""
    square = {"height": size, "width": size}
    common: dict[str, Any] = {
        "do_resize": True, "do_rescale": True, "do_normalize": True, "rescale_factor": 1 / 255,
        "resample": 3,
    }  # fmt: skip
    if kind == "siglip":
        half = [0.5, 0.5, 0.5]
        return common | {
            "image_processor_type": "SiglipImageProcessor", "size": square,
            "image_mean": half, "image_std": half,
        }  # fmt: skip
    return common | {
        "image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": size},
        "crop_size": square, "do_center_crop": True, "image_mean": list(CLIP_MEAN),
        "image_std": list(CLIP_STD),
    }  # fmt: skip
