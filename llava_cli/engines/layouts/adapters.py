"""What is added to a base model's weights: LoRA adapters of PEFT, and deltas.

Every sum is computed row by row while the file is written, in float32. Not here: the trained parts
beside an adapter (`originals.py`), training (`llava_train`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llava_cli.engines.layouts.pickles import read_pickle
from llava_cli.engines.layouts.shards import open_tensors, read_header
from llava_cli.engines.layouts.source import Source
from llava_cli.engines.layouts.tensors import Array, Tensor, renamed, summed
from llava_cli.errors import ModelInvalid
from llava_cli.models.folders import read_json
from llava_cli.models.tensor_names import PROJECTOR, TEXT, VISION, canonical

_LORA = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])(?:\.default)?\.weight")
_REFUSED = {
    "use_dora": "DoRA",
    "fan_in_fan_out": "transposed matrices (fan_in_fan_out)",
    "use_qalora": "QA-LoRA",
}


@dataclass(frozen=True)
class Scale:
    """How strongly each module's update counts."""

    alpha: float
    patterns: Mapping[str, float]
    root: bool
    """Divided by the root of the rank (rsLoRA)."""

    def of(self, module: str, rank: int) -> float:
        for pattern, alpha in self.patterns.items():
            if re.fullmatch(rf"(.*\.)?({pattern})", module):
                return self._divided(alpha, rank)
        return self._divided(self.alpha, rank)

    def _divided(self, alpha: float, rank: int) -> float:
        return alpha / (math.sqrt(rank) if self.root else rank)


def read_settings(folder: Path) -> dict[str, Any]:
    """adapter_config.json; kinds of adapters that are no plain sum are refused."""
    settings = read_json(folder / "adapter_config.json")
    if str(settings.get("peft_type", "LORA")).upper() != "LORA":
        raise ModelInvalid(f"{folder} is a {settings.get('peft_type')} adapter, not LoRA")
    for key, what in _REFUSED.items():
        if settings.get(key):
            raise ModelInvalid(
                f"{folder} uses {what}, which cannot be merged here",
                "merge it with peft first: merge_and_unload",
            )
    return settings


def merge_lora(source: Source, folder: Path, settings: Mapping[str, Any]) -> Source:
    """A source with the adapter of a folder in it."""
    merged, count = apply_lora(source.tensors, adapter_tensors(folder), scale_of(settings))
    note = f"LoRA merged into {count} matrices"
    return replace(
        source, kind=f"LoRA on {source.kind}", tensors=merged, notes=(*source.notes, note)
    )


def apply_lora(
    tensors: Mapping[str, Tensor], adapter: Mapping[str, Tensor], scale: Scale
) -> tuple[dict[str, Tensor], int]:
    """W + s B A for every adapted matrix; tensors that were trained whole replace the base's."""
    pairs, rest = pairs_of(adapter)
    result = dict(tensors)
    for name, tensor in rest.items():
        target = canonical(name)
        if target not in result:
            raise ModelInvalid(
                f"tensor {tensor.name} of the adapter has no place in its base model"
            )
        result[target] = tensor
    for module, pair in pairs.items():
        target = canonical(f"{module}.weight")
        if target not in result:
            raise ModelInvalid(
                f"the adapter changes {module}, which its base model does not have",
                "give the model that it was trained on with --base",
            )
        result[target] = _merged(result[target], module, pair, scale)
    return result, len(pairs)


def pairs_of(
    adapter: Mapping[str, Tensor],
) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
    """A and B of every adapted module, and what was trained whole, by the base model's names."""
    halves: dict[str, dict[str, Tensor]] = {}
    rest: dict[str, Tensor] = {}
    for name, tensor in adapter.items():
        match = _LORA.fullmatch(name)
        if match:
            halves.setdefault(match["module"], {})[match["side"]] = tensor
            continue
        if "lora_" in name:
            raise ModelInvalid(f"tensor {name} of the adapter is of a kind that is not known")
        plain = re.sub(r"\.(modules_to_save|original_module)(\.default)?(?=\.)", "", name)
        rest[plain.replace(".base_layer", "")] = tensor
    if not halves:
        raise ModelInvalid("the adapter holds no LoRA matrices")
    pairs = {}
    for module, pair in halves.items():
        if pair.keys() != {"A", "B"}:
            raise ModelInvalid(f"the adapter has only half of {module}", "it is not complete")
        down, up = pair["A"], pair["B"]
        if len(down.shape) != 2 or up.shape[1:] != down.shape[:1]:
            raise ModelInvalid(f"the two matrices of {module} in the adapter do not fit together")
        pairs[module] = (down, up)
    return pairs, rest


def _merged(weight: Tensor, module: str, pair: tuple[Tensor, Tensor], scale: Scale) -> Tensor:
    down, up = pair
    shape = (up.shape[0], down.shape[-1])
    if weight.shape != shape:
        raise ModelInvalid(
            f"the adapter's {module} is {list(shape)}, the base model's {list(weight.shape)}",
            "give the model that it was trained on with --base",
        )
    factor = scale.of(module, down.shape[0])
    inner, read = down.array(), weight.read  # (rank, columns): small

    def rows(first: int, count: int) -> Array:
        update = up.read(first, count) @ inner
        update *= factor
        return read(first, count) + update

    return replace(weight, read=rows)


def add_delta(own: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Delta and base summed; what the base does not have (projector, tower) is the delta's own."""
    result = dict(own)
    for name, tensor in own.items():
        if name.startswith((PROJECTOR, VISION)) or name not in base:
            continue
        if tensor.shape[1:] != base[name].shape[1:]:
            raise ModelInvalid(
                f"tensor {tensor.name} is {list(tensor.shape)} in the delta and "
                f"{list(base[name].shape)} in the base",
                "give the model that the delta was made from with --base",
            )
        result[name] = summed(tensor, base[name])
    missing = [name for name in own if name.startswith(TEXT) and name not in base]
    if missing:
        raise ModelInvalid(
            f"the base model has no {missing[0]}", "give the model that the delta was made from"
        )
    return result


def add_base(source: Source, base: Path) -> Source:
    """A llava-hf checkpoint with a base: a delta."""
    tensors = add_delta(source.tensors, renamed(open_tensors(base)))
    note = "taken as a delta: the base model's weights are added"
    return replace(source, kind="delta", tensors=tensors, notes=(*source.notes, note))


def adapter_tensors(folder: Path) -> dict[str, Tensor]:
    if (folder / "adapter_model.safetensors").is_file():
        return read_header(folder / "adapter_model.safetensors")
    if (folder / "adapter_model.bin").is_file():
        return read_pickle(folder / "adapter_model.bin")
    raise ModelInvalid(f"{folder} holds no adapter_model.safetensors", "it is not complete")


def scale_of(settings: Mapping[str, Any]) -> Scale:
    alpha = settings.get("lora_alpha", 8)
    patterns = settings.get("alpha_pattern") or {}
    if not isinstance(alpha, (int, float)) or not isinstance(patterns, Mapping):
        raise ModelInvalid("lora_alpha in adapter_config.json is not a number")
    return Scale(float(alpha), patterns, bool(settings.get("use_rslora")))
