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
    inner = config.text_config.to_dict()
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
