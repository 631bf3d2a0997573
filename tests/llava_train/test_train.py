"""Whole runs of tiny random models: stage 1, stage 2, a kill in between, and what they leave."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from llava_cli.errors import UsageError
from llava_train import checkpoint
from llava_train.labels import encode
from llava_train.loop import train
from llava_train.recipe import Recipe
from llava_train.runlog import StepLog

STAGE1 = Recipe(
    stage="stage1", prompt_format="plain", train_language_model=False, batch=5, micro_batch=3,
    lr=5e-2, epochs=8.0, workers=1, prefetch=1, save_every=3, precision="float32",
)  # fmt: skip
STAGE2 = replace(
    STAGE1, stage="stage2", prompt_format="vicuna_v1", train_language_model=True, lr=3e-3,
    epochs=8.0, batch=6,
)  # fmt: skip


@pytest.fixture(scope="session")
def stage1(
    language_model: Path, vision_tower: Path, pairs: Path, pictures: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:  # fmt: skip
    """A finished stage 1."""
    output = tmp_path_factory.mktemp("stage1") / "run"
    train(
        STAGE1, model=language_model, vision_tower=vision_tower, data=[pairs], images=pictures,
        output=output,
    )  # fmt: skip
    return output


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(run / "model" / "model.safetensors"))


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_stage_1_then_stage_2_lower_the_loss_and_load_in_transformers(
    stage1: Path, talks: Path, pictures: Path, tmp_path: Path
) -> None:
    seen: list[StepLog] = []
    result = train(
        STAGE2, from_run=stage1, data=[talks], images=pictures, output=tmp_path / "run",
        on_step=seen.append,
    )  # fmt: skip
    first, second = losses(stage1), losses(result.output)
    assert first[-1] < first[0] - 0.1
    assert second[-1] < second[0] - 1
    assert len(seen) == len(second) == result.steps == result.total == 16
    assert result.loss == second[-1] and not result.interrupted

    from transformers import AutoModelForImageTextToText, AutoProcessor

    automatic: Any = AutoModelForImageTextToText
    model, report = automatic.from_pretrained(result.model, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert model.dtype == torch.float32
    processor = AutoProcessor.from_pretrained(result.model)
    from PIL import Image as PIL

    prompt = "USER: <image>\nok? ASSISTANT:"
    inputs = processor(images=PIL.new("RGB", (50, 30)), text=prompt, return_tensors="pt")
    assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == 4
    with torch.no_grad():
        assert torch.isfinite(model(**inputs).logits).all()


def test_stage_1_changes_the_connector_only(stage1: Path, language_model: Path) -> None:
    start = load_file(language_model / "model.safetensors")
    end = weights(stage1)
    for name, value in start.items():
        assert torch.equal(end[f"language_model.{name}"], value)
    names = {name for name in end if name.startswith("multi_modal_projector.")}
    assert len(names) == 4


def test_a_frozen_model_is_exported_as_it_was(
    language_model: Path, vision_tower: Path, pairs: Path, pictures: Path, tmp_path: Path
) -> None:
    """Though the run computes in bfloat16."""
    train(
        replace(STAGE1, precision="bfloat16"), model=language_model, vision_tower=vision_tower,
        data=[pairs], images=pictures, output=tmp_path / "run", max_steps=1,
    )  # fmt: skip
    start, end = load_file(language_model / "model.safetensors"), weights(tmp_path / "run")
    assert all(torch.equal(end[f"language_model.{name}"], start[name]) for name in start)


def test_the_run_says_its_prompt_format_and_recipe(stage1: Path) -> None:
    config = json.loads((stage1 / "model" / "config.json").read_text())
    assert config["llava_prompt_format"] == "plain"
    assert config["architectures"] == ["LlavaForConditionalGeneration"]
    assert "batch = 5" in (stage1 / "recipe.toml").read_text()


def run_stage2(stage1: Path, talks: Path, pictures: Path, output: Path, **more: Any) -> Any:
    recipe = replace(STAGE2, **more.pop("changes", {}))
    return train(recipe, from_run=stage1, data=[talks], images=pictures, output=output, **more)


def test_a_run_stopped_early_and_continued_is_bit_equal(
    stage1: Path, talks: Path, pictures: Path, tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run_stage2(stage1, talks, pictures, whole, max_steps=7)
    run_stage2(stage1, talks, pictures, parts, max_steps=4)
    torch.manual_seed(99)  # what others draw in between changes nothing
    np.random.seed(99)
    run_stage2(stage1, talks, pictures, parts, max_steps=7)
    assert losses(parts) == losses(whole) and len(losses(whole)) == 7
    assert same(weights(parts), weights(whole))


def test_going_back_to_a_step_gives_the_same_future(
    stage1: Path, talks: Path, pictures: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run_stage2(stage1, talks, pictures, run, max_steps=6)
    before, kept = weights(run), losses(run)
    assert checkpoint.steps(run / "checkpoints") == [3, 6]
    run_stage2(stage1, talks, pictures, run, max_steps=6, resume="3")
    assert same(weights(run), before) and losses(run) == kept
    with pytest.raises(UsageError, match="no checkpoint of step 5") as caught:
        run_stage2(stage1, talks, pictures, run, resume="5")
    assert "3, 6" in caught.value.hint


def test_never_begins_again(stage1: Path, talks: Path, pictures: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_stage2(stage1, talks, pictures, run, max_steps=3)
    first = losses(run)
    run_stage2(stage1, talks, pictures, run, max_steps=2, resume="never")
    assert losses(run) == first[:2]
    assert checkpoint.steps(run / "checkpoints") == [2]


@pytest.mark.parametrize("what", ["recipe", "data", "model"])
def test_a_run_of_something_else_is_not_continued(
    stage1: Path, talks: Path, pictures: Path, tmp_path: Path, what: str
) -> None:
    run = tmp_path / "run"
    run_stage2(stage1, talks, pictures, run, max_steps=1)
    start, data, changes = stage1, talks, {}
    if what == "recipe":
        changes = {"lr": 0.5}
    elif what == "data":
        data = tmp_path / "other.jsonl"
        data.write_text(talks.read_text().replace("what is unusual here?", "what is odd here?"))
    else:
        start = tmp_path / "start"
        start.mkdir()
        for path in (stage1 / "model").iterdir():
            (start / path.name).write_bytes(path.read_bytes())
        text = (start / "config.json").read_text()
        (start / "config.json").write_text(text.replace('"plain"', '"vicuna_v1"'))
    with pytest.raises(UsageError, match=f"was made with (an)?other {what}"):
        run_stage2(start, data, pictures, run, changes=changes)


def test_a_finished_run_is_left_as_it_is(stage1: Path, pairs: Path, pictures: Path) -> None:
    before = weights(stage1)
    checkpoints = checkpoint.steps(stage1 / "checkpoints")
    assert checkpoints == [15, 16]  # every third and the last; two are kept
    assert not list((stage1 / "checkpoints").glob(".*"))
    assert before.keys() == weights(stage1).keys()


def test_sigterm_saves_the_step_and_stops(
    stage1: Path, talks: Path, pictures: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"

    def stop(line: StepLog) -> None:
        if line.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    result = run_stage2(stage1, talks, pictures, run, on_step=stop, changes={"save_every": 0})
    assert (result.interrupted, result.steps, result.total) == (True, 4, 16)
    assert checkpoint.steps(run / "checkpoints") == [4] and not (run / "model").exists()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_checkpoint_cut_short_is_never_seen(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    (folder / ".writing-8").mkdir(parents=True)
    for step, size in ((4, 5), (6, 7)):
        (folder / f"step-{step}").mkdir()
        (folder / f"step-{step}" / "weights.safetensors").write_bytes(b"whole")
        state = {"step": step, "identity": {}, "files": {"weights.safetensors": size}}
        (folder / f"step-{step}" / "state.json").write_text(json.dumps(state))
    (folder / "step-8").mkdir()
    assert checkpoint.choose(folder, "auto") == 4


@pytest.mark.parametrize("connector", ["linear", "mlp2x_gelu"])
def test_both_connectors_go_through_both_stages(
    language_model: Path, vision_tower: Path, pairs: Path, talks: Path, pictures: Path,
    tmp_path: Path, connector: str,
) -> None:  # fmt: skip
    first, second = tmp_path / "one", tmp_path / "two"
    train(
        replace(STAGE1, connector=connector), model=language_model, vision_tower=vision_tower,
        data=[pairs], images=pictures, output=first, max_steps=2,
    )  # fmt: skip
    config = json.loads((first / "model" / "config.json").read_text())
    assert config["projector_hidden_act"] == {"linear": "linear", "mlp2x_gelu": "gelu"}[connector]
    run_stage2(first, talks, pictures, second, changes={"connector": connector}, max_steps=2)
    if connector == "linear":
        identity = weights(second)["multi_modal_projector.linear_2.weight"]
        assert torch.equal(identity, torch.eye(32))
    other = {"linear": "mlp2x_gelu", "mlp2x_gelu": "linear"}[connector]
    with pytest.raises(UsageError, match="connector"):
        run_stage2(first, talks, pictures, tmp_path / "x", changes={"connector": other})


def test_an_exported_model_computes_what_was_trained(
    stage1: Path, talks: Path, pictures: Path, tmp_path: Path
) -> None:
    """float16 on disk is the rounding of float32, and prompt ids are those of training."""
    run = tmp_path / "run"
    run_stage2(stage1, talks, pictures, run, max_steps=2, changes={"export_dtype": "float16"})
    full = tmp_path / "full"
    run_stage2(stage1, talks, pictures, full, max_steps=2)
    halves, singles = weights(run), weights(full)
    assert halves.keys() == singles.keys()
    for name, value in halves.items():
        assert value.dtype == torch.float16 and torch.equal(value, singles[name].half()), name
    assert json.loads((run / "model" / "config.json").read_text())["dtype"] == "float16"


def test_image_processor_of_the_export_prepares_as_training_does(tiny: Any, tmp_path: Path) -> None:
    from llava_cli.pixels import PixelConfig, normalise, prepare
    from llava_train.export import image_processor

    image = tiny.picture(90, 50, 3)
    for aspect in ("pad", "crop", "stretch"):
        config = PixelConfig(size=28, aspect=aspect)
        processor = image_processor(config)
        assert PixelConfig.from_preprocessor(processor.to_dict()) == config
        theirs = processor(image, return_tensors="np")["pixel_values"][0]
        assert np.array_equal(theirs, normalise(prepare(image, config), config)), aspect


def test_chat_template_of_the_export_writes_the_prompt(stage1: Path, bpe: Any) -> None:
    from jinja2 import Environment
    from PIL import Image as PIL

    from llava_cli.conversation import Conversation
    from llava_cli.images import Image
    from llava_cli.prompts import FORMATS, prompt_text, render
    from llava_train.export import chat_template

    picture = Image.from_pil(PIL.new("RGB", (4, 4)))
    talk = Conversation().add("user", picture, "Q1").add("assistant", "A1").add("user", "Q2")
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Q1"}]},
        {"role": "assistant", "content": "A1"},
        {"role": "user", "content": "Q2"},
    ]
    for name in ("vicuna_v1", "llava_v0", "chatml_direct", "v1_mmtag"):
        template = chat_template(FORMATS[name])
        assert template is not None
        text = (
            Environment()
            .from_string(template)
            .render(messages=messages, add_generation_prompt=True)
        )
        assert text == prompt_text(render(talk, FORMATS[name]))
    assert chat_template(FORMATS["plain"]) is None


def test_a_vocabulary_without_the_image_token_grows_by_whole_blocks(
    tiny: Any, vision_tower: Path, tmp_path: Path
) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    from llava_train.assemble import assemble

    tokenizer = tiny.spm_tokenizer(tmp_path / "spm")
    plain = type(tokenizer).from_pretrained(tmp_path / "spm", add_bos_token=True)
    folder = tmp_path / "lm"
    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        vocab_size=len(plain), max_position_embeddings=128,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    plain.save_pretrained(folder)
    parts = assemble(STAGE1, model=folder, vision_tower=vision_tower)
    token = parts.tokenizer.convert_tokens_to_ids("<image>")
    rows = parts.model.get_input_embeddings().weight
    assert token == len(plain) == parts.model.config.image_token_index
    assert (
        len(rows)
        == parts.model.lm_head.weight.shape[0]
        == parts.model.config.text_config.vocab_size
    )
    assert len(rows) % 64 == 0 and len(rows) > token
    torch.testing.assert_close(rows[token], rows[: len(plain)].mean(0))
    from llava_cli.conversation import Conversation
    from llava_cli.prompts import FORMATS, render

    talk = Conversation().add("user", "Q").add("assistant", "A")
    assert (
        max(encode(render(talk, FORMATS["vicuna_v1"], complete=True), parts.tokenizer)[0]) < token
    )
