"""Every layout of a source gives the files that the same weights give in llava-hf's layout."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from llava_cli.errors import LlavaError, ModelInvalid, UsageError
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
    write_original,
    write_tower,
)


@pytest.fixture(scope="module")
def model(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """llava-hf, vicuna_v1, pad: what the original layouts below hold too. Read only."""
    return Path(tiny.build(tmp_path_factory.mktemp("layouts") / "model", tokenizer="spm"))


@pytest.fixture(scope="module")
def tower(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tower(model, tmp_path_factory.mktemp("tower"))


@pytest.fixture(scope="module")
def reference(model: Path, tmp_path_factory: pytest.TempPathFactory) -> ConvertResult:
    return run(model, tmp_path_factory.mktemp("reference"))


@pytest.mark.parametrize("form", ["safetensors", "bin", "sharded bin"])
def test_a_whole_original_checkpoint(
    model: Path, tower: Path, reference: ConvertResult, tmp_path: Path, form: str
) -> None:
    folder = write_original(model, tmp_path / "original", form=form)
    assert same(run(folder, tmp_path / "out", vision_tower=tower), reference)


def test_a_checkpoint_without_its_tower(
    model: Path, tower: Path, reference: ConvertResult, tmp_path: Path
) -> None:
    folder = write_original(model, tmp_path / "original", tower=False)
    with pytest.raises(ModelInvalid, match="openai/clip-vit-large-patch14-336") as caught:
        run(folder, tmp_path / "out")
    assert "--vision-tower" in caught.value.hint
    assert same(run(folder, tmp_path / "out", vision_tower=tower), reference)


@pytest.mark.parametrize("trained", [True, False])
def test_a_tower_in_the_checkpoint_counts_only_where_it_was_trained(
    model: Path, tower: Path, reference: ConvertResult, tmp_path: Path, trained: bool
) -> None:
    folder = write_original(model, tmp_path / "original", unfreeze_mm_vision_tower=trained)
    tensors = load_file(folder / WEIGHTS)
    name = "model.vision_tower.vision_tower.vision_model.embeddings.class_embedding"
    tensors[name] += 1
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    assert same(run(folder, tmp_path / "out", vision_tower=tower), reference) != trained


def test_a_tower_that_is_not_known_by_its_shape_must_be_named(model: Path, tmp_path: Path) -> None:
    folder = write_original(model, tmp_path / "original")
    with pytest.raises(ModelInvalid, match="64 wide, 3 layers"):
        run(folder, tmp_path / "out")


def test_a_clip_large_inside_the_checkpoint_needs_no_name() -> None:
    from llava_cli.engines.layouts.tensors import constant
    from llava_cli.engines.layouts.towers import choose_tower

    prefix = "vision_tower.vision_model."
    shapes = {
        "embeddings.class_embedding": (1024,),
        "embeddings.patch_embedding.weight": (1024, 3, 14, 14),
        "embeddings.position_embedding.weight": (577, 1024),
        "encoder.layers.0.mlp.fc1.weight": (4096, 1024),
        **{f"encoder.layers.{n}.layer_norm1.bias": (1024,) for n in range(24)},
    }
    tensors = {prefix + n: constant(n, np.empty(s, np.float32)) for n, s in shapes.items()}
    found = choose_tower({"mm_vision_select_layer": -2}, tensors, None)
    assert found.kind == "clip" and found.feature_layer == -2
    assert found.config["image_size"] == 336 and found.config["num_attention_heads"] == 16
    assert found.preprocessor["size"] == {"shortest_edge": 336}


@pytest.mark.parametrize("form", ["bin", "safetensors"])
@pytest.mark.parametrize("prefix", ["model.", "", "base_model.model.model."])
def test_a_projector_over_its_base(
    model: Path, tower: Path, reference: ConvertResult, tmp_path: Path, form: str, prefix: str
) -> None:
    import torch

    base = write_language_model(model, tmp_path / "base")
    folder = tmp_path / "projector"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(original_config(model)))
    parts = {
        original_name(k).replace("model.", prefix, 1): v
        for k, v in load_file(model / WEIGHTS).items()
        if k.startswith("multi_modal_projector.")
    }
    if form == "bin":
        torch.save(as_torch(parts), folder / "mm_projector.bin")
    else:
        save_file(parts, folder / "mm_projector.safetensors", {"format": "pt"})
    with pytest.raises(ModelInvalid, match="no language model") as caught:
        run(folder, tmp_path / "out", vision_tower=tower)
    assert "--base" in caught.value.hint
    assert same(run(folder, tmp_path / "out", base=base, vision_tower=tower), reference)


@pytest.mark.parametrize("whole", [True, False])
def test_a_projector_that_brings_new_tokens(
    model: Path, tower: Path, reference: ConvertResult, tmp_path: Path, whole: bool
) -> None:
    """mm_use_im_start_end: the embedding has two rows more, stored whole or alone."""
    import torch

    tensors = load_file(model / WEIGHTS)
    name = "language_model.model.embed_tokens.weight"
    short = {
        "model.embed_tokens.weight": tensors[name][:-2],
    }
    base = write_language_model(model, tmp_path / "base", **short)
    folder = tmp_path / "projector"
    copy_tokenizer(model, folder)
    (folder / "config.json").write_text(json.dumps(original_config(model)))
    parts = {original_name(k): v for k, v in tensors.items() if k.startswith("multi_modal")}
    parts["model.embed_tokens.weight"] = tensors[name] if whole else tensors[name][-2:]
    torch.save(as_torch(parts), folder / "mm_projector.bin")
    assert same(run(folder, tmp_path / "out", base=base, vision_tower=tower), reference)


def test_delta_weights(model: Path, tower: Path, tmp_path: Path) -> None:
    """target = delta + base; the base has fewer rows, the projector is the delta's own."""
    draw = np.random.default_rng(1)
    tensors = load_file(model / WEIGHTS)
    base, delta = {}, {}
    for name, value in tensors.items():
        # whole 64ths, so that sums are exact; + 0.0 because -x + x is never -0.0
        value = (np.round(value * 64) / 64 + 0.0).astype(np.float32)
        tensors[name] = value
        if not name.startswith("language_model."):
            delta[original_name(name)] = value
            continue
        part = (draw.integers(-64, 64, value.shape) / 64).astype(np.float32)
        full = value.ndim == 2 and value.shape[0] == tensors[
            "language_model.lm_head.weight"].shape[0]  # fmt: skip
        kept = part[:-3] if full else part
        base[original_name(name)] = kept
        summed = value.copy()
        summed[: len(kept)] -= kept
        delta[original_name(name)] = summed
    exact = tmp_path / "exact"
    shutil.copytree(model, exact)
    save_file(tensors, exact / WEIGHTS, {"format": "pt"})
    folder = write_original(model, tmp_path / "delta")
    save_file(delta, folder / WEIGHTS, {"format": "pt"})
    base_folder = write_language_model(model, tmp_path / "base", **base)
    ours = run(folder, tmp_path / "a", base=base_folder, vision_tower=tower)
    rounded = write_tower(exact, tmp_path / "rounded tower")
    assert not same(ours, run(exact, tmp_path / "b"))  # the given tower is not the rounded one
    ours = run(folder, tmp_path / "a", base=base_folder, vision_tower=rounded)
    assert same(ours, run(exact, tmp_path / "b"))
    assert any("delta" in note for note in ours.notes)


def test_a_linear_projector_of_the_first_llava(
    tiny: ModuleType, tower: Path, tmp_path: Path, mmproj_features: Any, torch_features: Any,
    pixels: Any,
) -> None:  # fmt: skip
    """W alone; transformers has no such thing: W, then identity, without activation."""
    from transformers import LlavaForConditionalGeneration

    source = tiny.build(tmp_path / "source", tokenizer="spm", connector="linear")
    hf = load_file(source / WEIGHTS)
    hf["multi_modal_projector.linear_2.weight"] = np.eye(64, dtype=np.float32)
    hf["multi_modal_projector.linear_2.bias"] = np.zeros(64, np.float32)
    save_file(hf, source / WEIGHTS, {"format": "pt"})
    tensors = {original_name(k): v for k, v in hf.items() if "linear_2" not in k}
    for kind in ("weight", "bias"):
        tensors[f"model.mm_projector.{kind}"] = tensors.pop(f"model.mm_projector.0.{kind}")
    folder = tmp_path / "original"
    copy_tokenizer(source, folder)
    config = original_config(source, mm_projector_type="linear")
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    own_tower = write_tower(source, tmp_path / "own tower")
    ours = run(folder, tmp_path / "out", vision_tower=own_tower)
    assert LlavaForConditionalGeneration.from_pretrained(source) is not None
    features = mmproj_features(ours.files[1].path, pixels)
    assert np.abs(features - torch_features(source, pixels)).max() < 2e-5


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "vicuna_v1"),
        ({"mm_use_im_start_end": True}, "llava_v0"),
        ({"llava_prompt_format": "llava_llama_2"}, "llava_llama_2"),
        ({"architectures": ["LlavaMistralForCausalLM"], "model_type": "llava_mistral"},
         "mistral_instruct"),
    ],
)  # fmt: skip
def test_the_prompt_format_is_told_or_taken_from_the_kind_of_model(
    model: Path, tower: Path, tmp_path: Path, gguf: Callable[..., Any], changes: dict[str, Any],
    expected: str,
) -> None:  # fmt: skip
    folder = write_original(model, tmp_path / "original", **changes)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    result = run(folder, tmp_path / "out", vision_tower=tower)
    assert gguf(result.files[0].path)[0]["llava.prompt_format"] == expected
    assert any(expected in note for note in result.notes) != ("llava_prompt_format" in changes)
    named = run(folder, tmp_path / "out", vision_tower=tower, prompt_format="plain")
    assert gguf(named.files[0].path)[0]["llava.prompt_format"] == "plain"


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"architectures": ["LlavaMptForCausalLM"], "model_type": "llava_mpt"}, "LlavaMpt"),
        ({"mm_projector_type": "mlp3x_gelu"}, "mlp3x_gelu"),
        ({"mm_projector_type": "identity"}, "identity"),
        ({"mm_vision_select_feature": "cls_patch"}, "full"),
        ({"image_aspect_ratio": "anyres"}, "flat"),
        ({"mm_vision_select_layer": None}, "mm_vision_select_layer"),
        ({"mm_vision_select_layer": -9}, "outside"),
    ],
)
def test_what_llama_cpp_cannot_do_is_refused_with_the_reason(
    model: Path, tower: Path, tmp_path: Path, changes: dict[str, Any], word: str
) -> None:
    folder = write_original(model, tmp_path / "original", **changes)
    with pytest.raises(ModelInvalid, match=word):
        run(folder, tmp_path / "out", vision_tower=tower)


def test_a_tower_is_not_given_twice(model: Path, tower: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="its own vision tower"):
        run(model, tmp_path / "out", vision_tower=tower)


def test_an_unknown_prompt_format_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="known"):
        try:
            run(model, tmp_path / "out", prompt_format="nonsense")
        except LlavaError as error:
            raise UsageError(f"{error.message} {error.hint}") from error


def test_pinpoints_of_the_original_are_turned_into_transformers_order() -> None:
    from llava_cli.engines.layouts.originals import pinpoints

    assert pinpoints([[336, 672], [1008, 336]], 336) == [[672, 336], [336, 1008]]
    grid = pinpoints("(1x1),...,(2x3)", 384)
    assert grid == [[384 * b, 384 * a] for a in (1, 2) for b in (1, 2, 3)]
