"""What stands in the files: every tensor, every key, and that they mean what the source means."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from llava_cli.errors import ModelInvalid, UsageError
from llava_convert import convert

Gguf = Callable[[Path], tuple[dict[str, Any], dict[str, Any], dict[str, str]]]
Features = Callable[[Path, Any], Any]

TOLERANCE = {"F32": 0.0, "F16": 1e-3, "BF16": 8e-3, "Q8_0": 8e-3}
"""Relative to the largest value of a tensor."""


def change_config(folder: Path, **changes: Any) -> None:
    """Rewrite keys of config.json; `vision__x` and `text__x` reach into the sections."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for key, value in changes.items():
        section, _, inner = key.partition("__")
        if inner:
            config[f"{section}_config"][inner] = value
        else:
            config[key] = value
    path.write_text(json.dumps(config))


def source_tensors(folder: Path) -> dict[str, Any]:
    from safetensors.numpy import load_file

    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "q8_0"])
def test_every_tensor_comes_back_within_the_precision_of_its_type(
    bpe_model: Path, tmp_path: Path, gguf: Gguf, kind: str
) -> None:
    result = convert(bpe_model, tmp_path, outtypes=[kind], mmproj_outtype=kind, name="m")
    text, mmproj = (gguf(file.path) for file in result.files)
    values = {**text[1], **mmproj[1]}
    types = {**text[2], **mmproj[2]}
    source = source_tensors(bpe_model)
    pairs = {
        "language_model.model.embed_tokens.weight": "token_embd.weight",
        "language_model.lm_head.weight": "output.weight",
        "language_model.model.layers.1.mlp.down_proj.weight": "blk.1.ffn_down.weight",
        "language_model.model.layers.0.self_attn.v_proj.weight": "blk.0.attn_v.weight",
        "language_model.model.layers.1.input_layernorm.weight": "blk.1.attn_norm.weight",
        "vision_tower.embeddings.patch_embedding.weight": "v.patch_embd.weight",
        "vision_tower.embeddings.position_embedding.weight": "v.position_embd.weight",
        "vision_tower.embeddings.class_embedding": "v.class_embd",
        "vision_tower.encoder.layers.1.self_attn.q_proj.weight": "v.blk.1.attn_q.weight",
        "vision_tower.encoder.layers.0.self_attn.out_proj.bias": "v.blk.0.attn_out.bias",
        "multi_modal_projector.linear_1.weight": "mm.0.weight",
        "multi_modal_projector.linear_2.bias": "mm.2.bias",
    }
    label = kind.upper()
    for name, target in pairs.items():
        peak = np.abs(source[name]).max()
        exact = types[target] == "F32"
        limit = 0.0 if exact else TOLERANCE[label] * peak
        assert values[target].shape == source[name].shape
        assert np.abs(values[target] - source[name]).max() <= limit, target
        assert types[target] == (
            label if source[name].ndim == 2 and "v.pos" not in target else "F32"
        )


def test_rows_of_q_and_k_are_paired_for_llama_cpps_rope(
    bpe_model: Path, tmp_path: Path, gguf: Gguf
) -> None:
    result = convert(bpe_model, tmp_path, outtypes=["f32"], name="m")
    values = gguf(result.files[0].path)[1]
    source = source_tensors(bpe_model)["language_model.model.layers.0.self_attn.k_proj.weight"]
    head = 32
    for row in range(2 * head):
        base, inside = row // head * head, row % head
        half, place = inside % 2, inside // 2
        expected = source[base + half * head // 2 + place]
        assert np.array_equal(values["blk.0.attn_k.weight"][row], expected)


def test_rows_that_do_not_divide_into_blocks_are_stored_as_f16(
    tiny: ModuleType, tmp_path: Path, gguf: Gguf
) -> None:
    folder = tiny.build(tmp_path / "source")
    import torch
    from transformers import CLIPVisionConfig, LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(folder)
    config = model.config
    config.vision_config = CLIPVisionConfig(
        hidden_size=64, intermediate_size=100, num_hidden_layers=2, num_attention_heads=2,
        image_size=56, patch_size=14,
    )  # fmt: skip
    torch.manual_seed(0)
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    result = convert(folder, tmp_path / "out", outtypes=["q8_0"], mmproj_outtype="q8_0")
    types = gguf(result.files[1].path)[2]
    assert types["v.blk.0.ffn_down.weight"] == "F16"
    assert types["v.blk.0.ffn_up.weight"] == "Q8_0"


def test_the_text_file_says_all_that_a_reader_needs(
    bpe_model: Path, tmp_path: Path, gguf: Gguf
) -> None:
    result = convert(bpe_model, tmp_path, outtypes=["f16"], name="some-model")
    keys = gguf(result.files[0].path)[0]
    expected = {
        "general.architecture": "llama",
        "general.type": "model",
        "general.name": "some-model",
        "general.file_type": 1,
        "llama.block_count": 2,
        "llama.context_length": 512,
        "llama.embedding_length": 64,
        "llama.feed_forward_length": 160,
        "llama.attention.head_count": 2,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 32,
        "llama.rope.dimension_count": 32,
        "llama.rope.freq_base": 10000.0,
        "llama.vocab_size": len(keys["tokenizer.ggml.tokens"]),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": 3,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "llava.prompt_format": "vicuna_v1",
    }
    assert {key: keys.get(key) for key in expected} == expected


def test_the_mmproj_says_all_that_a_reader_needs(
    bpe_model: Path, tmp_path: Path, gguf: Gguf
) -> None:
    result = convert(bpe_model, tmp_path, name="some-model", mmproj_outtype="f32")
    keys, values, _ = gguf(result.files[1].path)
    expected = {
        "general.architecture": "clip",
        "general.type": "mmproj",
        "general.file_type": 0,
        "clip.has_vision_encoder": True,
        "clip.projector_type": "mlp",
        "clip.vision.image_size": 56,
        "clip.vision.patch_size": 14,
        "clip.vision.embedding_length": 64,
        "clip.vision.feed_forward_length": 128,
        "clip.vision.block_count": 2,
        "clip.vision.feature_layer": [2],
        "clip.vision.projection_dim": 64,
        "clip.vision.attention.head_count": 2,
        "clip.use_gelu": None,
        "clip.use_silu": True,
        "llava.vision_hidden_act": "quick_gelu",
        "llava.image_aspect": "pad",
        "llava.image_pad_color": [122, 116, 104],
    }
    assert {key: keys.get(key) for key in expected} == expected
    assert keys["clip.vision.image_mean"] == pytest.approx([0.48145466, 0.4578275, 0.40821073])
    assert keys["clip.vision.image_std"] == pytest.approx([0.26862954, 0.26130258, 0.27577711])
    assert keys["clip.vision.attention.layer_norm_epsilon"] == pytest.approx(1e-5)
    assert not [name for name in values if "post_ln" in name]


def test_a_centre_cropping_checkpoint_says_so(source: Path, tmp_path: Path, gguf: Gguf) -> None:
    settings = json.loads((source / "preprocessor_config.json").read_text())
    settings |= {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 56}}
    del settings["do_pad"]
    (source / "preprocessor_config.json").write_text(json.dumps(settings))
    result = convert(source, tmp_path / "out")
    assert gguf(result.files[1].path)[0]["llava.image_aspect"] == "crop"


@pytest.mark.parametrize(
    ("choice", "layers"), [(-2, 2), (-1, 3), (1, 1), (2, 2), (-3, 1), ([-2], 2)]
)
def test_the_features_are_those_of_the_chosen_layer(
    source: Path,
    tmp_path: Path,
    gguf: Gguf,
    mmproj_features: Features,
    torch_features: Features,
    pixels: Any,
    choice: int | list[int],
    layers: int,
) -> None:
    change_config(source, vision_feature_layer=choice)
    result = convert(source, tmp_path / "out", mmproj_outtype="f32")
    keys, values, _ = gguf(result.files[1].path)
    assert keys["clip.vision.feature_layer"] == [layers]
    assert keys["clip.vision.block_count"] == layers
    assert len({name.split(".")[2] for name in values if name.startswith("v.blk.")}) == layers
    ours, theirs = mmproj_features(result.files[1].path, pixels), torch_features(source, pixels)
    assert np.abs(theirs).max() > 1
    assert np.abs(ours - theirs).max() < 3e-3  # the exact GELU of the projector against tanh


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu", "gelu_pytorch_tanh", "silu"])
def test_the_towers_activation_is_kept(
    source: Path,
    tmp_path: Path,
    gguf: Gguf,
    mmproj_features: Features,
    torch_features: Features,
    pixels: Any,
    activation: str,
) -> None:
    change_config(source, vision__hidden_act=activation)
    result = convert(source, tmp_path / "out", mmproj_outtype="f32")
    keys = gguf(result.files[1].path)[0]
    assert keys["llava.vision_hidden_act"] == activation
    assert keys.get("clip.use_gelu", False) == activation.startswith("gelu")
    assert keys.get("clip.use_silu", False) != activation.startswith("gelu")
    ours, theirs = mmproj_features(result.files[1].path, pixels), torch_features(source, pixels)
    assert np.abs(ours - theirs).max() < 5e-3


def test_a_projector_without_activation_gives_the_same_features(
    tiny: ModuleType,
    tmp_path: Path,
    mmproj_features: Features,
    torch_features: Features,
    pixels: Any,
) -> None:
    folder = tiny.build(tmp_path / "source", connector="linear")
    result = convert(folder, tmp_path / "out", mmproj_outtype="f32")
    ours, theirs = mmproj_features(result.files[1].path, pixels), torch_features(folder, pixels)
    assert np.abs(theirs).max() > 1
    assert np.abs(ours - theirs).max() < 2e-5


def test_a_projector_without_biases_gives_the_same_features(
    tiny: ModuleType,
    tmp_path: Path,
    mmproj_features: Features,
    torch_features: Features,
    pixels: Any,
) -> None:
    folder = tiny.build(tmp_path / "source", multimodal_projector_bias=False)
    result = convert(folder, tmp_path / "out", mmproj_outtype="f32")
    ours, theirs = mmproj_features(result.files[1].path, pixels), torch_features(folder, pixels)
    assert np.abs(ours - theirs).max() < 3e-3


def test_a_tower_whose_ffn_is_as_wide_as_itself_is_swapped_for_llama_cpp(
    source: Path, tmp_path: Path, mmproj_features: Features, torch_features: Features, pixels: Any
) -> None:
    from safetensors.numpy import save_file

    tensors = source_tensors(source)
    for name in [n for n in tensors if ".mlp.fc" in n and n.startswith("vision_tower")]:
        cut = (slice(0, 64),) if ".fc1." in name else (slice(None), slice(0, 64))
        tensors[name] = np.ascontiguousarray(tensors[name][cut[: tensors[name].ndim]])
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    change_config(source, vision__intermediate_size=64)
    result = convert(source, tmp_path / "out", mmproj_outtype="f32")
    ours, theirs = mmproj_features(result.files[1].path, pixels), torch_features(source, pixels)
    assert np.abs(ours - theirs).max() < 3e-3


def test_a_tied_checkpoint_has_its_embedding_once(
    tiny: ModuleType, tmp_path: Path, gguf: Gguf
) -> None:
    folder = tiny.build(tmp_path / "source", tie_word_embeddings=True)
    result = convert(folder, tmp_path / "out")
    assert "output.weight" not in gguf(result.files[0].path)[1]


def test_a_training_run_is_converted_from_its_model_folder(
    source: Path, tmp_path: Path, bpe_model: Path
) -> None:
    run = tmp_path / "my-run"
    run.mkdir()
    source.rename(run / "model")
    result = convert(run, tmp_path / "out", outtypes=["f32"], mmproj_outtype="f32")
    other = convert(bpe_model, tmp_path / "other", outtypes=["f32"], mmproj_outtype="f32",
                    name="my-run")  # fmt: skip
    assert [f.path.name for f in result.files] == ["my-run-F32.gguf", "mmproj-my-run-F32.gguf"]
    assert [f.sha256 for f in result.files] == [f.sha256 for f in other.files]


def test_several_types_are_written_in_one_call(bpe_model: Path, tmp_path: Path) -> None:
    result = convert(bpe_model, tmp_path, outtypes=["f16", "q8_0", "F16"], name="m")
    names = ["m-F16.gguf", "m-Q8_0.gguf", "mmproj-m-F16.gguf"]
    assert [file.path.name for file in result.files] == names
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        (
            {"model_type": "llava_next", "architectures": ["LlavaNextForConditionalGeneration"]},
            "image_newline",
        ),
        ({"model_type": "llava_onevision", "architectures": None}, "multiples"),
        ({"architectures": ["LlavaLlamaForCausalLM"]}, "known by its shape"),
        ({"model_type": "qwen2_vl", "architectures": ["Qwen2VL"]}, "Qwen2VL"),
        ({"vision__model_type": "dinov2"}, "dinov2"),
        ({"text__model_type": "gemma"}, "gemma"),
        ({"vision_feature_layer": [-2, -5]}, "several layers"),
        ({"vision_feature_layer": 9}, "outside"),
        ({"vision_feature_layer": -5}, "outside"),
        ({"vision_feature_select_strategy": "full"}, "full"),
        ({"projector_hidden_act": "relu"}, "relu"),
        ({"vision__hidden_act": "relu"}, "relu"),
        ({"text__hidden_act": "gelu"}, "gelu"),
        ({"text__rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "yarn"),
        ({"vision__image_size": 224}, "56 px"),
        ({"text__hidden_size": "64"}, "hidden_size"),
        ({"llava_prompt_format": "nonsense"}, "nonsense"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantised"),
    ],
)
def test_what_cannot_be_converted_is_refused_with_the_reason(
    source: Path, tmp_path: Path, changes: dict[str, Any], word: str
) -> None:
    change_config(source, **changes)
    with pytest.raises(ModelInvalid, match=word) as caught:
        convert(source, tmp_path / "out")
    assert "\n" not in caught.value.message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden"])
def test_a_name_that_is_no_file_name_is_refused(bpe_model: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError):
        convert(bpe_model, tmp_path, name=name)
    assert not list(tmp_path.iterdir())


def test_quick_gelu_is_written_as_silu_which_llama_cpp_computes_exactly(
    bpe_model: Path, tmp_path: Path, gguf: Gguf
) -> None:
    values = gguf(convert(bpe_model, tmp_path, mmproj_outtype="f32").files[1].path)[1]
    source = source_tensors(bpe_model)
    layer = "vision_tower.encoder.layers.0.mlp"
    for kind in ("weight", "bias"):
        assert np.allclose(values[f"v.blk.0.ffn_up.{kind}"], 1.702 * source[f"{layer}.fc1.{kind}"])
    assert np.allclose(values["v.blk.0.ffn_down.weight"], source[f"{layer}.fc2.weight"] / 1.702)
    assert np.array_equal(values["v.blk.0.ffn_down.bias"], source[f"{layer}.fc2.bias"])
