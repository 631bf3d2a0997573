"""The steps from nothing to the bundled model, each done once; a killed run goes on where it was.

DIR/scenes    pictures and LLaVA's training files (`llava data scenes`)
DIR/language  tokenizer and language model, from text alone
DIR/tower     vision tower, from dense labels
DIR/stage1    `llava train stage1`: the connector alone
DIR/stage2    `llava train stage2`: connector and language model
DIR/stage2b   the same on questions that have to be searched for, learnt last
DIR/final     llava-hf in float16, GGUF text and mmproj: what the package carries
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.multiprocessing.spawn import spawn

from llava_train import parallel
from llava_train.demo.language import LanguageSettings, train_language_model
from llava_train.demo.mixture import mix
from llava_train.demo.tower import TowerSettings, draw, train_tower
from llava_train.recipe import load, override
from llava_train.scene_files import write_scenes

Note = Callable[[str], None]


@dataclass(frozen=True)
class BuildSettings:
    """The numbers of the whole; those of its training stages are the recipes demo-stage1 and -2."""

    scenes: int = 36_000
    stage1_samples: int = 8_000
    rounds: int = 4
    """Long samples a picture in stage 2, and as many short ones, each with other questions."""
    searches: int = 3
    """Samples a picture in stage 2b that search through it, and as many about the odd one first."""
    seed: int = 13
    tower: TowerSettings = TowerSettings()
    language: LanguageSettings = LanguageSettings()
    set_stage1: tuple[str, ...] = ()
    set_stage2: tuple[str, ...] = ()
    set_stage2b: tuple[str, ...] = ("lr=1.2e-3",)


def build(out: Path, settings: BuildSettings, workers: int, note: Note) -> None:
    """Run every step that is not done; `workers` processes draw and train.

    `note` is told of the steps; what a training says goes to stderr.
    """
    steps: tuple[tuple[str, Callable[[], None]], ...] = (
        ("tower", lambda: _tower(out, settings, workers)),
        ("language", lambda: train_language_model(out / "language", settings.language)),
        ("scenes", lambda: _scenes(out, settings, workers)),
        ("stage1", lambda: _together(workers, _stage1, out, settings)),
        ("stage2", lambda: _together(workers, _stage2, out, settings)),
        ("stage2b", lambda: _stage2b(out, settings, workers)),
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


def _together(processes: int, work: Callable[..., None], *given: object) -> None:
    """Call `work` in several processes as torchrun would start them, one thread each.

    On few cores that is half as quick again as one process with several threads.
    """
    if processes == 1:
        work(*given)
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn(_ranked, (processes, port, work, given), processes)


def _ranked(
    rank: int, processes: int, port: int, work: Callable[..., None], given: tuple[object, ...]
) -> None:
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": processes}
    ours = place | {"RANK": rank, "LOCAL_RANK": rank}
    os.environ.update({name: str(value) for name, value in ours.items()})
    torch.set_num_threads(1)
    work(*given)
    parallel.leave()


def _tower(out: Path, settings: BuildSettings, workers: int) -> None:
    draw(out / "tower" / "data", settings.tower, workers)
    _together(workers, train_tower, out / "tower", settings.tower)


def _scenes(out: Path, settings: BuildSettings, workers: int) -> None:
    folder = out / "scenes"
    write_scenes(folder, n=settings.scenes, seed=settings.seed, workers=workers)
    mixed = folder / "mixed.jsonl"
    mix(folder / "scenes.jsonl", mixed, settings.seed, settings.rounds, ("mixed", "short"))


def _say(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stderr.flush()


def _stage1(out: Path, settings: BuildSettings) -> None:
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
        note=_say,
    )


def _stage2(out: Path, settings: BuildSettings) -> None:
    _converse(out, "stage1", "stage2", "mixed", settings.set_stage2)


def _stage2b(out: Path, settings: BuildSettings, workers: int) -> None:
    folder = out / "scenes"
    asked = folder / "searches.jsonl"
    seed = settings.seed + 1  # other questions than before
    mix(folder / "scenes.jsonl", asked, seed, settings.searches, ("short", "search"))
    _together(workers, _converse, out, "stage2", "stage2b", "searches", settings.set_stage2b)


def _converse(out: Path, before: str, name: str, samples: str, changes: tuple[str, ...]) -> None:
    from llava_train.loop import train

    folder = out / "scenes"
    train(
        override(load("demo-stage2"), changes),
        from_run=out / before,
        data=[folder / f"{samples}.jsonl"],
        images=folder,
        output=out / name,
        note=_say,
    )


def _final(out: Path) -> None:
    """Export in float16 and convert; the folder is replaced as a whole."""
    final = out / "final"
    shutil.rmtree(final, ignore_errors=True)
    shutil.copytree(out / "stage2b" / "model", final / "model")
    # By the command: training and conversion know nothing of each other.
    command = [sys.executable, "-m", "llava_cli", "convert", str(final / "model"), "-o", str(final)]
    types = ["--outtype", "q8_0", "--mmproj-outtype", "q8_0", "--no-card"]
    subprocess.run([*command, *types, "--name", "llava-demo"], check=True)
