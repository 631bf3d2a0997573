"""Recipes: what ships, what `--set` takes, what is refused, what makes two runs the same."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from llava_cli.errors import UsageError
from llava_train import recipe as recipes
from llava_train.recipe import Recipe, load, names, override, parse


def test_the_shipped_recipes_load() -> None:
    assert names() == [
        "demo-stage1", "demo-stage2", "llava-1-scienceqa", "llava-1-stage1", "llava-1-stage2",
        "llava-1.5-lora", "llava-1.5-stage1", "llava-1.5-stage2", "llava-1.5-task",
        "llava-1.5-task-lora", "llava-1.6",
    ]  # fmt: skip
    for name in names():
        assert load(name).name == name
        last = name.rsplit("-", 1)[1]
        assert load(name).stage == {"task": "stage2", "1.6": "stage2"}.get(last, last)


@pytest.mark.parametrize(
    ("name", "batch", "lr", "epochs", "connector", "prompt", "aspect", "trains_lm"),
    [
        ("llava-1-stage1", 128, 2e-3, 1.0, "linear", "llava_v0", "crop", False),
        ("llava-1-stage2", 32, 2e-5, 3.0, "linear", "llava_v0", "crop", True),
        ("llava-1-scienceqa", 32, 2e-5, 12.0, "linear", "llava_v0", "crop", True),
        ("llava-1.5-lora", 128, 2e-4, 1.0, "mlp2x_gelu", "vicuna_v1", "pad", True),
        ("llava-1.5-task", 128, 2e-5, 1.0, "mlp2x_gelu", "vicuna_v1", "pad", True),
        ("llava-1.5-task-lora", 128, 2e-4, 1.0, "mlp2x_gelu", "vicuna_v1", "pad", True),
        ("llava-1.5-stage1", 256, 1e-3, 1.0, "mlp2x_gelu", "plain", "crop", False),
        ("llava-1.5-stage2", 128, 2e-5, 1.0, "mlp2x_gelu", "vicuna_v1", "pad", True),
    ],
)
def test_the_published_numbers(
    name: str, batch: int, lr: float, epochs: float, connector: str, prompt: str, aspect: str,
    trains_lm: bool,
) -> None:  # fmt: skip
    got = load(name)
    assert (got.batch, got.lr, got.epochs, got.connector) == (batch, lr, epochs, connector)
    assert (got.prompt_format, got.aspect, got.train_language_model) == (prompt, aspect, trains_lm)
    assert (got.train_vision_tower, got.train_connector) == (False, True)
    assert (got.feature_layer, got.select, got.schedule, got.warmup) == (
        -2, "default", "cosine", 0.03
    )  # fmt: skip
    assert (got.weight_decay, got.max_length, got.clip, got.precision) == (
        0.0, 2048, 1.0, "bfloat16"
    )  # fmt: skip


@pytest.mark.parametrize("name", ["llava-1.5-lora", "llava-1.5-task-lora"])
def test_the_published_numbers_of_lora(name: str) -> None:
    got = load(name)
    assert (got.adapter, got.lora_rank, got.lora_alpha, got.lora_dropout) == (
        "lora", 128, 256.0, 0.05
    )  # fmt: skip
    assert [got.lr_of(module) for module in recipes.MODULES] == [2e-4, 2e-5, 2e-4]


def test_the_published_numbers_of_tiles() -> None:
    got = load("llava-1.6")
    assert [got.lr_of(module) for module in recipes.MODULES] == [2e-6, 1e-5, 1e-5]
    assert all(got.trains(module) for module in recipes.MODULES)
    assert (got.aspect, got.tiles, got.batch) == ("anyres", "1x2,2x1,2x2,3x1,1x3", 128)
    assert (got.max_length, got.epochs, got.feature_layer) == (4096, 1.0, -2)


def test_set_reads_each_value_as_its_fields_type() -> None:
    got = override(
        load("demo-stage2"),
        ["lr=3e-4", "batch=16", "train_vision_tower=true", "grouping = none", "epochs=2"],
    )
    assert (got.lr, got.batch, got.train_vision_tower, got.grouping) == (3e-4, 16, True, "none")
    assert got.epochs == 2.0 and type(got.epochs) is float


@pytest.mark.parametrize(
    ("setting", "message", "hint"),
    [
        ("bach=16", "no field 'bach'", "batch"),
        ("batch", "no '='", "KEY=VALUE"),
        ("batch=many", "not a whole number", "batch"),
        ("batch=1.5", "not a whole number", "batch"),
        ("lr=fast", "not a number", "lr"),
        ("train_connector=yes", "not true or false", "train_connector"),
        ("prompt_format=vicuna", "not known", "vicuna_v1"),
        ("connector=mlp3x_gelu", "not known", "mlp2x_gelu"),
        ("batch=0", "at least 1", "batch"),
        ("lr=-1", "below zero", "0 or more"),
        ("lr=nan", "not a finite number", "lr"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(setting: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        override(load("demo-stage2"), [setting])
    assert hint in caught.value.hint


def test_a_recipe_that_trains_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="trains nothing"):
        override(load("demo-stage1"), ["train_connector=false"])


def test_a_recipe_file_is_read_and_named_by_its_stem(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('batch = 8\nlr = 1e-3\nepochs = 1\nprompt_format = "plain"\n')
    got = load(path)
    assert (got.name, got.batch, got.epochs, got.prompt_format) == ("mine", 8, 1.0, "plain")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batch = ", "not TOML"),
        ("batch = '8'", "not int"),
        ("train_connector = 1", "not bool"),
        ("learning_rate = 1.0", "no field"),
    ],
)
def test_a_recipe_file_that_makes_no_sense_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse(text, "mine.toml")


def test_an_unknown_recipe_names_those_that_are_near() -> None:
    with pytest.raises(UsageError, match="no recipe") as caught:
        load("llava-1.5-stag2")
    assert "llava-1.5-stage2" in caught.value.hint


def test_a_written_recipe_reads_back_the_same() -> None:
    for name in names():
        assert parse(load(name).to_toml(), "written") == load(name)


def test_the_fingerprint_follows_what_decides_the_result() -> None:
    base = load("demo-stage2")
    same = replace(base, workers=7, save_every=3, keep=9, export_dtype="float16", name="x")
    assert same.fingerprint() == base.fingerprint()
    for field in fields(Recipe):
        value = getattr(base, field.name)
        if field.name in recipes.FREE or isinstance(value, str):
            continue
        other: Any = not value if isinstance(value, bool) else value + 1
        changed = replace(base, **{field.name: other})
        assert changed.fingerprint() != base.fingerprint(), field.name


def test_runs_of_the_first_release_go_on() -> None:
    """Pinned: a field that came later leaves the fingerprint as it was, at its default."""
    assert load("demo-stage1").fingerprint().startswith("95a08404")
    then = override(load("demo-stage2"), ["epochs=1.35"])
    assert then.fingerprint().startswith("7a381341")


def test_a_modules_learning_rate_is_the_recipes_unless_it_has_its_own() -> None:
    got = override(load("demo-stage2"), ["lr=1e-3", "lr_vision_tower=1e-5"])
    assert [got.lr_of(name) for name in recipes.MODULES] == [1e-5, 1e-3, 1e-3]
