"""Every family of language models and towers computes in llama.cpp what it does in transformers."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from llava_cli.engines.layouts.sources import open_source
from llava_cli.errors import ModelInvalid
from llava_convert import convert
from llava_convert.check import check
from tests.llava_convert.families import PINPOINTS, build

PROMPT = "USER: what is unusual here? ASSISTANT: the red circle"


def reference(folder: Path) -> Any:
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(folder).float().eval()


def torch_logits(model: Any, ids: list[int]) -> Any:
    import torch

    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0].numpy()


@pytest.mark.parametrize(
    "family", ["llama", "mistral", "qwen2", "qwen2 tied", "phi3", "phi3 longrope", "phi"]
)
def test_logits_and_greedy_tokens_equal_transformers(
    tiny: ModuleType, tmp_path: Path, llama: Any, gguf: Any, family: str
) -> None:
    folder = build(tiny, tmp_path / "source", family)
    files = convert(folder, tmp_path / "out", outtypes=["f32", "q4_k_m"]).files
    architecture = gguf(files[0].path)[0]["general.architecture"]
    assert architecture == {"mistral": "llama", "phi": "phi2"}.get(
        family.split()[0], family.split()[0]
    )
    model, theirs = llama(files[0].path), reference(folder)
    ids = model.ids(PROMPT, add_special=True)
    expected = torch_logits(theirs, ids)
    assert np.abs(expected).max() > 1
    limit = 5e-3 if family == "phi" else 1e-4  # ggml looks Phi's GELU up in a float16 table
    assert np.abs(model.logits(ids) - expected).max() < limit
    for _ in range(6):  # greedy, read anew each time
        ids.append(int(model.logits(ids)[-1].argmax()))
    assert ids[-6:] == [int(row.argmax()) for row in torch_logits(theirs, ids)[-7:-1]]
    assert np.isfinite(llama(files[1].path).logits(ids)).all()


@pytest.mark.parametrize("tower", ["clip", "siglip", "siglip 60"])
@pytest.mark.parametrize("kind", ["Llava", "LlavaNext"])
def test_features_of_every_tower_equal_transformers(
    tiny: ModuleType, tmp_path: Path, llama: Any, tower: str, kind: str
) -> None:
    """One square as the tower reads it: the whole picture of 1.5, or a tile of 1.6."""
    import torch

    from llava_cli.engines.gguf import vision as engine

    folder = build(tiny, tmp_path / "source", "llama", tower, kind)
    text, mmproj = convert(folder, tmp_path / "out", mmproj_outtype="f32").files
    theirs = reference(folder)
    size = 60 if tower == "siglip 60" else 56
    pixels = np.asarray(tiny.picture(size, size), np.uint8)
    normal = ((pixels / 255 - 0.5) / 0.5).astype(np.float32).transpose(2, 0, 1)
    with torch.no_grad():
        inner = theirs.model
        seen = inner.vision_tower(torch.from_numpy(normal)[None], output_hidden_states=True)
        row = seen.hidden_states[theirs.config.vision_feature_layer]
        row = row[:, 1:] if tower == "clip" else row
        expected = inner.multi_modal_projector(row)[0].numpy()
    if kind == "LlavaNext":
        pytest.importorskip("llava_cli.tiles", reason="the engine cuts no tiles yet")
    encoder = engine.ImageEncoder(
        mmproj.path, llama(text.path).model, threads=1, use_gpu=False, width=64
    )
    try:
        # ggml looks SigLIP's tanh GELU up in a float16 table
        limit = 1e-4 if tower == "clip" else 5e-3
        assert np.abs(encoder.encode(pixels) - expected).max() < limit
    finally:
        encoder.close()


@pytest.mark.parametrize(
    ("family", "tower"),
    [
        ("mistral", "clip"), ("qwen2", "clip"), ("phi3", "clip"), ("phi", "clip"),
        ("llama", "siglip"), ("qwen2 tied", "siglip 60"),
    ],
)  # fmt: skip
def test_wide_and_tall_pictures_are_answered_as_in_transformers(
    tiny: ModuleType, tmp_path: Path, family: str, tower: str, llama_cpp_api: Any
) -> None:
    folder = build(tiny, tmp_path / "source", family, tower)
    files = convert(folder, tmp_path / "out", outtypes=["f32"], mmproj_outtype="f32").files
    found = check(open_source(folder), files, threads=1)
    (compared,) = found.files
    assert found.verdict == "equal", compared
    assert compared.prompts == compared.same_ids == compared.same_answers == 4


@pytest.mark.parametrize("kind", ["LlavaNext", "LlavaOnevision"])
def test_a_model_with_tiles_keeps_its_grid_and_newline(
    tiny: ModuleType, tmp_path: Path, gguf: Any, kind: str
) -> None:
    from safetensors.numpy import load_file

    onevision = kind == "LlavaOnevision"
    folder = build(tiny, tmp_path / "source", "qwen2", "siglip" if onevision else "clip", kind)
    if onevision:
        with pytest.raises(ModelInvalid, match="anyres_max_9") as caught:
            convert(folder, tmp_path / "out")
        assert "--to hf" in caught.value.hint
        config = json.loads((folder / "config.json").read_text())
        config["vision_aspect_ratio"] = "anyres"
        (folder / "config.json").write_text(json.dumps(config))
    _, mmproj = convert(folder, tmp_path / "out", mmproj_outtype="f16").files
    keys, values, types = gguf(mmproj.path)
    source = load_file(folder / "model.safetensors")
    newline = next(value for name, value in source.items() if name.endswith("image_newline"))
    assert np.array_equal(values["v.image_newline"], newline)
    assert types["v.image_newline"] == "F32"
    assert keys["llava.image_aspect"] == "anyres"
    assert keys["llava.image_grid_pinpoints"] == [side for pair in PINPOINTS for side in pair]
    turned = [side for height, width in PINPOINTS for side in (width, height)]
    assert keys["clip.vision.image_grid_pinpoints"] == turned
    assert keys["llava.vision_aspect_ratio"] == "anyres"


def test_seventy_billions_shared_keys_are_told_to_the_mixture() -> None:
    from llava_convert.ggml import Kind
    from llava_convert.mixtures import ModelTraits, mixed_kind, outtype

    wanted = outtype("q4_k_m")
    small = ModelTraits(layers=80, tied=False, queries_per_key=8, is_70b=False)
    large = ModelTraits(layers=80, tied=False, queries_per_key=8, is_70b=True)
    name, shape = "blk.11.attn_v.weight", (1024, 8192)
    assert mixed_kind(wanted, name, shape, small) == Kind.Q4_K
    assert mixed_kind(wanted, name, shape, large) == Kind.Q5_K
