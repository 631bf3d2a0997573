"""Every layout of every family gives the files that llava-hf's layout of the same weights gives.

The layouts are written by transformers, by peft, and under the original code's tensor names. That
llava-hf's files answer as transformers does is `test_parity.py`'s to show.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from llava_convert import ConvertResult
from tests.llava_convert.families import PINPOINTS, build
from tests.llava_convert.layouts import (
    WEIGHTS,
    adapted,
    as_torch,
    copy_tokenizer,
    original_config,
    original_name,
    run,
    same,
    write_original,
)

CLASSES = {
    "llama": ("LlavaLlamaForCausalLM", "llava_llama"),
    "mistral": ("LlavaMistralForCausalLM", "llava_mistral"),
    "qwen2": ("LlavaQwenForCausalLM", "llava_qwen"),
    "phi3": ("LlavaPhi3ForCausalLM", "llava_phi3"),
    "phi": ("LlavaPhiForCausalLM", "llava_phi"),
}
"""The original code's architecture and model_type."""
ROUNDING = 2e-6
"""Of the one sum that merging a LoRA is, relative to a tensor's largest value."""
KINDS = [("Llava", "clip"), ("Llava", "siglip"), ("LlavaNext", "clip"), ("LlavaNext", "siglip")]


def changes(family: str, kind: str, tower: str) -> dict[str, Any]:
    """What the original code's config.json says of such a model."""
    architecture, model_type = CLASSES[family]
    found: dict[str, Any] = {
        "architectures": [architecture], "model_type": model_type,
        "llava_prompt_format": "vicuna_v1",
    }  # fmt: skip
    if tower == "siglip":
        found["mm_vision_tower"] = "google/siglip-so400m-patch14-384"
    if kind == "LlavaNext":
        found |= {
            "image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial_unpad",
            "image_grid_pinpoints": [[width, height] for height, width in PINPOINTS],
            "unfreeze_mm_vision_tower": True,
        }  # fmt: skip
    return found


def loaded(source: Path) -> Any:
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(source)


def write_tower(source: Path, folder: Path) -> Path:
    """The tower as transformers saves it. SigLIP's has one layer more, which LLaVA cuts off."""
    import transformers

    inner = loaded(source).model.vision_tower
    if "Siglip" in type(inner).__name__:
        settings = inner.config.to_dict()
        settings["num_hidden_layers"] += 1
        whole: Any = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**settings))
        report = whole.load_state_dict(inner.state_dict(), strict=False)
        assert report.missing_keys and not report.unexpected_keys
        inner = whole
    inner.save_pretrained(folder)
    shutil.copy(source / "preprocessor_config.json", folder)
    return folder


def write_base(source: Path, folder: Path) -> Path:
    """The language model alone, as transformers saves it."""
    from transformers import AutoModelForCausalLM

    model = loaded(source)
    base: Any = AutoModelForCausalLM.from_config(model.config.text_config)
    weights = {f"model.{k}": v for k, v in model.model.language_model.state_dict().items()}
    weights["lm_head.weight"] = model.lm_head.weight
    report = base.load_state_dict(weights, strict=False)
    assert not report.unexpected_keys and set(report.missing_keys) <= {"lm_head.bias"}
    base.save_pretrained(folder)
    copy_tokenizer(source, folder)
    return folder


def settings_of(source: Path, folder: Path) -> None:
    """All but the weights."""
    for path in source.iterdir():
        if path.name != WEIGHTS:
            shutil.copy(path, folder)


def said(keys: dict[str, Any]) -> dict[str, Any]:
    """Metadata without counts, and without what peft's model card says of the base model."""
    ignored = ("GGUF.", "general.base_model.")
    return {key: value for key, value in keys.items() if not key.startswith(ignored)}


def apart(ours: ConvertResult, reference: ConvertResult, gguf: Any) -> float:
    """The largest difference of any value, against the largest of its tensor (or 1)."""
    found = 0.0
    for mine, theirs in zip(ours.files, reference.files, strict=True):
        keys, values, _ = gguf(mine.path)
        expected_keys, expected, _ = gguf(theirs.path)
        assert said(keys) == said(expected_keys) and values.keys() == expected.keys()
        for name, value in expected.items():
            scale = max(np.abs(value).max(), 1)
            found = max(found, float(np.abs(values[name] - value).max() / scale))
    return found


@pytest.mark.parametrize(("kind", "tower"), KINDS)
@pytest.mark.parametrize("family", CLASSES)
def test_the_original_codes_whole_checkpoint(
    tiny: ModuleType, tmp_path: Path, family: str, kind: str, tower: str
) -> None:
    source = build(tiny, tmp_path / "source", family, tower, kind)
    outside = write_tower(source, tmp_path / "tower")
    inside = tower == "clip"  # the original code saves SigLIP's tower cut: as it lies in ours
    folder = write_original(
        source, tmp_path / "original", tower=inside, **changes(family, kind, tower)
    )
    ours = run(folder, tmp_path / "a", vision_tower=outside)
    assert same(ours, run(source, tmp_path / "b"))


@pytest.mark.parametrize("family", CLASSES)
def test_a_projector_over_a_base_that_transformers_saved(
    tiny: ModuleType, tmp_path: Path, family: str, gguf: Any
) -> None:
    """Phi's own head has a bias, of zeros here, which it has not inside of a LLaVA."""
    import torch

    source = build(tiny, tmp_path / "source", family)
    folder = tmp_path / "projector"
    folder.mkdir()
    config = original_config(source, **changes(family, "Llava", "clip"))
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(source / WEIGHTS).items()
    parts = {original_name(k): v for k, v in tensors if k.startswith("multi_modal_projector.")}
    torch.save(as_torch(parts), folder / "mm_projector.bin")
    ours = run(
        folder,
        tmp_path / "a",
        base=write_base(source, tmp_path / "base"),
        vision_tower=write_tower(source, tmp_path / "tower"),
    )
    reference = run(source, tmp_path / "b")
    assert apart(ours, reference, gguf) == 0
    assert same(ours, reference) == (family != "phi")


@pytest.mark.parametrize("family", CLASSES)
def test_an_original_lora_with_tiles(
    tiny: ModuleType, tmp_path: Path, family: str, gguf: Any
) -> None:
    """An adapter on the language model; projector and newline were trained beside it."""
    import torch
    from transformers import AutoModelForCausalLM

    source = build(tiny, tmp_path / "source", family, kind="LlavaNext")
    base = write_base(source, tmp_path / "base")
    merged = adapted(AutoModelForCausalLM.from_pretrained(base), tmp_path / "lora")
    merged.save_pretrained(tmp_path / "merged")
    copy_tokenizer(source, tmp_path / "lora")
    config = original_config(source, **changes(family, "LlavaNext", "clip"))
    (tmp_path / "lora" / "config.json").write_text(json.dumps(config))
    tensors = load_file(source / WEIGHTS)
    rest = {
        "base_model.model." + original_name(k): v
        for k, v in tensors.items()
        if not k.startswith(("language_model.", "vision_tower."))
    }
    torch.save(as_torch(rest), tmp_path / "lora" / "non_lora_trainables.bin")
    whole = tmp_path / "whole"
    whole.mkdir()
    settings_of(source, whole)
    back = {original_name(k): k for k in tensors}
    changed = load_file(tmp_path / "merged" / WEIGHTS)
    tensors |= {back[name]: value for name, value in changed.items() if name in back}
    save_file(tensors, whole / WEIGHTS, {"format": "pt"})
    tower = write_tower(source, tmp_path / "tower")
    ours = run(tmp_path / "lora", tmp_path / "a", base=base, vision_tower=tower)
    assert apart(ours, run(whole, tmp_path / "b"), gguf) <= ROUNDING


@pytest.mark.parametrize(("kind", "tower"), [("Llava", "siglip"), ("LlavaNext", "clip")])
@pytest.mark.parametrize("family", CLASSES)
def test_a_lora_of_a_llava_hf_model(
    tiny: ModuleType, tmp_path: Path, family: str, kind: str, tower: str, gguf: Any
) -> None:
    """On every matrix: language model, tower and projector."""
    source = build(tiny, tmp_path / "source", family, tower, kind)
    adapted(loaded(source), tmp_path / "lora").save_pretrained(tmp_path / "merged")
    settings_of(source, tmp_path / "merged")
    ours = run(tmp_path / "lora", tmp_path / "a", base=source)
    merged = run(tmp_path / "merged", tmp_path / "b")
    assert apart(ours, merged, gguf) <= ROUNDING
    assert not same(ours, run(source, tmp_path / "c"))
