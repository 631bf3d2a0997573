"""LoRA and DoRA on the language model's linear layers: put in, saved on their own, merged back.

The low-rank layers are peft's; the model's class and its other tensors stay as they are. Not here:
4-bit weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from llava_cli.errors import MissingDependency
from llava_train.recipe import Recipe

_NAME = "default"
_PREFIX = "base_model.model."
"""What peft writes in front of every name."""


def attach(model: Any, recipe: Recipe) -> None:
    """Low-rank layers beside every linear layer of the language model, its head left out.

    They are float32 and trainable; B is zero, so the model computes what it did before.
    """
    try:
        from peft import inject_adapter_in_model
    except ImportError as error:
        raise MissingDependency("LoRA needs peft", "pip install 'llava-cli[train]'") from error
    inject_adapter_in_model(_config(model, recipe), model, adapter_name=_NAME)
    for name, parameter in model.named_parameters():
        if _is_low_rank(name):
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)


def save(folder: Path, model: Any, recipe: Recipe, base: str) -> None:
    """Adapter and connector in peft's layout, for `PeftModel.from_pretrained(base, folder)`."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, tensor in model.state_dict().items():
        if not (_is_low_rank(name) or "multi_modal_projector." in name):
            continue
        own = name.replace(f".lora_magnitude_vector.{_NAME}.weight", ".lora_magnitude_vector")
        own = own.replace(f".{_NAME}.", ".")
        tensors[_PREFIX + own] = tensor.detach().to("cpu").clone()
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    (folder / "adapter_model.safetensors").chmod(0o644)
    config = _config(model, recipe).to_dict() | {
        "base_model_name_or_path": base,
        "inference_mode": True,
        "modules_to_save": ["multi_modal_projector"],
    }
    values = {k: sorted(v) if isinstance(v, set) else v for k, v in config.items()}
    text = json.dumps(values, indent=2, sort_keys=True, default=str)
    (folder / "adapter_config.json").write_text(text + "\n", "utf-8")


def merge(model: Any) -> None:
    """Low-rank layers into the weights, in float32; the model is of plain layers afterwards."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, layer in list(model.named_modules()):
        if not isinstance(layer, BaseTunerLayer):
            continue
        base: Any = layer.get_base_layer()
        base.weight.data = base.weight.data.float()
        layer.merge(safe_merge=True)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, base)
    if hasattr(model, "peft_config"):
        del model.peft_config


def _config(model: Any, recipe: Recipe) -> Any:
    """peft's settings, with every linear layer named: no pattern that could hit a tower."""
    from peft import LoraConfig

    return LoraConfig(
        r=recipe.lora_rank,
        lora_alpha=recipe.lora_alpha,  # type: ignore[arg-type]  # a float is taken
        lora_dropout=recipe.lora_dropout,
        use_dora=recipe.adapter == "dora",
        bias="none",
        target_modules=_targets(model),
    )


def _targets(model: Any) -> str:
    """A pattern of the language model's linear layers, by the names of its own modules."""
    leaves = {
        name.removesuffix(".base_layer").rpartition(".")[2]
        for name, layer in model.model.language_model.named_modules()
        if isinstance(layer, torch.nn.Linear) and ".lora_" not in name
    }
    return rf".*\blanguage_model\..*\.({'|'.join(sorted(leaves))})"


def _is_low_rank(name: str) -> bool:
    return ".lora_" in name
