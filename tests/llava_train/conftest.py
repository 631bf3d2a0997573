"""What training tests share: tokenizers of both kinds, a tower, a language model, small data."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

# Scenes and recipes need no torch; the rest of these tests does.
_NEED_TORCH = (
    "adapters command dataset failures features formats kills labels loop parallel plan reference "
    "tiles train validation"
).split()
collect_ignore = (
    [] if importlib.util.find_spec("torch") else [f"test_{name}.py" for name in _NEED_TORCH]
)


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """tests/tiny.py, from where it lies (tests are no package)."""
    path = Path(__file__).resolve().parents[1] / "tiny.py"
    spec = importlib.util.spec_from_file_location("train_tiny", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def bpe(tiny: ModuleType) -> Any:
    """A byte-level BPE tokenizer, as the bundled model has."""
    return tiny.bpe_tokenizer()


@pytest.fixture(scope="session")
def spm(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tokenizer made from a SentencePiece model, as LLaVA-1.5 has."""
    return tiny.spm_tokenizer(tmp_path_factory.mktemp("spm"))


@pytest.fixture(scope="session")
def language_model(bpe: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random causal language model that has never seen a picture."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("language-model")
    torch.manual_seed(1)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, vocab_size=448, max_position_embeddings=256,
        bos_token_id=bpe.bos_token_id, eos_token_id=bpe.eos_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    bpe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def vision_tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random CLIP tower: 28 px in patches of 14 are 4 positions."""
    import torch
    from transformers import CLIPVisionConfig, CLIPVisionModel

    folder = tmp_path_factory.mktemp("tower")
    torch.manual_seed(2)
    config = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2,
        image_size=28, patch_size=14,
    )  # fmt: skip
    CLIPVisionModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def siglip_tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random SigLIP with its pooling head: no class position, values from -1 to 1."""

    import torch
    from transformers import SiglipVisionConfig, SiglipVisionModel

    folder = tmp_path_factory.mktemp("siglip")
    torch.manual_seed(3)
    config = SiglipVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2,
        image_size=28, patch_size=14,
    )  # fmt: skip
    SiglipVisionModel(config).save_pretrained(folder)
    half = [0.5, 0.5, 0.5]
    settings = {
        "image_processor_type": "SiglipImageProcessor", "image_mean": half, "image_std": half,
        "size": {"height": 28, "width": 28}, "resample": 3,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="session")
def pictures(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures, 0.png to 5.png."""
    folder = tmp_path_factory.mktemp("pictures")
    for seed in range(6):
        tiny.picture(40 + 4 * seed, 36, seed).save(folder / f"{seed}.png")
    return folder


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stage-1 data: one request, one caption."""
    texts = ["a red circle", "two blue squares", "a small yellow triangle", "green stars"]
    samples = [
        {
            "id": f"pair-{i}",
            "image": f"{i % 6}.png",
            "conversations": [
                {"from": "human", "value": "Describe it.\n<image>"},
                {"from": "gpt", "value": texts[i % 4]},
            ],
        }
        for i in range(10)
    ]
    path = tmp_path_factory.mktemp("pairs") / "stage1.json"
    path.write_text(json.dumps(samples))
    return path


@pytest.fixture(scope="session")
def talks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stage-2 data as JSON Lines: conversations of several lengths, some without a picture."""
    turns = [
        ("what is unusual here?", "the red circle is"),
        ("how many shapes?", "3"),
        ("ok?", "yes"),
    ]
    lines = []
    for i in range(12):
        pictured = i % 4 != 3
        conversation = []
        for number, (question, answer) in enumerate(turns[: 1 + i % 3]):
            mark = "<image>\n" if pictured and number == 0 else ""
            conversation.append({"from": "human", "value": mark + question})
            conversation.append({"from": "gpt", "value": answer})
        sample: dict[str, Any] = {"id": f"talk-{i}", "conversations": conversation}
        lines.append(json.dumps(sample | ({"image": f"{i % 6}.png"} if pictured else {})))
    path = tmp_path_factory.mktemp("talks") / "instruct.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path
