"""The files load in llama.cpp, and the language model gives transformers' logits."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from llava_convert import convert

PROMPT = "USER: what is unusual here? ASSISTANT: the red circle"


def torch_logits(folder: Path, ids: list[int]) -> Any:
    import torch
    from transformers import LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(folder).float().eval()
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0].numpy()


@pytest.mark.parametrize("tokenizer", ["bpe", "spm"])
def test_logits_equal_transformers(
    tokenizer: str, tmp_path: Path, llama: Any, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(f"{tokenizer}_model")
    kinds = ["f32", "f16", "bf16", "q8_0"]
    files = convert(folder, tmp_path, outtypes=kinds).files[:-1]
    models = {file.type: llama(file.path) for file in files}
    ids = models["F32"].ids(PROMPT, add_special=True)
    expected = torch_logits(folder, ids)
    spread = np.abs(expected).max()
    assert spread > 1
    limits = {"F32": 1e-4, "F16": 2e-2, "BF16": 0.1, "Q8_0": 0.3}
    for kind, model in models.items():
        assert np.abs(model.logits(ids) - expected).max() < limits[kind], kind


def changed(tiny: ModuleType, folder: Path, **text: Any) -> Path:
    """A checkpoint whose language model has other numbers."""
    import torch
    from transformers import LlamaConfig, LlavaForConditionalGeneration

    tiny.build(folder)
    config = LlavaForConditionalGeneration.from_pretrained(folder).config
    inner: dict[str, Any] = json.loads((folder / "config.json").read_text())["text_config"]
    config.text_config = LlamaConfig(**{**inner, **text})
    torch.manual_seed(1)
    model = LlavaForConditionalGeneration(config).float()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0.0, 0.15) if weight.dim() > 1 else weight.add_(0.1)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "text",
    [
        pytest.param({"num_attention_heads": 4, "num_key_value_heads": 2}, id="grouped heads"),
        pytest.param({"num_key_value_heads": 1}, id="one key head"),
        pytest.param({"head_dim": 64}, id="wide heads"),
        pytest.param({"attention_bias": True, "mlp_bias": True}, id="biases"),
        pytest.param({"tie_word_embeddings": True}, id="tied"),
        pytest.param(
            {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, id="other theta"
        ),
        pytest.param(
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
            id="linear rope",
        ),
        pytest.param(
            {
                "rope_parameters": {
                    "rope_type": "llama3",
                    "rope_theta": 1e4,
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 64,
                }
            },
            id="llama 3 rope",
        ),
    ],
)
def test_logits_equal_transformers_for_every_shape_of_llama(
    tiny: ModuleType, tmp_path: Path, llama: Any, text: dict[str, Any]
) -> None:
    folder = changed(tiny, tmp_path / "source", **text)
    model = llama(convert(folder, tmp_path / "out", outtypes=["f32"]).files[0].path)
    ids = model.ids(PROMPT, add_special=True)
    expected = torch_logits(folder, ids)
    assert np.abs(expected).max() > 0.5
    assert np.abs(model.logits(ids) - expected).max() < 1e-4


def test_a_mistral_model_gives_the_same_logits(
    tiny: ModuleType, tmp_path: Path, llama: Any
) -> None:
    folder = tiny.build(tmp_path / "source")
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["text_config"] |= {"model_type": "mistral", "sliding_window": 300}
    path.write_text(json.dumps(config))
    model = llama(convert(folder, tmp_path / "out", outtypes=["f32"]).files[0].path)
    ids = model.ids(PROMPT, add_special=True)
    assert np.abs(model.logits(ids) - torch_logits(folder, ids)).max() < 1e-4
    assert model.api.llama_model_n_ctx_train(model.model) == 300


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "q8_0"])
@pytest.mark.parametrize("connector", ["mlp2x_gelu", "linear"])
def test_the_mmproj_loads_and_encodes_a_picture(
    tiny: ModuleType, tmp_path: Path, llama: Any, kind: str, connector: str
) -> None:
    folder = tiny.build(tmp_path / "source", connector=connector)
    text, mmproj = convert(folder, tmp_path / "out", mmproj_outtype=kind).files
    features = encode(llama(text.path), mmproj.path, np.zeros((56, 56, 3), np.uint8))
    assert features.shape == (16, 64)
    assert np.isfinite(features).all() and np.abs(features).max() > 0.1


def narrow(folder: Path) -> None:
    """Cut the tower's FFN to its width."""
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    for name in [n for n in tensors if ".mlp.fc" in n and n.startswith("vision_tower")]:
        cut = (slice(0, 64),) if ".fc1." in name else (slice(None), slice(0, 64))
        tensors[name] = np.ascontiguousarray(tensors[name][cut[: tensors[name].ndim]])
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["intermediate_size"] = 64
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="as LLaVA-1.5"),
        pytest.param({"hidden_act": "gelu"}, id="gelu tower"),
        pytest.param({"hidden_act": "silu"}, id="silu tower"),
        pytest.param({"vision_feature_layer": -1}, id="last layer"),
        pytest.param({"vision_feature_layer": 1}, id="first layer"),
        pytest.param({"connector": "linear", "aspect": "crop"}, id="linear projector"),
        pytest.param({"multimodal_projector_bias": False}, id="no biases"),
        pytest.param({"narrow": True}, id="FFN as wide as the tower"),
    ],
)
def test_picture_features_equal_transformers_in_our_engine(
    tiny: ModuleType,
    tmp_path: Path,
    llama: Any,
    torch_features: Any,
    changes: dict[str, Any],
) -> None:
    from llava_cli.engines.gguf.vision import ImageEncoder
    from llava_cli.pixels import normalise, prepare

    later = {"narrow", "vision_feature_layer"}
    folder = tiny.build(tmp_path / "source", **{k: v for k, v in changes.items() if k not in later})
    if "narrow" in changes:
        narrow(folder)
    if "vision_feature_layer" in changes:
        config = json.loads((folder / "config.json").read_text())
        config["vision_feature_layer"] = changes["vision_feature_layer"]
        (folder / "config.json").write_text(json.dumps(config))
    text, mmproj = convert(folder, tmp_path / "out", mmproj_outtype="f32").files
    model = llama(text.path).model
    encoder = ImageEncoder(mmproj.path, model, threads=1, use_gpu=False, width=64)
    try:
        for width, height in ((90, 60), (40, 130)):
            pixels = prepare(tiny.picture(width, height), encoder.pixels)
            expected = torch_features(folder, normalise(pixels, encoder.pixels))
            assert np.abs(expected).max() > 1
            assert np.abs(encoder.encode(pixels) - expected).max() < 1e-4
    finally:
        encoder.close()


def encode(model: Any, mmproj: Path, picture: Any) -> Any:
    """Features as stock llama.cpp gives them, (tokens, width); without the repair of CLS."""
    mtmd = model.api.mtmd_cpp
    params = mtmd.mtmd_context_params_default()
    params.warmup, params.use_gpu, params.n_threads = False, False, 1
    context = mtmd.mtmd_init_from_file(str(mmproj).encode(), model.model, params)
    if not context:
        raise RuntimeError(f"llama.cpp does not load {mmproj}")
    height, width, _ = picture.shape
    raw = picture.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
    bitmap = mtmd.mtmd_bitmap_init(width, height, raw)
    part = mtmd.mtmd_input_part()
    part.bitmap = bitmap
    parts = (ctypes.POINTER(mtmd.mtmd_input_part) * 1)(ctypes.pointer(part))
    chunks = mtmd.mtmd_input_chunks_init()
    try:
        if mtmd.mtmd_tokenize_from_parts(context, chunks, parts, 1, False) != 0:
            raise RuntimeError("the picture is refused")
        chunk = mtmd.mtmd_input_chunks_get(chunks, 0)
        if mtmd.mtmd_encode_chunk(context, chunk) != 0:
            raise RuntimeError("the picture is not encoded")
        count = mtmd.mtmd_input_chunk_get_n_tokens(chunk)
        size = model.api.llama_model_n_embd_inp(model.model)
        return np.ctypeslib.as_array(mtmd.mtmd_get_output_embd(context), (count, size)).copy()
    finally:
        mtmd.mtmd_input_chunks_free(chunks)
        mtmd.mtmd_bitmap_free(bitmap)
        mtmd.mtmd_free(context)
