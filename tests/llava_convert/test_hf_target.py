"""`--to hf`: what transformers loads has the source's weights, tokens and pictures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from llava_cli.engines.layouts.sources import open_source
from llava_cli.errors import LlavaError, UsageError
from llava_convert import Extras, convert
from llava_convert.hf_target import convert_to_hf
from tests.llava_convert.layouts import WEIGHTS, write_original, write_tower


def logits(folder: Path, ids: list[int]) -> Any:
    import torch
    from transformers import LlavaForConditionalGeneration

    loading: Any = LlavaForConditionalGeneration.from_pretrained
    model, report = loading(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["mismatched_keys"]
    with torch.no_grad():
        return model.float().eval()(input_ids=torch.tensor([ids])).logits[0].numpy()


@pytest.fixture(scope="module")
def without_image_token(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """llava-hf, whose tokenizer has no `<image>` and whose embedding has no row to spare."""
    from safetensors.numpy import save_file

    folder = Path(tiny.build(tmp_path_factory.mktemp("hf") / "model", tokenizer="spm"))
    tensors = load_file(folder / WEIGHTS)
    settings = json.loads((folder / "tokenizer.json").read_text())
    settings["added_tokens"] = [t for t in settings["added_tokens"] if t["content"] != "<image>"]
    (folder / "tokenizer.json").write_text(json.dumps(settings))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    text = json.dumps(config).replace(', "<image>"', "").replace('"<image>", ', "")
    config = json.loads(text.replace('"<image>"', '"<pad>"'))
    config.pop("extra_special_tokens", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    rows = len(settings["model"]["vocab"]) + 1
    for name in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"):
        tensors[name] = tensors[name][:rows]
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    return folder


def test_an_original_checkpoint_loads_in_transformers(
    without_image_token: Path, tmp_path: Path
) -> None:
    from transformers import AutoProcessor, AutoTokenizer

    tower = write_tower_of(without_image_token, tmp_path)
    original = write_original(without_image_token, tmp_path / "original", tower=False)
    source = open_source(original, Extras(vision_tower=tower))
    result = convert_to_hf(source, tmp_path / "out")
    assert [file.path.name for file in result.files] == [WEIGHTS]
    tensors, before = load_file(tmp_path / "out" / WEIGHTS), load_file(
        without_image_token / WEIGHTS)  # fmt: skip
    for name in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"):
        rows = len(before[name])
        assert len(tensors[name]) % 64 == 0 and len(tensors[name]) > rows
        assert np.array_equal(tensors[name][:rows], before[name])
        mean = before[name].mean(axis=0)
        assert np.allclose(tensors[name][rows:], mean, atol=1e-6)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    number = config["image_token_index"]
    assert tokenizer.convert_tokens_to_ids("<image>") == number
    assert tokenizer("a<image>b").input_ids.count(number) == 1
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    assert type(processor).__name__ == "LlavaProcessor"
    assert "USER:" in str(tokenizer.chat_template)
    assert config["llava_prompt_format"] == "vicuna_v1"
    ids = tokenizer("USER: what is unusual?").input_ids
    assert np.isfinite(logits(tmp_path / "out", ids)).all()


def write_tower_of(folder: Path, tmp_path: Path) -> Path:
    """Of a checkpoint whose embedding does not fit its config: from one that does."""
    fixed = tmp_path / "fixed"
    shutil.copytree(folder, fixed)
    config = json.loads((fixed / "config.json").read_text())
    rows = load_file(fixed / WEIGHTS)["language_model.lm_head.weight"].shape[0]
    config["text_config"]["vocab_size"] = rows
    (fixed / "config.json").write_text(json.dumps(config))
    return write_tower(fixed, tmp_path / "tower")


@pytest.mark.parametrize("kind", [None, "bf16"])
def test_a_llava_hf_model_goes_through_unchanged(
    bpe_model: Path, tmp_path: Path, kind: str | None
) -> None:
    result = convert_to_hf(open_source(bpe_model), tmp_path / "out", outtype=kind)
    ids = [1, 7, 40, 99]
    before, after = logits(bpe_model, ids), logits(tmp_path / "out", ids)
    if kind is None:
        assert np.array_equal(before, after)
    else:
        assert 0 < np.abs(before - after).max() < 0.2
    assert result.files[0].type == (kind or "f32").upper()
    direct = convert(bpe_model, tmp_path / "a", name="m", mmproj_outtype="f32")
    again = convert(tmp_path / "out", tmp_path / "b", name="m", mmproj_outtype="f32")
    if kind is None:
        assert [f.sha256 for f in direct.files] == [f.sha256 for f in again.files]


def test_shards_are_written_with_their_index(
    bpe_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llava_convert.hf_target.SHARD_BYTES", 200_000)
    result = convert_to_hf(open_source(bpe_model), tmp_path / "out")
    count = len(result.files)
    assert count > 2
    names = [file.path.name for file in result.files]
    assert names[0] == f"model-00001-of-{count:05}.safetensors"
    ids = [1, 7, 40, 99]
    assert np.array_equal(logits(bpe_model, ids), logits(tmp_path / "out", ids))


def test_a_folder_that_is_not_empty_is_refused(bpe_model: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        convert_to_hf(open_source(bpe_model), tmp_path / "out")
    with pytest.raises(UsageError, match="q8_0"):
        convert_to_hf(open_source(bpe_model), tmp_path / "new", outtype="q8_0")
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"


def test_a_failure_leaves_no_folder_and_leftovers_are_removed(
    bpe_model: Path, tmp_path: Path
) -> None:
    def interrupt(done: int, total: int) -> None:
        raise LlavaError("stop")

    dead = tmp_path / ".out.999999999.partial"
    dead.mkdir()
    with pytest.raises(LlavaError, match="stop"):
        convert_to_hf(open_source(bpe_model), tmp_path / "out", progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_writes_nothing(bpe_model: Path, tmp_path: Path) -> None:
    planned = convert_to_hf(open_source(bpe_model), tmp_path / "out", dry_run=True)
    assert list(tmp_path.iterdir()) == []
    assert planned.files[0].bytes > 100_000 and planned.files[0].sha256 is None


def test_values_that_are_no_numbers_leave_no_folder(bpe_model: Path, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    source = tmp_path / "source"
    shutil.copytree(bpe_model, source)
    tensors = load_file(source / WEIGHTS)
    tensors["multi_modal_projector.linear_2.weight"][1, 2] = np.nan
    save_file(tensors, source / WEIGHTS, {"format": "pt"})
    with pytest.raises(LlavaError, match=r"linear_2\.weight holds NaN"):
        convert_to_hf(open_source(source), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
