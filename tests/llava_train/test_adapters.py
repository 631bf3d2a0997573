"""LoRA, DoRA, QLoRA: what trains, what is saved, and that the merged model computes the same."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from llava_cli.errors import UsageError
from llava_train import adapters, stepping
from llava_train.assemble import Parts, assemble
from llava_train.loader import Loader
from llava_train.loading import load_data
from llava_train.loop import train
from llava_train.recipe import Recipe

ALIGN = Recipe(
    stage="stage1", prompt_format="plain", train_language_model=False, batch=5, micro_batch=3,
    lr=5e-2, steps=1, workers=1, prefetch=1, save_every=2, precision="float32",
)  # fmt: skip
STAGE2 = replace(
    ALIGN, stage="stage2", prompt_format="vicuna_v1", train_language_model=True, lr=1e-2, batch=6
)
LORA = replace(
    ALIGN, stage="lora", prompt_format="vicuna_v1", train_language_model=True, adapter="lora",
    lora_rank=4, lora_alpha=8.0, lora_dropout=0.1, lr=1e-2, steps=5, batch=6,
)  # fmt: skip


@pytest.fixture(scope="module")
def align(
    language_model: Path, vision_tower: Path, pairs: Path, pictures: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:  # fmt: skip
    output = tmp_path_factory.mktemp("align") / "run"
    train(
        ALIGN, model=language_model, vision_tower=vision_tower, data=[pairs], images=pictures,
        output=output,
    )  # fmt: skip
    return output


def loader_of(recipe: Recipe, parts: Parts, data: Path, pictures: Path) -> Loader:
    return Loader(load_data(recipe, parts, [data], pictures), parts.pixels, recipe)


def linears(parts: Parts) -> set[str]:
    """Names of the language model's linear layers."""
    named = parts.model.model.language_model.named_modules()
    return {name for name, layer in named if isinstance(layer, torch.nn.Linear)}


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_only_low_rank_weights_and_the_connector_train(align: Path, kind: str) -> None:
    plain = assemble(replace(LORA, adapter="none", stage="stage2"), from_run=align)
    parts = assemble(replace(LORA, adapter=kind), from_run=align)
    names = [name for name, _ in parts.parameters("language_model")]
    per_layer = 2 if kind == "lora" else 3
    assert len(names) == per_layer * len(linears(plain)) == per_layer * 14
    assert all(".lora_" in name for name in names)
    assert len(parts.parameters("connector")) == 4 and not parts.parameters("vision_tower")
    both = assemble(replace(LORA, adapter=kind, train_vision_tower=True), from_run=align)
    assert both.parameters("vision_tower") and both.parameters("language_model")


def test_a_fresh_adapter_changes_nothing_and_merges_away(align: Path) -> None:
    plain = assemble(replace(LORA, adapter="none", stage="stage2"), from_run=align).model.eval()
    parts = assemble(LORA, from_run=align)
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        want = plain(input_ids=ids).logits
        assert torch.equal(parts.model.eval()(input_ids=ids).logits, want)
        for name, parameter in parts.parameters("language_model"):
            if "lora_B" in name:
                parameter.normal_()
        low_rank = parts.model(input_ids=ids).logits
        adapters.merge(parts.model)
        merged = parts.model(input_ids=ids).logits
    assert (low_rank - want).abs().max() > 0.1
    torch.testing.assert_close(merged, low_rank, atol=1e-4, rtol=1e-4)
    assert parts.model.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft's call
def test_the_adapter_alone_is_peft_s_and_equals_the_merged_model(
    align: Path, talks: Path, pictures: Path, tmp_path: Path, kind: str
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    recipe = replace(LORA, adapter=kind)
    run = train(recipe, from_run=align, data=[talks], images=pictures, output=tmp_path / "run")
    automatic: Any = AutoModelForImageTextToText
    merged = automatic.from_pretrained(run.model).eval()
    config = json.loads((run.output / "adapter" / "adapter_config.json").read_text())
    base = automatic.from_pretrained(config["base_model_name_or_path"])
    own = PeftModel.from_pretrained(base, run.output / "adapter").eval()
    ids = torch.arange(5, 25)[None]
    image = merged.config.image_token_index
    ids[0, 3:7] = image
    pixels = torch.randn(1, 3, 28, 28)
    with torch.no_grad():
        one = merged(input_ids=ids, pixel_values=pixels).logits
        two = own(input_ids=ids, pixel_values=pixels).logits
    torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-4)
    tower = "vision_tower.vision_model.embeddings.class_embedding"
    before = load_file(align / "model" / "model.safetensors")[tower]
    assert torch.equal(load_file(run.model / "model.safetensors")[tower], before)


def test_a_lora_run_with_dropout_continues_bit_equal(
    align: Path, talks: Path, pictures: Path, tmp_path: Path
) -> None:
    models = []
    for name, stops in (("whole", [5]), ("parts", [2, 5])):
        for stop in stops:
            torch.manual_seed(stop)  # what others drew before changes nothing
            run = train(
                LORA, from_run=align, data=[talks], images=pictures, output=tmp_path / name,
                max_steps=stop,
            )  # fmt: skip
        models.append(load_file(run.model / "model.safetensors"))
    assert all(torch.equal(value, models[1][name]) for name, value in models[0].items())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA GPU")
def test_qlora_without_a_gpu_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs a CUDA GPU") as caught:
        assemble(replace(LORA, adapter="qlora"), from_run=tmp_path / "not there")
    assert "adapter=lora" in caught.value.hint


def test_qlora_trains_beside_4_bit_weights_and_merges_what_they_stand_for(
    align: Path, talks: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bitsandbytes computes on a CPU, too: slowly, but the same."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    monkeypatch.setattr(adapters, "check", lambda recipe: None)
    recipe = replace(LORA, adapter="qlora", lora_dropout=0.0, precision="bfloat16", steps=12)
    parts = assemble(recipe, from_run=align)
    four = [
        layer
        for layer in parts.model.model.language_model.modules()
        if isinstance(layer, bitsandbytes.nn.Linear4bit)
    ]
    assert len(four) >= 14
    run = train(recipe, from_run=align, data=[talks], images=pictures, output=tmp_path / "run")
    losses = [
        json.loads(x)["loss"] for x in (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    ]
    assert losses[-1] < losses[0] - 0.1
    start, end = (load_file(place / "model" / "model.safetensors") for place in (align, run.output))
    name = "language_model.model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(end[name], start[name]) and end[name].dtype == torch.float32
    again = assemble(replace(STAGE2, precision="bfloat16"), from_run=run.output)
    batch = loader_of(STAGE2, again, talks, pictures).batch(np.arange(6))
    with torch.no_grad(), stepping.autocast(recipe, torch.device("cpu")):
        loss = float(stepping.answer_loss(again.model, batch)) / batch.answer_tokens
    assert loss < losses[0] - 0.1  # the export is what was trained, not what it was before


def test_what_an_adapter_cannot_be_is_refused() -> None:
    from llava_train.recipe import load, override

    with pytest.raises(UsageError, match="stage lora without an adapter"):
        override(load("llava-1.5-lora"), ["adapter=none"])
    with pytest.raises(UsageError, match="not trained"):
        override(load("llava-1.5-lora"), ["train_language_model=false"])
