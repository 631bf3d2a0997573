"""LoRA adapters in the GGUF engine answer as peft's merged model does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llama_cpp")
pytest.importorskip("torch")
pytest.importorskip("peft")

from safetensors.numpy import load_file, save_file

from llava_cli import engines, models
from llava_cli.cache import Costs, DiskCache
from llava_cli.cli import main
from llava_cli.conversation import Conversation
from llava_cli.engines.base import Sampling, Stats
from llava_cli.engines.gguf.engine import GgufEngine
from llava_cli.errors import ModelInvalid, ModelNotFound
from llava_cli.images import Image
from tests import tiny

GREEDY = Sampling(max_tokens=8)
PICTURE = tiny.picture()
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "every matrix": {"target_modules": r".*language_model.*_proj"},
    "rslora, patterns": {
        "use_rslora": True, "rank_pattern": {"k_proj": 2},
        "alpha_pattern": {"layers.1.self_attn.q_proj": 3},
    },
}  # fmt: skip


def asked(text: str = "what is unusual here?") -> Conversation:
    return Conversation().add("user", Image.from_pil(PICTURE), text)


def ids_of(folder: Path, **options: Any) -> list[int | None]:
    engine = engines.load(models.resolve(str(folder)), threads=1, device="cpu", **options)
    try:
        return [token.id for token in engine.generate(asked(), GREEDY)]
    finally:
        engine.close()


def language_only(settings: dict[str, Any]) -> dict[str, Any]:
    return {"target_modules": r".*language_model.*\.(q_proj|k_proj|down_proj)", **settings}


@pytest.fixture(scope="module")
def adapter(
    bpe_folder: Path, lora_of: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """peft's folder. Read only."""
    return lora_of(bpe_folder, tmp_path_factory.mktemp("lora") / "lora", **language_only({}))


@pytest.fixture(scope="module")
def adapter_file(bpe_folder: Path, adapter: Path) -> Path:
    """The same as a GGUF, by the command."""
    out = adapter.parent / "gguf"
    convert = ["convert", adapter, "-o", out, "--to", "adapter", "--outtype", "f32"]
    assert main([str(word) for word in (*convert, "--base", bpe_folder)]) == 0
    (file,) = out.iterdir()
    return file


@pytest.mark.parametrize("kind", list(SETTINGS))
def test_a_peft_folder_answers_as_pefts_own_merged_model(
    bpe_folder: Path, bpe_gguf_folder: Path, tmp_path: Path, lora_of: Callable[..., Path], kind: str
) -> None:
    folder = lora_of(bpe_folder, tmp_path / "lora", **language_only(SETTINGS[kind]))
    wanted = ids_of(bpe_folder, adapter=folder)  # PyTorch: merged by peft
    assert ids_of(bpe_gguf_folder, adapter=folder) == wanted
    assert wanted != ids_of(bpe_gguf_folder)


def test_the_file_that_convert_writes_answers_alike(
    adapter: Path, adapter_file: Path, bpe_gguf_folder: Path
) -> None:
    assert adapter_file.name == "lora-lora-F32.gguf"
    assert ids_of(bpe_gguf_folder, adapter=adapter_file) == ids_of(bpe_gguf_folder, adapter=adapter)


def test_many_conversations_at_once_are_adapted_too(adapter: Path, bpe_gguf_folder: Path) -> None:
    engine = engines.load(models.resolve(str(bpe_gguf_folder)), threads=1, adapter=adapter)
    wanted = [token.id for token in engine.generate(asked(), GREEDY)]
    found: dict[int, list[int | None]] = {0: [], 1: []}
    for index, token in engine.generate_batch([asked(), asked()], GREEDY):
        found[index].append(token.id)
    engine.close()
    assert found == {0: wanted, 1: wanted}


def test_what_was_read_with_one_adapter_is_not_used_with_another(
    adapter: Path, bpe_gguf_folder: Path, bpe_folder: Path, tmp_path: Path,
    lora_of: Callable[..., Path],
) -> None:  # fmt: skip
    other = lora_of(bpe_folder, tmp_path / "other", seed=1, **language_only({}))
    free = Costs(bytes_per_s=1e18, seconds=0.0, margin=0.0)

    def ask(lora: Path | None, *, kept: bool) -> tuple[list[int | None], Stats]:
        cache = DiskCache(tmp_path / "cache", 1 << 30, costs=free) if kept else None
        files = models.resolve(str(bpe_gguf_folder))
        engine = GgufEngine(files, threads=1, cache=cache, adapter=lora)
        tokens = list(engine.generate(asked(), GREEDY))
        engine.close()
        stats = tokens[-1].stats
        assert stats is not None
        return [token.id for token in tokens], stats

    choices = (None, adapter, other)
    for lora in choices:
        ids, stats = ask(lora, kept=True)
        assert ids == ask(lora, kept=False)[0] and stats.prefix_tokens_reused == 0
    again, stats = ask(adapter, kept=True)
    assert again == ask(adapter, kept=False)[0] and stats.prefix_tokens_reused > 16
    assert stats.cache_image == "hit"  # a picture's features are the mmproj's, whatever adapts


def test_an_adapter_with_a_projector_names_the_command_that_merges(
    adapter: Path, bpe_gguf_folder: Path, tmp_path: Path
) -> None:
    import shutil

    folder = Path(shutil.copytree(adapter, tmp_path / "llava-lora"))
    (folder / "non_lora_trainables.bin").write_bytes(b"never read")
    with pytest.raises(ModelInvalid, match="its projector was trained, too") as caught:
        ids_of(bpe_gguf_folder, adapter=folder)
    assert f"llava convert {folder} -o DIR --base REF" in caught.value.hint


def test_an_adapter_of_the_tower_is_refused_not_dropped(
    bpe_folder: Path, bpe_gguf_folder: Path, tmp_path: Path, lora_of: Callable[..., Path]
) -> None:
    folder = lora_of(bpe_folder, tmp_path / "lora", target_modules=r".*vision_tower.*q_proj")
    with pytest.raises(ModelInvalid, match="vision_tower") as caught:
        ids_of(bpe_gguf_folder, adapter=folder)
    assert "merge it: llava convert" in caught.value.hint


def test_what_is_no_fitting_adapter_is_said(
    adapter: Path, bpe_gguf_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelNotFound, match="no LoRA adapter") as caught:
        ids_of(bpe_gguf_folder, adapter=tmp_path)
    assert caught.value.exit_code == 3
    text = next(path for path in bpe_gguf_folder.iterdir() if "mmproj" not in path.name)
    with pytest.raises(ModelInvalid, match="but no LoRA adapter"):
        ids_of(bpe_gguf_folder, adapter=text)
    tensors = load_file(adapter / "adapter_model.safetensors")
    cut = {name: value[:, :-8] if "lora_A" in name else value for name, value in tensors.items()}
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    save_file({k: v.copy() for k, v in cut.items()}, wrong / "adapter_model.safetensors")
    (wrong / "adapter_config.json").write_bytes((adapter / "adapter_config.json").read_bytes())
    with pytest.raises(ModelInvalid, match="does not fit the model"):
        ids_of(bpe_gguf_folder, adapter=wrong)


def test_pytorch_does_not_take_a_gguf_adapter(bpe_folder: Path, adapter_file: Path) -> None:
    with pytest.raises(ModelInvalid, match="is a file") as caught:
        ids_of(bpe_folder, adapter=adapter_file)
    assert "GGUF model" in caught.value.hint


def test_convert_to_adapter_asks_for_the_base_and_shows_what_it_would_write(
    adapter: Path, bpe_folder: Path, bpe_gguf_folder: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    convert = ["convert", str(adapter), "-o", str(tmp_path / "out"), "--to", "adapter"]
    assert main(convert) == 3
    assert "--base REF" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "absent"), *convert[2:]]) == 3
    assert "is no LoRA adapter" in capsys.readouterr().err
    base = str(next(p for p in bpe_gguf_folder.iterdir() if "mmproj" not in p.name))
    assert main([*convert, "--base", base, "--dry-run", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)["files"]
    assert [one["role"] for one in planned] == ["adapter"]
    assert not (tmp_path / "out").exists()
    names = [one["name"] for one in planned[0]["tensors"]]
    assert "blk.0.attn_q.weight.lora_a" in names
    assert main([*convert, "--base", base, "--quant", "q4_k_m"]) == 2
    assert "known: f32, f16" in capsys.readouterr().err
