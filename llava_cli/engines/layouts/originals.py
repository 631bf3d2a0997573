"""Checkpoints of the original LLaVA code (and LLaVA-NeXT's), brought into llava-hf's form.

A whole model, or only its projector (`mm_projector.bin`) or what was trained beside a LoRA
(`non_lora_trainables.bin`) over a language model given as base. The tower is in the checkpoint, or
beside it in a folder of its own. Not here: its numbers (`towers.py`), LoRA (`adapters.py`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llava_cli.engines.layouts.adapters import add_delta
from llava_cli.engines.layouts.pickles import read_pickle
from llava_cli.engines.layouts.shards import open_tensors, read_header
from llava_cli.engines.layouts.source import Extras, Source
from llava_cli.engines.layouts.tensors import Tensor, constant, renamed, stacked
from llava_cli.engines.layouts.towers import Tower, choose_tower
from llava_cli.errors import ModelInvalid
from llava_cli.models.folders import chat_template, has_weights, read_json
from llava_cli.models.templates import format_of
from llava_cli.models.tensor_names import NEWLINE, PROJECTOR, TEXT, VISION
from llava_cli.prompts import FORMATS

LANGUAGES = {
    "LlavaLlamaForCausalLM": "llama",
    "LlavaMistralForCausalLM": "mistral",
    "LlavaQwenForCausalLM": "qwen2",
    "LlavaPhiForCausalLM": "phi",
    "LlavaPhi3ForCausalLM": "phi3",
}
"""The original code's classes -> transformers' model_type of the language model."""
_TYPES = {
    "llava": "llama", "llava_llama": "llama", "llava_mistral": "mistral", "llava_qwen": "qwen2",
    "llava_phi": "phi",
}  # fmt: skip
PARTS = ("mm_projector.bin", "mm_projector.safetensors", "non_lora_trainables.bin",
         "non_lora_trainables.safetensors")  # fmt: skip
"""Files that hold only what was trained beside the language model."""
EMBEDDING = TEXT + "embed_tokens.weight"
_NOT_TEXT = re.compile(r"mm_.*|image_.*|tune_.*|freeze_.*|use_mm_proj|vision_.*|unfreeze_.*|s2.*")


def open_original(folder: Path, name: str, config: Mapping[str, Any], extras: Extras) -> Source:
    """The model of a folder with the original code's config.json."""
    language = language_of(config)
    tensors, notes = _tensors(folder, extras)
    tower = choose_tower(config, tensors, extras.vision_tower)
    tensors = {n: t for n, t in tensors.items() if not n.startswith(VISION)} | dict(tower.tensors)
    settings = _config(config, language, tower, NEWLINE in tensors)
    _complete_projector(config, tensors)
    files = folder
    if extras.base is not None and not _has_tokenizer(folder):
        files = extras.base
    prompt_format, guess = extras.prompt_format, list[str]()
    if prompt_format is None:
        prompt_format, guess = _prompt_format(config, folder, files, language)
    return Source(
        kind=f"original LLaVA ({language})",
        folder=files,
        name=name,
        config=settings,
        preprocessor=_preprocessor(config, settings, tower),
        tensors=tensors,
        prompt_format=prompt_format,
        notes=(*notes, *tower.notes, *guess),
    )


def language_of(config: Mapping[str, Any]) -> str:
    """Which language model it is."""
    architectures = [str(a) for a in config.get("architectures") or []]
    for name in architectures:
        if name in LANGUAGES:
            return LANGUAGES[name]
    kind = str(config.get("model_type", ""))
    if architectures and not kind.startswith("llava"):  # a language model with LLaVA's keys
        kind = "llava_" + kind
    if kind not in _TYPES or any(a.startswith("Llava") for a in architectures):
        what = ", ".join(architectures) or kind
        raise ModelInvalid(
            f"{what}: a language model that llama.cpp's LLaVA cannot run, or that is not known yet",
            f"known: {', '.join(LANGUAGES)}",
        )
    return _TYPES[kind]


def _tensors(folder: Path, extras: Extras) -> tuple[dict[str, Tensor], list[str]]:
    """All tensors by llava-hf's names, base and trained parts put together."""
    own = renamed(open_tensors(folder)) if has_weights(folder) else {}
    if own and extras.base is None:
        return own, []
    if extras.base is None:
        present = [name for name in PARTS if (folder / name).is_file()]
        raise ModelInvalid(
            f"{folder} holds no language model" + (f", only {present[0]}" if present else ""),
            "name the model that it was trained on: --base FOLDER",
        )
    base = renamed(open_tensors(extras.base))
    if own:
        return add_delta(own, base), ["taken as a delta: the base model's weights are added"]
    parts = _parts(folder)
    if not parts and not (folder / "adapter_config.json").is_file():
        raise ModelInvalid(
            f"{folder} holds neither weights nor {PARTS[0]}", "check that it is complete"
        )
    return overlay(base, parts), []


def overlay(base: Mapping[str, Tensor], parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Trained parts in place of the base model's; new rows of the embedding come behind its own."""
    result = dict(base)
    for name, tensor in parts.items():
        if name == EMBEDDING and name in base and tensor.shape[0] < base[name].shape[0]:
            tensor = stacked(base[name], tensor)
        result[name] = tensor
    return result


def _parts(folder: Path) -> dict[str, Tensor]:
    parts: dict[str, Tensor] = {}
    for name in PARTS:
        if (folder / name).is_file():
            read = read_pickle if name.endswith(".bin") else read_header
            parts |= renamed(read(folder / name))
    return parts


def _config(
    config: Mapping[str, Any], language: str, tower: Tower, newline: bool
) -> dict[str, Any]:
    """In llava-hf's words."""
    text = {key: value for key, value in config.items() if not _NOT_TEXT.fullmatch(key)}
    for key in ("architectures", "auto_map", "transformers_version", "_name_or_path"):
        text.pop(key, None)
    text["model_type"] = language
    siglip = tower.kind == "siglip"
    settings: dict[str, Any] = {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "text_config": text,
        "vision_config": dict(tower.config),
        "vision_feature_layer": tower.feature_layer,
        "vision_feature_select_strategy": "full" if siglip else "default",
        "projector_hidden_act": "linear" if _projector_kind(config) == "linear" else "gelu",
        "multimodal_projector_bias": True,
        "tie_word_embeddings": bool(config.get("tie_word_embeddings", False)),
    }
    if config.get("mm_vision_select_feature", "patch") != "patch" and not siglip:
        settings["vision_feature_select_strategy"] = "full"
    ratio = str(config.get("image_aspect_ratio") or "square")
    if ratio.startswith("anyres"):
        settings |= _tiles(config, ratio, int(tower.config["image_size"]), newline)
    return settings


def _tiles(config: Mapping[str, Any], ratio: str, image: int, newline: bool) -> dict[str, Any]:
    merge = str(config.get("mm_patch_merge_type") or "flat")
    if not merge.startswith("spatial") or "unpad" not in merge or not newline:
        raise ModelInvalid(
            f"tiles put together by {merge!r} cannot be converted",
            "what can be converted: mm_patch_merge_type spatial_unpad, with an image_newline",
        )
    onevision = ratio.startswith("anyres_max")
    kind = "llava_onevision" if onevision else "llava_next"
    name = "LlavaOnevision" if onevision else "LlavaNext"
    return {
        "architectures": [f"{name}ForConditionalGeneration"],
        "model_type": kind,
        "image_grid_pinpoints": pinpoints(config.get("image_grid_pinpoints"), image),
        **({"vision_aspect_ratio": ratio} if onevision else {}),
    }


def pinpoints(value: Any, image: int) -> list[list[int]]:
    """The original's (width, height) pairs, or its "(1x1),...,(6x6)", as [height, width]."""
    if isinstance(value, str):
        grids = [(int(a), int(b)) for a, b in re.findall(r"\((\d+)x(\d+)\)", value)]
        if len(grids) == 2 and "..." in value:
            (a0, b0), (a1, b1) = grids
            grids = [(a, b) for a in range(a0, a1 + 1) for b in range(b0, b1 + 1)]
        return [[image * b, image * a] for a, b in grids]
    try:
        return [[int(height), int(width)] for width, height in value]
    except (TypeError, ValueError) as error:
        raise ModelInvalid("image_grid_pinpoints in config.json is not a list of pairs") from error


def _projector_kind(config: Mapping[str, Any]) -> str:
    kind = str(config.get("mm_projector_type") or "linear")
    if kind not in ("linear", "mlp2x_gelu"):
        raise ModelInvalid(
            f"a projector of kind {kind!r} cannot be converted",
            "llama.cpp's LLaVA graph has linear and mlp2x_gelu",
        )
    return kind


def _complete_projector(config: Mapping[str, Any], tensors: dict[str, Tensor]) -> None:
    """A projector of one matrix has an identity as its second."""
    first = tensors.get(PROJECTOR + "linear_1.weight")
    if _projector_kind(config) != "linear" or first is None:
        return
    width = first.shape[0]
    for kind, values in (("weight", np.eye(width)), ("bias", np.zeros(width))):
        name = f"{PROJECTOR}linear_2.{kind}"
        tensors[name] = constant("mm_projector (identity)", values.astype(np.float32))


def _preprocessor(
    config: Mapping[str, Any], settings: Mapping[str, Any], tower: Tower
) -> dict[str, Any]:
    """The tower's own, with LLaVA's way to make pictures square."""
    size = int(settings["vision_config"]["image_size"])
    square = {"height": size, "width": size}
    result = {**tower.preprocessor, "do_convert_rgb": True}
    if settings["model_type"] == "llava_next":
        result |= {"image_processor_type": "LlavaNextImageProcessor", "do_pad": True}
    elif settings["model_type"] == "llava_onevision":
        result |= {"image_processor_type": "LlavaOnevisionImageProcessor", "do_pad": True}
    elif config.get("image_aspect_ratio") == "pad":
        return result | {
            "image_processor_type": "LlavaImageProcessor", "do_pad": True, "size": square,
            "crop_size": square, "do_center_crop": True,
        }  # fmt: skip
    else:
        return result
    return result | {
        "image_grid_pinpoints": settings["image_grid_pinpoints"],
        "size": square,
        "crop_size": square,
    }


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))


def _prompt_format(
    config: Mapping[str, Any], folder: Path, files: Path, language: str
) -> tuple[str | None, list[str]]:
    """What the checkpoint says, else what its kind was trained with, told as a note.

    The template of a base model is not asked: LLaVA was trained on it with one of its own.
    """
    named = config.get("llava_prompt_format")
    if isinstance(named, str) and named in FORMATS:
        return named, []
    template = chat_template(folder)
    if template and (known := format_of(template)):
        return known, []
    if language not in ("llama", "mistral"):
        return None, []
    tokens = files / "added_tokens.json"
    added = read_json(tokens) if tokens.is_file() else {}
    guess = "vicuna_v1"
    if "<|im_start|>" in added:
        guess = "chatml_direct"
    elif language == "mistral":
        guess = "mistral_instruct"
    elif config.get("mm_use_im_start_end"):
        guess = "llava_v0"
    return guess, [
        f"the checkpoint does not say its prompt format: {guess} is taken "
        "(--prompt-format names another)"
    ]
