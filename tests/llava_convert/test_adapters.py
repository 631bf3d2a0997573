"""LoRA adapters, made and merged by peft, give what the merged model gives."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from llava_cli.errors import LlavaError, ModelInvalid
from llava_convert import ConvertResult
from tests.llava_convert.layouts import (
    WEIGHTS,
    as_torch,
    copy_tokenizer,
    original_config,
    original_name,
    run,
    same,
    write_language_model,
    write_tower,
)


@pytest.fixture(scope="module")
def model(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """llava-hf, vicuna_v1, pad: what the original layouts below hold too. Read only."""
    return Path(tiny.build(tmp_path_factory.mktemp("layouts") / "model", tokenizer="spm"))


@pytest.fixture(scope="module")
def tower(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tower(model, tmp_path_factory.mktemp("tower"))


ROUNDING = 2e-6
"""Of the one sum that merging is."""


def apart(ours: ConvertResult, reference: ConvertResult, gguf: Callable[..., Any]) -> float:
    """The largest difference of any value, against the largest of its tensor (or 1)."""
    found = []
    for mine, theirs in zip(ours.files, reference.files, strict=True):
        _, values, _ = gguf(mine.path)
        _, expected, _ = gguf(theirs.path)
        assert values.keys() == expected.keys()
        for name, value in expected.items():
            scale = max(np.abs(value).max(), 1)
            found.append(float(np.abs(values[name] - value).max() / scale))
    return max(found)


def write_lora(source: Path, folder: Path, language_only: bool, **settings: Any) -> Path:
    """An adapter made by peft; gives the folder of the merged model, made by peft too."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, LlavaForConditionalGeneration

    torch.manual_seed(5)
    kind = AutoModelForCausalLM if language_only else LlavaForConditionalGeneration
    model = kind.from_pretrained(source)
    modules = ["q_proj", "v_proj", "down_proj"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # between peft and transformers
        peft: Any = get_peft_model(
            model, LoraConfig(r=4, lora_alpha=12, target_modules=modules, **settings)
        )
    with torch.no_grad():
        for name, weight in peft.named_parameters():
            if "lora_" in name:
                weight.normal_(0, 0.2)
    peft.save_pretrained(str(folder))
    merged = folder.with_name(folder.name + " merged")
    peft.merge_and_unload().save_pretrained(merged)
    return merged


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="plain"),
        pytest.param({"use_rslora": True}, id="rslora"),
        pytest.param(
            {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"layers.1.self_attn.q_proj": 3}},
            id="patterns",
        ),
        pytest.param({"modules_to_save": ["lm_head"]}, id="a module trained whole"),
    ],
)
def test_a_lora_of_a_llava_hf_model(
    model: Path, tmp_path: Path, settings: dict[str, Any], gguf: Callable[..., Any]
) -> None:
    merged = write_lora(model, tmp_path / "lora", False, **settings)
    for file in model.iterdir():
        if not (merged / file.name).exists():
            shutil.copy(file, merged)
    shutil.copy(model / "config.json", merged)
    with pytest.raises(ModelInvalid, match="LoRA adapter of") as caught:
        run(tmp_path / "lora", tmp_path / "out")
    assert "--base" in caught.value.hint
    ours = run(tmp_path / "lora", tmp_path / "out", base=model)
    assert apart(ours, run(merged, tmp_path / "reference"), gguf) <= ROUNDING
    assert not same(ours, run(model, tmp_path / "plain"))


def test_an_original_lora_with_what_was_trained_beside_it(
    model: Path, tower: Path, tmp_path: Path, gguf: Callable[..., Any]
) -> None:
    import torch

    base = write_language_model(model, tmp_path / "base")
    merged = write_lora(base, tmp_path / "lora", True)
    copy_tokenizer(model, tmp_path / "lora")
    (tmp_path / "lora" / "config.json").write_text(json.dumps(original_config(model)))
    rest = {
        "base_model.model." + original_name(k): v
        for k, v in load_file(model / WEIGHTS).items()
        if k.startswith("multi_modal_projector.")
    }
    torch.save(as_torch(rest), tmp_path / "lora" / "non_lora_trainables.bin")
    whole = tmp_path / "whole"
    shutil.copytree(model, whole)
    tensors = load_file(whole / WEIGHTS)
    back = {original_name(k): k for k in tensors}
    tensors |= {back[name]: value for name, value in load_file(merged / WEIGHTS).items()}
    save_file(tensors, whole / WEIGHTS, {"format": "pt"})
    ours = run(tmp_path / "lora", tmp_path / "out", base=base, vision_tower=tower)
    assert apart(ours, run(whole, tmp_path / "reference"), gguf) <= ROUNDING


def test_a_lora_over_the_wrong_base_is_refused(
    model: Path, tiny: ModuleType, tmp_path: Path
) -> None:
    write_lora(model, tmp_path / "lora", False)
    other = tmp_path / "other"
    shutil.copytree(model, other)
    config = json.loads((other / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 1
    (other / "config.json").write_text(json.dumps(config))
    tensors = load_file(other / WEIGHTS)
    save_file({k: v for k, v in tensors.items() if "model.layers.1." not in k}, other / WEIGHTS)
    with pytest.raises(ModelInvalid, match="does not have"):
        run(tmp_path / "lora", tmp_path / "out", base=other)


@pytest.mark.parametrize("setting", ["use_dora", "fan_in_fan_out"])
def test_adapters_that_are_no_plain_sum_are_refused(
    model: Path, tmp_path: Path, setting: str
) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", setting: True}))
    with pytest.raises(ModelInvalid, match="merge"):
        try:
            run(tmp_path, tmp_path / "out", base=model)
        except LlavaError as error:
            raise ModelInvalid(f"{error.message} {error.hint}") from error
