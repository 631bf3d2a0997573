"""What a source is, told by its content, and brought into one form: llava-hf's.

`open_source` gives a frozen `Source`: configuration, preprocessing and tensors as a llava-hf folder
has them, whatever the layout was. The original LLaVA's layouts are read by `originals.py`, adapters
and deltas are applied by `adapters.py`. Nothing is decided from a folder's or file's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from llava_cli.engines.layouts.adapters import add_base, merge_lora, read_settings
from llava_cli.engines.layouts.originals import open_original
from llava_cli.engines.layouts.shards import open_tensors
from llava_cli.engines.layouts.source import Extras, Source
from llava_cli.engines.layouts.tensors import renamed
from llava_cli.errors import ModelInvalid, ModelNotFound, UsageError
from llava_cli.models.folders import chat_template, front_matter, is_original, read_json
from llava_cli.models.templates import format_of
from llava_cli.prompts import FORMATS

HF_TYPES = {
    "llava": "LlavaForConditionalGeneration",
    "llava_next": "LlavaNextForConditionalGeneration",
    "llava_onevision": "LlavaOnevisionForConditionalGeneration",
}
"""transformers' model_type -> architecture."""
SUPPORTED = (
    "LLaVA-1.5, 1.6 and OneVision in llava-hf's layout, checkpoints of the original LLaVA code, "
    "their projectors, LoRA adapters and deltas with --base"
)


def open_source(path: Path, extras: Extras | None = None) -> Source:
    """Find out what a path holds and open it; a kind that cannot be converted is refused."""
    extras = extras or Extras()
    folder = _model_folder(path)
    name = path.resolve().name.lstrip(".") or "model"
    if extras.prompt_format is not None and extras.prompt_format not in FORMATS:
        raise UsageError(
            f"unknown prompt format: {extras.prompt_format}", f"known: {', '.join(sorted(FORMATS))}"
        )
    if (folder / "adapter_config.json").is_file():
        source = _open_adapter(folder, name, extras)
    else:
        source = _open_folder(folder, name, extras)
    facts = {**front_matter(source.folder), **front_matter(folder)}
    return replace(
        source,
        prompt_format=extras.prompt_format or source.prompt_format,
        facts={key: facts[key] for key in ("license", "base_model", "language") if key in facts},
    )


def _open_folder(folder: Path, name: str, extras: Extras) -> Source:
    """A folder with a config.json of its own: llava-hf or original, whole, projector or delta."""
    config = read_json(folder / "config.json")
    if config.get("quantization_config"):
        raise ModelInvalid(
            "the checkpoint is quantised already, which cannot be converted",
            "convert the model that it was made from",
        )
    if is_original(config):
        return open_original(folder, name, config, extras)
    _refuse_other_kinds(config)
    if extras.vision_tower is not None:
        raise UsageError(f"{folder} holds its own vision tower", "leave out --vision-tower")
    source = Source(
        kind="llava-hf",
        folder=folder,
        name=name,
        config=config,
        preprocessor=read_preprocessor(folder),
        tensors=renamed(open_tensors(folder)),
        prompt_format=_prompt_format(config, folder),
    )
    return source if extras.base is None else add_base(source, extras.base)


def _open_adapter(folder: Path, name: str, extras: Extras) -> Source:
    """A LoRA adapter, merged into the model that it was trained on."""
    settings = read_settings(folder)
    if extras.base is None:
        base = settings.get("base_model_name_or_path") or "unknown"
        raise ModelInvalid(
            f"{folder} is a LoRA adapter of {base}",
            "give the folder or Hub id of that model: --base REF",
        )
    own = folder / "config.json"
    config = read_json(own) if own.is_file() else {}
    if is_original(config):
        source = open_original(folder, name, config, extras)
    else:
        source = _open_folder(_model_folder(extras.base), name, replace(extras, base=None))
    return merge_lora(source, folder, settings)


def read_preprocessor(folder: Path) -> dict[str, Any]:
    """Preparation of pictures, looked up in transformers' order."""
    for name in ("processor_config.json", "preprocessor_config.json"):
        if not (folder / name).is_file():
            continue
        settings = read_json(folder / name)
        if name == "preprocessor_config.json" or settings.get("image_processor"):
            return settings
    raise ModelInvalid(
        f"{folder} holds no preprocessor_config.json, so the size and colours that the tower "
        "expects are unknown",
        "fetch it from where the model came from",
    )


def _model_folder(source: Path) -> Path:
    """The folder of a model or adapter: the source itself, or the `model` of a training run."""
    if not source.exists():
        raise ModelNotFound(
            f"{source} does not exist", "give the folder of a model; `hf download` fetches one"
        )
    if source.is_file():
        if source.suffix != ".gguf" and (source.parent / "config.json").is_file():
            raise ModelInvalid(
                f"{source} is a file, not a model's folder", f"give its folder: {source.parent}"
            )
        what = "already a GGUF file" if source.suffix == ".gguf" else "a file, not a model's folder"
        raise ModelInvalid(f"{source} is {what}", "give the folder that holds config.json")
    for folder in (source, source / "model"):
        for name in ("config.json", "adapter_config.json"):
            if (folder / name).is_file():
                return folder
    raise ModelInvalid(
        f"{source} is no model: it holds neither config.json nor model/config.json",
        "give a llava-hf folder or a training run",
    )


def _refuse_other_kinds(config: Mapping[str, Any]) -> None:
    kind = str(config.get("model_type", ""))
    architectures = [str(a) for a in config.get("architectures") or []]
    if kind not in HF_TYPES or architectures not in ([], [HF_TYPES[kind]]):
        name = ", ".join(architectures) or kind or "unknown"
        raise ModelInvalid(
            f"a model of the architecture {name} cannot be converted",
            f"what can be converted: {SUPPORTED}",
        )


def _prompt_format(config: Mapping[str, Any], folder: Path) -> str | None:
    """As config.json names it, else the one that the chat template writes."""
    name = config.get("llava_prompt_format")
    if name is None:
        template = chat_template(folder)
        return format_of(template) if template else None
    if name not in FORMATS:
        raise ModelInvalid(
            f"llava_prompt_format {name!r} in config.json is not known",
            f"known: {', '.join(sorted(FORMATS))}",
        )
    return str(name)
