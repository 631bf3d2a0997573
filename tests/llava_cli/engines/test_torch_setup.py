"""Loading into PyTorch: what does not fit is said before, adapters change what is answered."""

from __future__ import annotations

import contextlib
import json
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
from llava_cli.cli import main
from llava_cli.conversation import Conversation
from llava_cli.engines import pytorch_estimate, pytorch_setup
from llava_cli.engines.pytorch_setup import Setup, choose_device, choose_dtype
from llava_cli.errors import LlavaError, ModelInvalid, ModelNotFound, OutOfMemory, UsageError
from llava_cli.models.facts import weights
from llava_cli.models.files import ModelFiles
from tests import tiny, tiny_others

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


def test_a_gpu_computes_in_the_16_bits_that_it_has(
    files: ModelFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pytorch_setup, "free_bytes", lambda device: None)
    for bf16, wanted in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda bf16=bf16: bf16)
        assert choose_dtype(files, Setup("cuda"), "cuda:0") == wanted
    assert choose_dtype(files, Setup("cuda", "float32"), "cuda:0") == torch.float32
    with pytest.raises(LlavaError, match="unknown dtype"):
        choose_dtype(files, Setup(dtype="int3"), "cpu")


def test_auto_takes_the_best_device_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"cuda": True, "mps": True}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there["cuda"])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: there["mps"])
    assert [choose_device(name) for name in ("auto", "cpu", "cuda:1")] == ["cuda", "cpu", "cuda:1"]
    with pytest.raises(LlavaError, match="no device cuda:2"):
        choose_device("cuda:2")
    there["cuda"] = False
    assert choose_device("auto") == "mps"
    with pytest.raises(LlavaError, match="no cuda device"):
        choose_device("cuda")
    there["mps"] = False
    assert choose_device("auto") == "cpu"


def test_what_the_allocator_itself_raises_is_a_full_memory(files: ModelFiles) -> None:
    with pytest.raises(OutOfMemory) as caught, pytorch_setup.out_of_memory("a model"):
        torch.empty(1 << 50, dtype=torch.uint8)  # more than a process can address
    assert caught.value.exit_code == 6 and "GGUF" in caught.value.hint
    with pytest.raises(RuntimeError, match="shape"), pytorch_setup.out_of_memory("a model"):
        raise RuntimeError("shape mismatch")


def test_a_full_memory_is_exit_6_with_the_remedy(
    files: ModelFiles, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import LlavaForConditionalGeneration as Llava

    ask = ["ask", "-m", str(files.path), "--engine", "torch", "--device", "cpu", "--no-log", "why?"]

    def full(*_: object, **__: object) -> None:
        torch.empty(1 << 50, dtype=torch.uint8)

    with monkeypatch.context() as patch:
        patch.setattr(Llava, "forward", full)
        assert main(ask) == 6
    assert "does not fit into memory" in (said := capsys.readouterr().err) and "GGUF" in said
    monkeypatch.setattr(pytorch_setup, "free_bytes", lambda device: 1000)
    assert main(ask) == 6
    assert "for its weights alone" in (said := capsys.readouterr().err) and "GGUF" in said


@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_an_estimate_counts_the_tokens_that_are_read_and_loads_nothing(
    files: ModelFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    picture = tmp_path / "picture.png"
    tiny.picture().save(picture)
    folder = files.path if family == "llava" else tiny_others.llava_next(tmp_path / "next")
    ask = ["ask", "-m", str(folder), "--engine", "torch", "--device", "cpu", "--no-log", "--json",
           "--max-tokens", "4", str(picture), "why?"]  # fmt: skip
    assert main(ask) == 0
    usage = json.loads(capsys.readouterr().out)["usage"]
    monkeypatch.setattr(pytorch_setup, "_from_pretrained", None)
    assert main([*ask, "--estimate"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["prompt_tokens"] == usage["prompt_tokens"]
    assert found["image_tokens"] == usage["image_tokens"] > 0
    parameters, _ = weights(folder)
    assert found["memory"]["weights"] == 4 * parameters < found["memory"]["total"]
    assert found["fits_context"] and found["memory"]["kv"] > 0
    monkeypatch.setattr(pytorch_estimate, "free_bytes", lambda device: 3 * parameters)
    assert main([*ask, "--estimate"]) == 0
    assert json.loads(capsys.readouterr().out)["memory"]["weights"] == 2 * parameters


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
