"""Loading into PyTorch: what does not fit is said before, adapters change what is answered."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch

from llava_cli import engines, models
from llava_cli.conversation import Conversation
from llava_cli.engines import pytorch_setup
from llava_cli.engines.pytorch_setup import Setup, choose_dtype
from llava_cli.errors import LlavaError, ModelInvalid, ModelNotFound, OutOfMemory, UsageError
from llava_cli.models.facts import weights
from llava_cli.models.files import ModelFiles

ASKED = Conversation().add("user", "what is odd?")


@pytest.fixture
def files(bpe_folder: Path) -> ModelFiles:
    return models.resolve(str(bpe_folder))


def load(files: ModelFiles, **options: Any) -> Any:
    return engines.load(files, threads=1, device="cpu", **options)


def test_a_model_larger_than_what_is_free_is_refused_before_it_is_loaded(
    files: ModelFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pytorch_setup, "free_bytes", lambda device: 1000)
    monkeypatch.setattr(pytorch_setup, "_from_pretrained", None)
    with pytest.raises(OutOfMemory, match="for its weights alone, and cpu has") as caught:
        load(files)
    assert caught.value.exit_code == 6 and "GGUF" in caught.value.hint


def test_a_cpu_with_room_for_half_computes_in_16_bits(
    files: ModelFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters, _ = weights(files.path)
    assert choose_dtype(files, Setup(), "cpu") == torch.float32
    monkeypatch.setattr(pytorch_setup, "free_bytes", lambda device: parameters * 3)
    assert choose_dtype(files, Setup(), "cpu") == torch.bfloat16
    with pytest.raises(OutOfMemory):
        choose_dtype(files, Setup(dtype="float32"), "cpu")
    monkeypatch.setattr(pytorch_setup, "free_bytes", lambda device: None)
    assert choose_dtype(files, Setup(), "cpu") == torch.float32
    assert choose_dtype(files, Setup(), "mps") == torch.float16


@pytest.mark.parametrize("quantize", ["4bit", "8bit"])
def test_quantising_without_cuda_is_refused_with_the_other_way(
    files: ModelFiles, bpe_gguf_folder: Path, quantize: str
) -> None:
    with pytest.raises(UsageError, match=r"needs an NVIDIA GPU .*runs on cpu") as caught:
        load(files, quantize=quantize)
    assert "GGUF" in caught.value.hint
    with pytest.raises(UsageError, match="is for PyTorch"):
        load(models.resolve(str(bpe_gguf_folder)), quantize=quantize)
    with pytest.raises(UsageError, match="unknown quantisation"):
        load(files, quantize="3bit")


@contextlib.contextmanager
def remarks() -> Iterator[None]:
    """peft uses what transformers is about to remove."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def adapter(files: ModelFiles, folder: Path, **changes: Any) -> Path:
    """A LoRA adapter for the language model, not at its neutral beginning."""
    peft = pytest.importorskip("peft")
    import transformers

    auto: Any = transformers.AutoModelForImageTextToText
    model = auto.from_pretrained(files.path)
    settings = {"r": 4, "target_modules": r".*language_model.*\.(q_proj|v_proj)", **changes}
    with remarks():
        wrapped = peft.get_peft_model(model, peft.LoraConfig(**settings))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if "lora_" in name:
                weight.normal_(0.0, 0.3)
    wrapped.save_pretrained(folder)
    return folder


def test_an_adapter_changes_the_answer_as_peft_itself_does(
    files: ModelFiles, tmp_path: Path
) -> None:
    import peft
    import transformers

    folder = adapter(files, tmp_path / "lora")
    plain, adapted = load(files), load(files, adapter=folder)
    auto: Any = transformers.AutoModelForImageTextToText
    with remarks():
        base = auto.from_pretrained(files.path)
        reference: Any = peft.PeftModel.from_pretrained(base, str(folder))
    ids = torch.tensor([adapted.prompt_ids(ASKED)])
    with torch.inference_mode():
        wanted = reference.eval()(input_ids=ids).logits[0, -1].numpy()
    assert np.abs(adapted.first_logits(ASKED) - wanted).max() < 1e-3
    assert np.abs(adapted.first_logits(ASKED) - plain.first_logits(ASKED)).max() > 0.05


def test_a_folder_that_is_no_fitting_adapter_is_refused(files: ModelFiles, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="no adapter_config"):
        load(files, adapter=tmp_path)
    folder = adapter(files, tmp_path / "pickle")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(ModelInvalid, match="pickles are not read"):
        load(files, adapter=folder)
    (folder / "adapter_model.bin").rename(folder / "adapter_model.safetensors")
    config = (folder / "adapter_config.json").read_text()
    (folder / "adapter_config.json").write_text(config.replace("q_proj", "no_such_layer"))
    with pytest.raises(LlavaError, match="does not fit"):
        load(files, adapter=folder)
