"""The guide's commands for models of the Hub, run as shown against a Hub on this machine.

It serves tiny models under the names that the page uses; the rest is the real client.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from safetensors.numpy import load_file

from tests import hub_server
from tests.llava_convert.layouts import (
    WEIGHTS,
    adapted,
    as_torch,
    copy_tokenizer,
    original_config,
    original_name,
    write_language_model,
    write_original,
    write_tower,
)
from tests.test_docs import ROOT, commands, run

PAGE = ROOT / "docs" / "convert.md"


def repo(folder: Path) -> hub_server.Repo:
    return hub_server.Repo({path.name: path.read_bytes() for path in folder.iterdir()})


def write_adapters(source: Path, base: Path, desk: Path) -> None:
    """`my-lora` on the whole model, `text-lora` and `original-lora` on its language model."""
    import torch
    from transformers import AutoModelForCausalLM, LlavaForConditionalGeneration

    adapted(LlavaForConditionalGeneration.from_pretrained(source), desk / "my-lora")
    text = LlavaForConditionalGeneration.from_pretrained(source)
    adapted(text, desk / "text-lora", r".*language_model.*_proj")
    folder = desk / "original-lora"
    adapted(AutoModelForCausalLM.from_pretrained(base), folder)
    copy_tokenizer(source, folder)
    (folder / "config.json").write_text(json.dumps(original_config(source)))
    tensors = load_file(source / WEIGHTS).items()
    rest = {original_name(k): v for k, v in tensors if k.startswith("multi_modal_projector.")}
    torch.save(as_torch(rest), folder / "non_lora_trainables.bin")


@pytest.mark.slow
@pytest.mark.checkout
@pytest.mark.timeout(900)
def test_the_guides_commands_for_models_of_the_hub_work(
    tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Path(tiny.build(tmp_path / "source", tokenizer="spm"))
    base = write_language_model(source, tmp_path / "base")
    desk = tmp_path / "desk"
    desk.mkdir()
    write_adapters(source, base, desk)
    tiny.picture(90, 60).save(desk / "photo.jpg")
    shown = [command for command in commands(PAGE) if command.network]
    with hub_server.running() as hub:
        hub.repos = {
            "llava-hf/llava-1.5-7b-hf": repo(source),
            "liuhaotian/llava-v1.5-7b": repo(
                write_original(source, tmp_path / "original", tower=False)
            ),
            "openai/clip-vit-large-patch14-336": repo(write_tower(source, tmp_path / "tower")),
            "lmsys/vicuna-7b-v1.5": repo(base),
        }
        monkeypatch.delenv("HF_HUB_OFFLINE")
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        for command in shown:
            done: Any = run(command, desk)
            assert done.returncode == 0, f"{command.text}\n{done.stdout}\n{done.stderr}"
    assert len(shown) > 4
    assert {name for name in hub.repos if name not in " ".join(c.text for c in shown)} == set()
    names = {path.name for path in (desk / "gguf").iterdir()}
    assert {"llava-1.5-7b-hf-Q4_K_M.gguf", "mmproj-llava-v1.5-7b-F16.gguf"} < names
    assert {"my-lora-Q4_K_M.gguf", "original-lora-F16.gguf", "text-lora-lora-F16.gguf"} < names
