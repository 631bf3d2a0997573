"""Model folders: what they hold, and whether it is complete, before any engine is started.

Understands llava-hf folders, training runs of ours (a `model/` inside), checkpoints of the original
LLaVA code and folders of GGUF files. Everything is decided from the files' contents, never from the
folder's name.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llava_cli.errors import ModelInvalid
from llava_cli.models.files import ModelFiles
from llava_cli.models.templates import format_of

_ORIGINAL_KEYS = (
    "mm_vision_tower", "mm_projector_type", "mm_hidden_size", "mm_vision_select_layer"
)  # fmt: skip
WEIGHTS = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)  # fmt: skip
"""What holds, or lists, a whole model's weights, in the order in which they are looked for."""
PREPROCESSORS = ("preprocessor_config.json", "processor_config.json")


def read_json(path: Path) -> dict[str, Any]:
    """One JSON object from a model's file; damage is a `ModelInvalid`."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelInvalid(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise ModelInvalid(f"{path} is not valid JSON: {error}", "download it again") from error
    if not isinstance(value, dict):
        raise ModelInvalid(f"{path} does not hold a JSON object", "download it again")
    return value


def is_original(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is one that the original LLaVA code wrote."""
    architectures = [str(name) for name in config.get("architectures") or []]
    named = any(re.fullmatch(r"Llava\w*ForCausalLM", name) for name in architectures)
    return named or any(key in config for key in _ORIGINAL_KEYS)


def has_weights(folder: Path) -> bool:
    """Whether the folder holds a whole model's weights in a form that is known."""
    return any((folder / name).is_file() for name in WEIGHTS)


def is_hf_folder(folder: Path) -> bool:
    """A folder with a model's config.json."""
    return (folder / "config.json").is_file()


def resolve_hf(folder: Path, reference: str, *, bundled: bool = False) -> ModelFiles:
    """A complete llava-hf folder, or the reason why it is none."""
    config = read_json(folder / "config.json")
    check_image_model(folder, config)
    check_weights(folder)
    if not any((folder / name).is_file() for name in PREPROCESSORS):
        raise ModelInvalid(
            f"{folder} has no preprocessor_config.json", "download the model again, completely"
        )
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise ModelInvalid(
            f"{folder} has no tokenizer.json", "download the model again, completely"
        )
    return ModelFiles(
        reference=reference,
        format="hf",
        path=folder,
        config=config,
        prompt_format=_prompt_format(folder, config),
        bundled=bundled,
    )


def check_image_model(folder: Path, config: Mapping[str, Any]) -> None:
    """Only models that look at pictures and need no code of their own."""
    if "peft_type" in config or (folder / "adapter_config.json").is_file():
        raise ModelInvalid(f"{folder} is a LoRA adapter, not a model", "merge it into its base")
    if "vision_config" not in config:
        kind = config.get("model_type", "unknown")
        raise ModelInvalid(
            f"{folder} (model type {kind}) cannot look at pictures", "use a LLaVA model"
        )
    if config.get("auto_map"):
        raise ModelInvalid(
            f"{folder} needs program code that came with it, which llava never runs",
            "use a model of a class that transformers itself has",
        )


def check_weights(folder: Path) -> None:
    """All safetensors files are there and whole; pickles are refused."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = read_json(index).get("weight_map", {})
        files = sorted({str(name) for name in names.values()})
    else:
        files = sorted(path.name for path in folder.glob("*.safetensors"))
    if not files:
        if any(folder.glob("*.bin")) or any(folder.glob("*.pt*")):
            raise ModelInvalid(
                f"{folder} has its weights as pickle files only, which can run foreign code",
                "get or make a safetensors version of the model",
            )
        raise ModelInvalid(f"{folder} holds no weights (*.safetensors)", "download it again")
    for name in files:
        _check_safetensors(folder / name)


def _check_safetensors(path: Path) -> None:
    """The header is readable and the file as long as it says."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(size, 1 << 28):
                raise ValueError("header too long")
            header = json.loads(file.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name[:2] != "__"]
    except FileNotFoundError as error:
        raise ModelInvalid(f"{path} is missing", "download the model again, completely") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise ModelInvalid(f"{path} is damaged: {error}", "download it again") from error
    if 8 + length + max(ends, default=0) != size:
        raise ModelInvalid(f"{path} is damaged: it was cut off", "download it again")


def _prompt_format(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The format's exact name as the folder gives it, else what its chat template writes."""
    named = config.get("llava_prompt_format")
    if isinstance(named, str):
        return named
    template = chat_template(folder)
    return format_of(template) if template else None


def chat_template(folder: Path) -> str | None:
    """The folder's chat template, from any of the places where transformers has kept it."""
    jinja = folder / "chat_template.jinja"
    if jinja.is_file():
        return jinja.read_text(encoding="utf-8", errors="replace")
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            template = read_json(folder / name).get("chat_template")
            if isinstance(template, str):
                return template
    return None


def front_matter(folder: Path) -> dict[str, str]:
    """Simple `key: value` lines of a model card's YAML header: licence, base model, language."""
    path = folder / "README.md"
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    match = re.match(r"---\n(.*?)\n---\s*(?:\n|$)", text, re.DOTALL)
    lines = match.group(1).splitlines() if match else []
    pairs = (re.fullmatch(r"(\w+):\s*['\"]?([^'\"\[\]{}\n]+?)['\"]?\s*", line) for line in lines)
    return {pair[1]: pair[2] for pair in pairs if pair}
