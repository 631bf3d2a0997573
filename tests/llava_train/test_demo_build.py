"""`python -m llava_train.demo`: every step from nothing to a model that answers, at toy size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from llava_cli import engines, models
from llava_cli.conversation import Conversation
from llava_cli.engines.base import Sampling
from llava_cli.images import Image
from llava_train.demo import tower
from llava_train.demo.build import BuildSettings, build
from llava_train.demo.language import LanguageSettings
from llava_train.parallel import Group
from llava_train.scenes import COLORS, SHAPES, sample_scene

FEW_STEPS = ("batch=4", "micro_batch=2", "steps=2")
TOY = BuildSettings(
    scenes=8,
    stage1_samples=8,
    rounds=1,
    searches=1,
    tower=tower.TowerSettings(
        scenes=32, steps=4, batch_size=16, hidden=32, layers=3, heads=2, ffn=64
    ),
    language=LanguageSettings(
        vocabulary=640, tokenizer_scenes=40, steps=2, batch_size=4, micro_batch=2,
        hidden=32, layers=1, heads=2, ffn=64,
    ),
    set_stage1=FEW_STEPS,
    set_stage2=FEW_STEPS,
    set_stage2b=FEW_STEPS,
)  # fmt: skip


@pytest.mark.slow
def test_a_build_goes_on_where_it_was_stopped_and_ends_with_a_pair_that_answers(
    tmp_path: Path,
) -> None:
    said: list[str] = []

    def stop_at_language(text: str) -> None:
        said.append(text)
        if text == "language ...":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, TOY, 1, stop_at_language)
    first = (tmp_path / "tower" / "model" / "model.safetensors").stat().st_mtime_ns

    build(tmp_path, TOY, 2, said.append)

    assert said.count("tower ...") == 1
    assert (tmp_path / "tower" / "model" / "model.safetensors").stat().st_mtime_ns == first
    final = tmp_path / "final"
    files = models.resolve(
        str(final / "llava-demo-Q8_0.gguf"), mmproj=str(final / "mmproj-llava-demo-Q8_0.gguf")
    )
    engine = engines.load(files)
    _, picture = sample_scene(5, 0)
    asked = Conversation().add("user", Image.from_pil(picture), "what is unusual here?")
    assert len(list(engine.generate(asked, Sampling(max_tokens=3)))) >= 1
    engine.close()


def test_a_patch_is_labelled_with_the_object_that_covers_it() -> None:
    scene, picture = sample_scene(5, 3)
    _, scale, left, top = tower.to_square(picture)
    labels = tower.patch_labels(scene, scale, left, top)
    names = list(tower.PATCH_HEADS)
    for number, shown in enumerate(scene.objects):
        x = (shown.box[0] + shown.box[2]) / 2 * scene.width * scale + left
        y = (shown.box[1] + shown.box[3]) / 2 * scene.height * scale + top
        patch = int(y // tower.PATCH_PX) * tower.GRID + int(x // tower.PATCH_PX)
        found = dict(zip(names, labels[patch].tolist(), strict=True))
        assert found["shape"] == 1 + SHAPES.index(shown.shape)
        assert found["color"] == 1 + list(COLORS).index(shown.color)
        assert (found["cell"], found["centre"]) == (1 + shown.cell, 1)
        assert found["odd"] == (number == scene.odd)


def test_a_tower_goes_on_with_the_batches_that_a_kill_left_and_processes_share_each(
    tmp_path: Path,
) -> None:
    tower.draw(tmp_path, TOY.tower, 1)
    alone = list(tower.batches(tmp_path, TOY.tower, 0, 6, Group()))
    resumed = list(tower.batches(tmp_path, TOY.tower, 4, 6, Group()))
    for whole, again in zip(alone[4:], resumed, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))
    shares = [list(tower.batches(tmp_path, TOY.tower, 0, 1, Group(rank, 2)))[0] for rank in (0, 1)]
    counts = torch.cat([pictures for _, _, pictures in shares])
    assert sorted(counts.tolist()) == sorted(alone[0][2].tolist())


def test_mirroring_labels_twice_gives_them_back_and_once_swaps_left_and_right() -> None:
    scene, picture = sample_scene(5, 4)
    _, scale, left, top = tower.to_square(picture)
    labels = torch.from_numpy(tower.patch_labels(scene, scale, left, top))[None]
    mirrored = tower.mirror_labels(labels)
    assert torch.equal(tower.mirror_labels(mirrored), labels)
    cells = {1 + shown.cell for shown in scene.objects}
    swapped = {1 + 3 * ((c - 1) // 3) + 2 - (c - 1) % 3 for c in cells}
    assert set(np.unique(mirrored[0, :, 3]).tolist()) - {0} == swapped


def test_a_small_object_weighs_as_much_as_a_large_one_within_bounds() -> None:
    cells = torch.tensor([[0, 1, 1, 1, 2, 2, 2, 2, 2, 2, 3, 3, *[4] * 24]])
    weights = tower.object_weights(cells)[0]
    total = [float(weights[cells[0] == cell].sum()) for cell in (1, 2, 3, 4)]
    assert total == [6.0, 6.0, 6.0, 12.0]
    assert float(weights[0]) == 6.0
