"""`--plan` and `--preview-labels`: counts that are true, FLOPs that a counter confirms."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.flop_counter import FlopCounterMode

from llava_train import flops, loader, loading, plan, stepping
from llava_train.assemble import assemble
from llava_train.recipe import Recipe

RECIPE = Recipe(batch=5, micro_batch=5, epochs=2.0, precision="float32", name="mine")


@pytest.fixture
def places(language_model: Path, vision_tower: Path, talks: Path, pictures: Path) -> dict[str, Any]:
    return {
        "model": language_model,
        "vision_tower": vision_tower,
        "from_run": None,
        "data": [talks],
        "images": pictures,
    }


def test_the_plan_counts_what_is_there(places: dict[str, Any]) -> None:
    got = plan.plan(replace(RECIPE, train_language_model=False), **places, device="cpu")
    connector = 32 * 32 * 2 + 32 * 2
    assert got["modules"]["connector"] == {"parameters": connector, "trained": connector}
    assert got["modules"]["vision_tower"]["trained"] == 0
    assert got["modules"]["language_model"]["trained"] == 0
    layer = 32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 64 + 2 * 32
    assert got["modules"]["language_model"]["parameters"] == 2 * layer + 2 * 448 * 32 + 32
    assert (got["samples"], got["pictures"], got["steps"], got["cut_samples"]) == (12, 9, 6, 0)
    text = list(plan.as_text(got))
    assert any("12 samples, 9 with a picture" in line for line in text)


def test_max_steps_shortens_the_plan(places: dict[str, Any]) -> None:
    whole = plan.plan(RECIPE, **places, device="cpu")
    short = plan.plan(RECIPE, **places, device="cpu", max_steps=3)
    assert (whole["steps"], short["steps"]) == (6, 3)
    assert short["estimates"]["flops"] == pytest.approx(whole["estimates"]["flops"] / 2)


@pytest.mark.parametrize("tower", [False, True])
@pytest.mark.parametrize("connector", [False, True])
@pytest.mark.parametrize("language", [False, True])
def test_the_flops_are_those_that_are_done(
    places: dict[str, Any], tower: bool, connector: bool, language: bool
) -> None:
    if not (tower or connector or language):
        return
    recipe = replace(
        RECIPE, train_vision_tower=tower, train_connector=connector, train_language_model=language
    )
    parts = assemble(recipe, model=places["model"], vision_tower=places["vision_tower"])
    encoded = loading.load_data(recipe, parts, places["data"], places["images"])
    loads = loader.Loader(encoded, parts.pixels, recipe)
    index = int(np.argmax(encoded.lengths))
    assert encoded.images[index]
    ours = flops.sample_flops(parts, encoded, index)
    # The counter knows no fused attention of a CPU, and eager attention does both causal halves.
    for module in (parts.module("vision_tower"), parts.module("language_model")):
        module.config._attn_implementation = "eager"  # type: ignore[union-attr]
    whole = replace(
        ours, attention=2 * ours.attention, language_model=ours.language_model + ours.attention
    )
    batch = loads.batch(np.array([index]))
    with FlopCounterMode(display=False) as counter:
        stepping.answer_loss(parts.model, batch).backward()
    padding = batch.ids.shape[1] / batch.tokens
    assert 1 <= counter.get_total_flops() / whole.step(recipe) < padding**2 + 0.02


def test_the_preview_marks_answers_and_only_answers(places: dict[str, Any]) -> None:
    got = plan.preview(RECIPE, 2, **places)
    assert len(got["samples"]) == 2
    first = got["samples"][0]
    borne = "".join(token["text"] for token in first["tokens"] if token["loss"])
    assert borne.replace("Ġ", " ") == " the red circle is</s>"
    assert sum(token["loss"] for token in first["tokens"]) == first["answer_tokens"]
    assert sum(token["repeat"] for token in first["tokens"]) == first["length"]
    lines = list(plan.preview_as_text(got))
    assert "talk-0" in lines[0]
    assert sum(line.startswith("  loss ") for line in lines) == sum(
        sample["answer_tokens"] for sample in got["samples"]
    )
