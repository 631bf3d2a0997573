"""LoRA, DoRA and QLoRA on the language model's linear layers: put in, saved alone, merged back.

The low-rank layers are peft's, the 4-bit weights bitsandbytes'; the model's class and its other
tensors stay as they are.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from llava_cli.errors import MissingDependency, UsageError
from llava_train.recipe import Recipe

_NAME = "default"
_PREFIX = "base_model.model."
"""What peft writes in front of every name."""


def check(recipe: Recipe) -> None:
    """Before a model is loaded: what QLoRA needs is there."""
    if recipe.adapter != "qlora":
        return
    if not torch.cuda.is_available():
        raise UsageError(
            "QLoRA needs a CUDA GPU",
            "use --set adapter=lora --set frozen_dtype=bfloat16: half the memory of float32",
        )
    if find_spec("bitsandbytes") is None:
        raise MissingDependency("QLoRA needs bitsandbytes", "pip install bitsandbytes")


def attach(model: Any, recipe: Recipe) -> None:
    """Low-rank layers beside every linear layer of the language model, its head left out.

    They are float32 and trainable; B is zero, so the model computes what it did before. For QLoRA
    the layers' own weights become 4-bit (NF4, their scales quantised too) on the way to the GPU.
    """
    try:
        from peft import inject_adapter_in_model
    except ImportError as error:
        raise MissingDependency("LoRA needs peft", "pip install 'llava-cli[train]'") from error
    if recipe.adapter == "qlora":
        _quantise(model)
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
    """Low-rank layers into the weights, in float32; the model is of plain layers afterwards.

    4-bit weights are taken as what they stand for: that is what was trained beside.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, layer in list(model.named_modules()):
        if not isinstance(layer, BaseTunerLayer):
            continue
        base: Any = layer.get_base_layer()
        if hasattr(base.weight, "quant_state"):
            merged = _dequantised(base)
            with torch.no_grad():
                delta = layer.get_delta_weight(_NAME)  # type: ignore[attr-defined]
                merged.weight += delta.to(merged.weight)
            base = merged
        else:
            base.weight.data = base.weight.data.float()
            layer.merge(safe_merge=True)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, base)
    for name in ("peft_config", "is_loaded_in_4bit"):
        if name in vars(model):
            delattr(model, name)


def _quantise(model: Any) -> None:
    """Linear layers of the language model as bitsandbytes' 4-bit ones."""
    import bitsandbytes

    for name, layer in list(model.model.language_model.named_modules()):
        if not isinstance(layer, torch.nn.Linear):
            continue
        four = bitsandbytes.nn.Linear4bit(
            layer.in_features, layer.out_features, bias=layer.bias is not None,
            compute_dtype=torch.bfloat16, compress_statistics=True, quant_type="nf4",
        )  # fmt: skip
        four.weight = bitsandbytes.nn.Params4bit(
            layer.weight.data, requires_grad=False, compress_statistics=True, quant_type="nf4",
            module=four,
        )  # fmt: skip
        four.bias = layer.bias
        parent, _, child = name.rpartition(".")
        setattr(model.model.language_model.get_submodule(parent), child, four)
    model.is_loaded_in_4bit = True  # peft asks


def _dequantised(layer: Any) -> torch.nn.Linear:
    """A 4-bit layer as a float32 one."""
    from bitsandbytes.functional import dequantize_4bit

    bias = layer.bias is not None
    plain = torch.nn.Linear(layer.in_features, layer.out_features, bias, device=layer.weight.device)
    with torch.no_grad():
        plain.weight.copy_(dequantize_4bit(layer.weight.data, layer.weight.quant_state))
        if bias:
            plain.bias.copy_(layer.bias)
    return plain


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
