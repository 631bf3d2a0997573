"""LLaVA-1.6's tiles and SigLIP towers: what is trained is what other programs load and answer."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PIL
from safetensors.torch import load_file

from llava_cli.errors import UsageError
from llava_train import tiling
from llava_train.assemble import assemble
from llava_train.dataset import Plan
from llava_train.loader import Loader
from llava_train.loading import load_data
from llava_train.loop import train
from llava_train.recipe import Recipe

STAGE1 = Recipe(
    stage="stage1", prompt_format="plain", train_language_model=False, batch=5, micro_batch=3,
    lr=2e-2, steps=4, workers=1, prefetch=1, save_every=2, precision="float32",
)  # fmt: skip
STAGE2 = replace(
    STAGE1, stage="stage2", prompt_format="vicuna_v1", train_language_model=True, lr=3e-3, batch=6
)


@pytest.fixture(scope="session", params=["clip tiles", "siglip", "siglip tiles"])
def run(
    request: pytest.FixtureRequest, language_model: Path, vision_tower: Path, siglip_tower: Path,
    pairs: Path, talks: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory,
) -> Path:  # fmt: skip
    """Both stages; tiles begin in the second, as in LLaVA-1.6."""
    output = tmp_path_factory.mktemp("run")
    tower = siglip_tower if "siglip" in request.param else vision_tower
    train(
        STAGE1, model=language_model, vision_tower=tower, data=[pairs], images=pictures,
        output=output / "one",
    )  # fmt: skip
    recipe = replace(STAGE2, aspect="anyres" if "tiles" in request.param else "pad")
    train(recipe, from_run=output / "one", data=[talks], images=pictures, output=output / "two")
    return output / "two"


def test_transformers_computes_what_was_trained(run: Path, talks: Path, pictures: Path) -> None:
    """Its own model and processor, from the exported folder, against our last forward pass."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    automatic: Any = AutoModelForImageTextToText
    model, report = automatic.from_pretrained(run / "model", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    config = json.loads((run / "model" / "config.json").read_text())
    assert config["architectures"] == [type(model).__name__]
    processor = AutoProcessor.from_pretrained(run / "model")
    recipe = replace(STAGE2, aspect="anyres" if model.config.model_type == "llava_next" else "pad")
    parts = assemble(recipe, from_run=run)
    encoded = load_data(recipe, parts, [talks], pictures)
    loader = Loader(encoded, parts.pixels, recipe)
    for row in (0, 1, 3):  # two pictures of other shapes, one sample without
        ids, _ = encoded.row(row)
        paths = [picture.path for picture in encoded.images[row]]
        text = processor.tokenizer.decode(ids[ids != encoded.image_token_id])
        mark = "<image>" * len(paths)
        shown = processor(
            images=[PIL.open(path).convert("RGB") for path in paths] or None,
            text=text.replace("USER: ", f"USER: {mark}", 1).removeprefix("<s>"),
            return_tensors="pt",
        )
        assert shown["input_ids"][0].tolist() == ids.tolist()
        with torch.no_grad():
            theirs = model(**shown).logits
            from llava_train.stepping import embedded

            rows = embedded(parts.model, loader.batch(np.array([row])))[:, : len(ids)]
            ours = parts.model.lm_head(
                parts.model.model.language_model(inputs_embeds=rows).last_hidden_state
            )
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


def test_both_engines_answer_alike(run: Path, tmp_path: Path) -> None:
    from llava_cli.engines.gguf import binding
    from llava_cli.engines.layouts.sources import open_source
    from llava_convert.check import check
    from llava_convert.conversion import convert

    binding.start()
    folder = run / "model"
    files = convert(folder, tmp_path / "out", outtypes=["f32"], mmproj_outtype="f32").files
    (compared,) = check(open_source(folder), files, threads=1).files
    assert compared.prompts == compared.same_ids == compared.same_answers > 0, compared


def test_the_end_of_a_row_is_learnt_and_resumed(
    language_model: Path, vision_tower: Path, talks: Path, pictures: Path, tmp_path: Path
) -> None:
    recipe = replace(STAGE2, aspect="anyres")
    start: dict[str, Any] = {
        "model": language_model, "vision_tower": vision_tower, "data": [talks], "images": pictures,
    }  # fmt: skip
    train(recipe, **start, output=tmp_path / "whole")
    train(recipe, **start, output=tmp_path / "parts", max_steps=2)
    train(recipe, **start, output=tmp_path / "parts")
    whole, parts = (
        load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "parts")
    )
    before = assemble(recipe, model=language_model, vision_tower=vision_tower).model
    assert not torch.equal(whole["image_newline"], before.model.image_newline)
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_positions_of_pictures_are_those_of_their_shapes(
    language_model: Path, vision_tower: Path, talks: Path, pictures: Path, tmp_path: Path
) -> None:
    recipe = replace(STAGE2, aspect="anyres", tiles="1x2, 2x1")
    parts = assemble(recipe, model=language_model, vision_tower=vision_tower)
    assert parts.model.config.image_grid_pinpoints == [[28, 56], [56, 28]]
    encoded = load_data(recipe, parts, [talks], pictures)
    assert encoded.shapes[0] == ((40, 36),) and encoded.shapes[3] == ()
    assert encoded.squares(0) == 3 and encoded.squares(3) == 0
    lengths = [len(encoded.row(i)[0]) for i in range(len(encoded))]
    assert lengths == encoded.lengths.tolist() and len(Plan(encoded, recipe).batch(0)) == 6


def test_what_tiles_cannot_do_is_refused(
    language_model: Path, vision_tower: Path, talks: Path, pairs: Path, pictures: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    recipe = replace(STAGE2, aspect="anyres")
    with pytest.raises(UsageError, match="keeps no tiles"):
        train(
            replace(recipe, feature_cache=True), model=language_model, vision_tower=vision_tower,
            data=[talks], images=pictures, output=tmp_path / "x",
        )  # fmt: skip
    with pytest.raises(UsageError, match="'2 by 2' is no grid"):
        tiling.pinpoints(replace(recipe, tiles="1x2,2 by 2"), 28)
    one = tmp_path / "one"
    train(
        STAGE1, model=language_model, vision_tower=vision_tower, data=[pairs], images=pictures,
        output=one, max_steps=1,
    )  # fmt: skip
    with pytest.raises(UsageError, match="new vector that ends a row"):
        assemble(replace(recipe, stage="lora", adapter="lora"), from_run=one)
    two = tmp_path / "two"
    train(recipe, from_run=one, data=[talks], images=pictures, output=two, max_steps=1)
    for key, value in (("tiles", "1x2,2x1"), ("aspect", "pad")):
        with pytest.raises(UsageError, match=f"the recipe says {key} = '{value}'"):
            assemble(replace(recipe, **{key: value}), from_run=two)  # type: ignore[arg-type]
    lora = replace(recipe, stage="lora", adapter="lora", lora_rank=2)
    trained = [name for name, _ in assemble(lora, from_run=two).parameters("connector")]
    assert len(trained) == 4 and not any("newline" in name for name in trained)
