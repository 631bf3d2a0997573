"""The PyTorch engine alone: incomplete models are refused, options mean what they say."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from safetensors.torch import load_file, save_file

from llava_cli import engines, models
from llava_cli.conversation import Conversation
from llava_cli.engines import Engine
from llava_cli.engines.base import Sampling
from llava_cli.engines.pytorch import TorchEngine
from llava_cli.errors import LlavaError, MissingDependency, ModelInvalid, OutOfMemory
from llava_cli.images import Image
from tests import tiny


def asking(seed: int = 0) -> Conversation:
    return Conversation().add("user", Image.from_pil(tiny.picture(seed=seed)), "what is odd?")


def load(folder: Path, **options: Any) -> Engine:
    return engines.load(models.resolve(str(folder)), threads=1, **options)


def copied(folder: Path, tmp_path: Path, **changes: Any) -> Path:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | changes))
    return copy


def test_the_answer_is_that_of_transformers_own_generate(
    bpe_folder: Path, bpe_torch: Engine
) -> None:
    from transformers import LlavaForConditionalGeneration as Llava

    from llava_cli.pixels import PixelConfig, normalise, prepare

    ids = bpe_torch.prompt_ids(asking())
    image = Llava.from_pretrained(bpe_folder).config.image_token_id
    flat: list[int] = []
    for token in ids:
        flat += [image] * tiny.TOKENS if token == "image" else [int(token)]
    settings = json.loads((bpe_folder / "preprocessor_config.json").read_text())
    config = PixelConfig.from_preprocessor(settings)
    pixels = normalise(prepare(tiny.picture(), config), config)
    model: Any = Llava.from_pretrained(bpe_folder).eval()
    generated = model.generate(
        input_ids=torch.tensor([flat]),
        attention_mask=torch.ones(1, len(flat), dtype=torch.long),
        pixel_values=torch.from_numpy(pixels)[None],
        max_new_tokens=8,
        do_sample=False,
    )
    wanted = generated[0, len(flat) :].tolist()
    tokens = list(bpe_torch.generate(asking(), Sampling(max_tokens=8)))
    assert [token.id for token in tokens[:-1]] == wanted[: len(tokens) - 1]


def test_missing_weights_are_an_error_not_random_numbers(bpe_folder: Path, tmp_path: Path) -> None:
    copy = copied(bpe_folder, tmp_path)
    weights = load_file(copy / "model.safetensors")
    (gone,) = [name for name in weights if name.endswith("linear_1.weight")]
    del weights[gone]
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelInvalid, match="linear_1.weight"):
        load(copy)


def test_model_types_that_transformers_does_not_know_are_refused(
    bpe_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelInvalid, match="of model type 'llava_nixt'"):
        load(copied(bpe_folder, tmp_path, model_type="llava_nixt"))


def test_a_folder_without_a_prompt_format_asks_for_one(bpe_folder: Path, tmp_path: Path) -> None:
    copy = copied(bpe_folder, tmp_path, llava_prompt_format=None)
    with pytest.raises(ModelInvalid, match="which prompt format") as caught:
        load(copy)
    assert "--prompt-format" in caught.value.hint


def test_dtype_is_as_asked(bpe_folder: Path, bpe_torch: Engine) -> None:
    half = load(bpe_folder, dtype="bfloat16")
    near, exact = (e.first_logits(asking()) for e in (half, bpe_torch))  # type: ignore[attr-defined]
    assert half._model.dtype == torch.bfloat16  # type: ignore[attr-defined]
    assert 1e-3 < np.abs(near - exact).max() < 5.0
    half.close()
    with pytest.raises(LlavaError, match="unknown dtype"):
        load(bpe_folder, dtype="int3")


def test_out_of_memory_is_named_and_leaves_the_engine_usable(
    bpe_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load(bpe_folder)
    assert isinstance(engine, TorchEngine)

    def exhausted(*_: object, **__: object) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory")

    with monkeypatch.context() as patch:
        patch.setattr(engine._model.model.language_model, "forward", exhausted)
        with pytest.raises(OutOfMemory) as caught:
            list(engine.generate(asking(), Sampling(max_tokens=2)))
    assert caught.value.exit_code == 6 and caught.value.hint
    assert len(list(engine.generate(asking(), Sampling(max_tokens=2)))) == 3
    engine.close()


def test_a_closed_engine_says_so(bpe_folder: Path) -> None:
    engine = load(bpe_folder)
    engine.close()
    engine.close()
    with pytest.raises(LlavaError, match="closed"):
        list(engine.generate(asking(), Sampling()))


def test_a_device_that_is_not_there_is_explained(bpe_folder: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(LlavaError, match="no cuda device"):
        load(bpe_folder, device="cuda")


def test_without_torch_the_remedy_is_named(
    bpe_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "llava_cli.engines.pytorch")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingDependency, match="needs torch") as caught:
        load(bpe_folder)
    assert "llava-cli[torch]" in caught.value.hint


def test_an_engine_of_the_wrong_kind_is_refused(bpe_folder: Path) -> None:
    files = models.resolve(str(bpe_folder))
    with pytest.raises(ModelInvalid, match="gguf engine cannot read"):
        engines.load(files, engine="gguf")
