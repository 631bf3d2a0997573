"""Every naming of a checkpoint gives the same file; nothing is left out without a word."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from llava_cli.errors import ModelInvalid
from llava_convert import convert

WEIGHTS = "model.safetensors"


def older_transformers(name: str) -> str:
    return re.sub(r"^vision_tower\.", "vision_tower.vision_model.", name)


def in_memory(name: str) -> str:
    for old, new in (
        ("language_model.lm_head.", "lm_head."),
        ("language_model.model.", "model.language_model."),
        ("vision_tower.", "model.vision_tower."),
        ("multi_modal_projector.", "model.multi_modal_projector."),
    ):
        if name.startswith(old):
            return new + name[len(old) :]
    raise AssertionError(name)


def in_memory_older_tower(name: str) -> str:
    return in_memory(name).replace("model.vision_tower.", "model.vision_tower.vision_model.")


def rewrite(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, {"format": "pt"})


@pytest.mark.parametrize("naming", [older_transformers, in_memory, in_memory_older_tower])
def test_every_naming_gives_the_same_files(
    bpe_model: Path, source: Path, tmp_path: Path, naming: Callable[[str], str]
) -> None:
    rewrite(source, lambda tensors: {naming(name): value for name, value in tensors.items()})
    ours = convert(source, tmp_path / "a", name="m")
    reference = convert(bpe_model, tmp_path / "b", name="m")
    assert [f.sha256 for f in ours.files] == [f.sha256 for f in reference.files]
    assert ours.mapped == reference.mapped > 50


def test_a_sharded_checkpoint_gives_the_same_files(
    bpe_model: Path, source: Path, tmp_path: Path
) -> None:
    tensors = load_file(source / WEIGHTS)
    (source / WEIGHTS).unlink()
    places: dict[str, str] = {}
    for number in range(3):
        file = f"model-{number + 1:05}-of-00003.safetensors"
        names = sorted(tensors)[number::3]
        save_file({name: tensors[name] for name in names}, source / file)
        places |= dict.fromkeys(names, file)
    (source / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": places}))
    ours = convert(source, tmp_path / "a", name="m")
    reference = convert(bpe_model, tmp_path / "b", name="m")
    assert [f.sha256 for f in ours.files] == [f.sha256 for f in reference.files]


def test_half_precision_sources_are_read_exactly(source: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file as load_torch
    from safetensors.torch import save_file as save_torch

    tensors = {k: v.to(torch.bfloat16) for k, v in load_torch(source / WEIGHTS).items()}
    save_torch(tensors, source / WEIGHTS, {"format": "pt"})
    half = convert(source, tmp_path / "a", outtypes=["f32"], mmproj_outtype="f32", name="m")
    save_torch({k: v.float() for k, v in tensors.items()}, source / WEIGHTS, {"format": "pt"})
    full = convert(source, tmp_path / "b", outtypes=["f32"], mmproj_outtype="f32", name="m")
    assert [f.sha256 for f in half.files] == [f.sha256 for f in full.files]


def test_a_tensor_without_a_place_is_an_error_that_names_it(source: Path, tmp_path: Path) -> None:
    extra = {"language_model.model.layers.0.self_attn.q_norm.weight": np.ones(8, np.float32)}
    rewrite(source, lambda tensors: {**tensors, **extra})
    with pytest.raises(ModelInvalid, match=r"layers\.0\.self_attn\.q_norm\.weight"):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("extra", ["image_newline", "model.vision_resampler.query", "layers.9.x"])
def test_parts_that_llava_does_not_have_are_errors(
    source: Path, tmp_path: Path, extra: str
) -> None:
    rewrite(source, lambda tensors: {**tensors, extra: np.ones(64, np.float32)})
    with pytest.raises(ModelInvalid, match=re.escape(extra)):
        convert(source, tmp_path / "out")


def test_a_layer_that_config_json_does_not_know_is_an_error(source: Path, tmp_path: Path) -> None:
    config = json.loads((source / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 1
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelInvalid, match=r"layers\.1\."):
        convert(source, tmp_path / "out")


@pytest.mark.parametrize(
    "name",
    [
        "language_model.model.layers.1.mlp.up_proj.weight",
        "language_model.lm_head.weight",
        "language_model.model.embed_tokens.weight",
        "vision_tower.embeddings.class_embedding",
        "vision_tower.encoder.layers.0.self_attn.k_proj.bias",
        "multi_modal_projector.linear_2.weight",
    ],
)
def test_a_missing_tensor_is_an_error_that_names_it(
    source: Path, tmp_path: Path, name: str
) -> None:
    rewrite(source, lambda tensors: {k: v for k, v in tensors.items() if k != name})
    shown = name.removeprefix("language_model.").removeprefix("model.")
    shown = shown.removeprefix("vision_tower.").removeprefix("multi_modal_projector.")
    with pytest.raises(ModelInvalid, match=re.escape(shown)):
        convert(source, tmp_path / "out")


def test_a_shape_that_contradicts_config_json_is_an_error(source: Path, tmp_path: Path) -> None:
    name = "multi_modal_projector.linear_1.weight"
    rewrite(source, lambda tensors: {**tensors, name: np.ones((64, 32), np.float32)})
    with pytest.raises(ModelInvalid, match=r"linear_1\.weight is \[64, 32\].*\[64, 64\]"):
        convert(source, tmp_path / "out")


def test_one_tensor_under_two_names_is_an_error(source: Path, tmp_path: Path) -> None:
    name = "vision_tower.pre_layrnorm.weight"
    rewrite(source, lambda tensors: {**tensors, f"model.{name}": tensors[name]})
    with pytest.raises(ModelInvalid, match="two names"):
        convert(source, tmp_path / "out")


def test_what_is_left_out_is_named_with_the_reason(source: Path, tmp_path: Path) -> None:
    buffers = {
        "vision_tower.embeddings.position_ids": np.arange(17, dtype=np.int64)[None],
        "language_model.model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(16, np.float32),
    }
    rewrite(source, lambda tensors: {**tensors, **buffers})
    result = convert(source, tmp_path / "out", dry_run=True)
    assert set(buffers) < set(result.ignored)
    assert "before this norm" in result.ignored["vision_tower.post_layernorm.weight"]
    behind = "vision_tower.encoder.layers.2.mlp.fc1.weight"
    assert "never run" in result.ignored[behind]
    assert result.mapped + len(result.ignored) == len(load_file(source / WEIGHTS))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_errors(source: Path, tmp_path: Path, value: float) -> None:
    name = "language_model.model.layers.1.mlp.up_proj.weight"

    def spoil(tensors: dict[str, Any]) -> dict[str, Any]:
        tensors[name][3, 5] = value
        return tensors

    rewrite(source, spoil)
    with pytest.raises(ModelInvalid, match=re.escape(name)):
        convert(source, tmp_path / "out", outtypes=["q8_0"])
    assert not list((tmp_path / "out").iterdir())


def test_values_beyond_float16_are_an_error_in_f16_and_fine_in_bf16(
    source: Path, tmp_path: Path
) -> None:
    name = "language_model.model.layers.1.mlp.up_proj.weight"

    def widen(tensors: dict[str, Any]) -> dict[str, Any]:
        tensors[name][0, 0] = 7e4
        return tensors

    rewrite(source, widen)
    with pytest.raises(ModelInvalid, match="F16"):
        convert(source, tmp_path / "out", outtypes=["f16"])
    assert convert(source, tmp_path / "out", outtypes=["bf16"]).mapped > 50
