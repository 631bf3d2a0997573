"""What goes wrong while training: one clear line each, and nothing that was learnt is lost."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llava_cli.errors import DataError, LlavaError, UsageError
from llava_train import checkpoint, stepping
from llava_train.loop import Watch, train
from llava_train.recipe import Recipe

RECIPE = Recipe(
    batch=4, micro_batch=2, lr=3e-3, steps=6, workers=1, prefetch=1, save_every=3,
    grouping="none", precision="float32",
)  # fmt: skip


@pytest.fixture
def places(language_model: Path, vision_tower: Path, talks: Path, pictures: Path) -> dict[str, Any]:
    return {
        "model": language_model, "vision_tower": vision_tower, "data": [talks], "images": pictures
    }  # fmt: skip


def test_a_loss_that_is_no_number_keeps_the_step_before_and_names_the_batch(
    places: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = stepping.answer_loss
    calls = 0

    def broken(model: Any, batch: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return loss(model, batch) * (float("nan") if calls == 9 else 1.0)  # in step 5

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(stepping, "answer_loss", broken)
        with pytest.raises(LlavaError, match="step 5: the loss is nan.*its samples: talk-") as got:
            train(RECIPE, **places, output=run)
    assert "step 4 is saved" in got.value.hint
    assert checkpoint.steps(run / "checkpoints") == [3, 4]
    assert len(json.loads((run / "failed-batch.json").read_text())["samples"]) == 4
    train(RECIPE, **places, output=run)  # without the fault it goes on
    train(RECIPE, **places, output=tmp_path / "whole")
    models = [(path / "model" / "model.safetensors").read_bytes()
              for path in (run, tmp_path / "whole")]  # fmt: skip
    assert models[0] == models[1]


@contextmanager
def small_files(limit: int) -> Iterator[None]:
    """No file may grow beyond `limit` bytes: what a full disk does, for this process alone."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("beside", [True, False])
def test_a_full_disk_is_one_line_and_keeps_what_was_saved(
    places: dict[str, Any], tmp_path: Path, beside: bool
) -> None:
    run = tmp_path / "run"
    recipe = replace(RECIPE, async_save=beside)
    train(recipe, **places, output=run, max_steps=2)
    with small_files(20_000), pytest.raises(LlavaError, match="cannot be written") as caught:
        train(recipe, **places, output=run)
    assert "make room" in caught.value.hint
    assert checkpoint.steps(run / "checkpoints") == [2]
    assert not list((run / "checkpoints").glob(".*"))
    result = train(recipe, **places, output=run)
    assert (result.steps, result.interrupted) == (6, False)


def test_pictures_that_do_not_decode_are_left_out_up_to_a_limit_and_named(
    places: dict[str, Any], tmp_path: Path, pictures: Path
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for path in pictures.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    whole = (folder / "2.png").read_bytes()
    (folder / "2.png").write_bytes(whole[: len(whole) // 2])
    places["images"] = folder
    with pytest.raises(DataError, match=r"Sample talk-\d.*2\.png"):
        train(RECIPE, **places, output=tmp_path / "strict")
    notes: list[str] = []
    watch = Watch(note=notes.append)
    train(replace(RECIPE, broken_limit=2), **places, output=tmp_path / "run", watch=watch)
    broken = json.loads((tmp_path / "run" / "broken.json").read_text())
    assert sorted(name.split()[0] for name in broken) == ["talk-2", "talk-8"]
    assert any("2 samples left out" in note for note in notes)


def test_what_changed_is_said_when_a_run_is_not_continued(
    places: dict[str, Any], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    train(RECIPE, **places, output=run, max_steps=1)
    with pytest.raises(UsageError, match=r"another recipe \(lr: 0\.5 now, 0\.003 then\)"):
        train(replace(RECIPE, lr=0.5), **places, output=run)
    text = places["data"][0].read_text().splitlines()
    fewer = tmp_path / "fewer.jsonl"
    fewer.write_text("\n".join(text[:-1]))
    with pytest.raises(UsageError, match=r"other data \(.*samples: 11 now, 12 then"):
        train(RECIPE, **(places | {"data": [fewer]}), output=run)


def test_a_checkpoint_beside_the_steps_is_the_same_as_one_in_between(
    places: dict[str, Any], tmp_path: Path
) -> None:
    for beside in (True, False):
        train(replace(RECIPE, async_save=beside), **places, output=tmp_path / str(beside))
    one, two = (
        tmp_path / str(beside) / "checkpoints" / "step-3" / "weights.safetensors"
        for beside in (True, False)
    )
    assert one.read_bytes() == two.read_bytes()
    assert checkpoint.steps(one.parents[1]) == [3, 6]
