"""What `llava doctor --tune` found is used for this machine and such a model, and nothing else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("llama_cpp")

from llava_cli import engines, models
from llava_cli.cli.models import tuned
from llava_cli.engines.gguf.tune import Trial
from llava_cli.engines.tuning import FILE, Best, Tuning, remember, remembered

BEST = Best(threads=3, ubatch=256, repack=True, flash_attention=False)


def test_trials_are_measured_and_the_quickest_is_given() -> None:
    seen: list[Trial] = []
    found = engines.tune(models.resolve(None), report=seen.append)
    assert len(seen) >= 4 and len({trial.best for trial in seen}) == len(seen)
    assert found.question_s == min(trial.question_s for trial in seen)
    assert found.prefill > 0 and found.decode > 0


def test_what_was_found_is_remembered_for_such_a_model_only(tmp_path: Path) -> None:
    files = models.resolve(None)
    assert remembered(tmp_path, files) is None
    remember(tmp_path, files, BEST)
    assert remembered(tmp_path, files) == BEST
    assert remembered(tmp_path, replace(files, config={"general.file_type": 99})) is None


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"KEY": 1}', '{"KEY": {"threads": "many"}}', '{"KEY": {}}']
)
def test_a_file_that_makes_no_sense_is_no_tuning(tmp_path: Path, text: str) -> None:
    files = models.resolve(None)
    remember(tmp_path, files, BEST)
    (key,) = json.loads((tmp_path / FILE).read_text())
    (tmp_path / FILE).write_text(text.replace("KEY", key))
    assert remembered(tmp_path, files) is None


def test_a_persons_own_choice_wins() -> None:
    assert BEST.fill(Tuning()) == Tuning(ubatch=256, repack=True)
    assert BEST.fill(Tuning(ubatch=64, repack=False)) == Tuning(ubatch=64, repack=False)


def test_it_reaches_the_engine(hermetic: Path) -> None:
    from llava_cli.cli.models import ModelChoice

    files = models.resolve(None)
    choice = ModelChoice(None, None, "auto", "auto", None, None)
    assert tuned(choice, files) == choice
    remember(hermetic, files, BEST)
    found = tuned(choice, files)
    assert (found.threads, found.flash_attention) == (3, False)
    assert found.tuning == Tuning(ubatch=256, repack=True)
    assert tuned(replace(choice, threads=1, kv_type="q8_0"), files).flash_attention is None
