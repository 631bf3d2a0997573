"""The steps from nothing to the bundled model, each done once; a killed run goes on where it was.

DIR/scenes    pictures and LLaVA's training files (`llava data scenes`)
DIR/language  tokenizer and language model, from text alone
DIR/tower     vision tower, from dense labels
DIR/stage1    `llava train stage1`: the connector alone
DIR/stage2    `llava train stage2`: connector and language model
DIR/final     llava-hf in float16, GGUF text and mmproj: what the package carries
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llava_train.demo.language import LanguageSettings, train_language_model
from llava_train.demo.mixture import mix
from llava_train.demo.tower import TowerSettings, train_tower
from llava_train.recipe import load, override
from llava_train.scene_files import write_scenes

Note = Callable[[str], None]


@dataclass(frozen=True)
class BuildSettings:
    """The numbers of the whole; those of its training stages are the recipes demo-stage1 and -2."""

    scenes: int = 36_000
    stage1_samples: int = 8_000
    rounds: int = 5
    """Long samples a picture in stage 2, and as many short ones, each with other questions."""
    seed: int = 13
    tower: TowerSettings = TowerSettings()
    language: LanguageSettings = LanguageSettings()
    set_stage1: tuple[str, ...] = ()
    set_stage2: tuple[str, ...] = ()


def build(out: Path, settings: BuildSettings, workers: int, note: Note) -> None:
    """Run every step that is not done."""
    steps: tuple[tuple[str, Callable[[], None]], ...] = (
        ("tower", lambda: train_tower(out / "tower", settings.tower, workers)),
        ("language", lambda: train_language_model(out / "language", settings.language)),
        ("scenes", lambda: _scenes(out, settings, workers)),
        ("stage1", lambda: _stage1(out, settings, note)),
        ("stage2", lambda: _stage2(out, settings, note)),
        ("final", lambda: _final(out)),
    )
    for name, run in steps:
        done = out / f"{name}.done"
        if done.exists():
            continue
        (out / name).mkdir(parents=True, exist_ok=True)
        note(f"{name} ...")
        began = time.monotonic()
        run()
        minutes = (time.monotonic() - began) / 60
        done.write_text(f"{minutes:.1f} minutes\n", "utf-8")
        note(f"{name}: {minutes:.1f} minutes")


def _scenes(out: Path, settings: BuildSettings, workers: int) -> None:
    folder = out / "scenes"
    write_scenes(folder, n=settings.scenes, seed=settings.seed, workers=workers)
    mix(folder / "scenes.jsonl", folder / "mixed.jsonl", settings.seed, settings.rounds)


def _stage1(out: Path, settings: BuildSettings, note: Note) -> None:
    import json

    from llava_train.loop import train

    folder = out / "scenes"
    pairs = json.loads((folder / "stage1.json").read_text("utf-8"))[: settings.stage1_samples]
    (folder / "stage1-part.json").write_text(json.dumps(pairs), "utf-8")
    train(
        override(load("demo-stage1"), settings.set_stage1),
        model=out / "language" / "model",
        vision_tower=out / "tower" / "model",
        data=[folder / "stage1-part.json"],
        images=folder,
        output=out / "stage1",
        note=note,
    )


def _stage2(out: Path, settings: BuildSettings, note: Note) -> None:
    from llava_train.loop import train

    folder = out / "scenes"
    train(
        override(load("demo-stage2"), settings.set_stage2),
        from_run=out / "stage1",
        data=[folder / "mixed.jsonl"],
        images=folder,
        output=out / "stage2",
        note=note,
    )


def _final(out: Path) -> None:
    """Export in float16 and convert; the folder is replaced as a whole."""
    final = out / "final"
    shutil.rmtree(final, ignore_errors=True)
    shutil.copytree(out / "stage2" / "model", final / "model")
    # By the command: training and conversion know nothing of each other.
    command = [sys.executable, "-m", "llava_cli", "convert", str(final / "model"), "-o", str(final)]
    types = ["--outtype", "q8_0", "--mmproj-outtype", "q8_0", "--no-card"]
    subprocess.run([*command, *types, "--name", "llava-demo"], check=True)
