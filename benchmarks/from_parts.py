"""Train a LLaVA from the bundled model's vision tower and language model, and see it learn to see.

Example: python benchmarks/from_parts.py -o run --minutes 40

The connector is made anew; vision tower and language model are those inside the bundled model. Of
these the tower has never been trained in a LLaVA, but the language model has: what the run shows is
that stage 1 and stage 2 join the parts, not that the language model learns to talk. The time
counted is that of the training commands as a person would give them (drawing the scenes, starting,
reading data, filling the feature cache and writing included), not that of scoring.

Prints the learning curve and a table with the bundled model beside; OUT/from_parts.json has both.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Run as a script, gguf.py beside this file would stand in for the package `gguf`.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch

from llava_train.assemble import Parts, assemble
from llava_train.demo.evaluate import Measure, evaluate
from llava_train.demo.mixture import Kind, mix
from llava_train.export import export
from llava_train.recipe import load
from llava_train.stepping import autocast, tower_features

BUNDLED = "llava-demo"
STAGE1_SHARE = 0.08
"""Of the time; the bundled model's own stage 1 took 3 of 94 minutes."""
RESERVE = 0.04
"""Of the time, for what was estimated too low."""
PROBE = 10
"""Steps that are timed before the length of a stage is chosen."""
LOWER_IS_BETTER = "detail: objects invented"
SEED = 71


@dataclass
class Run:
    """What was asked for, and what has been seen so far."""

    out: Path
    minutes: float
    scenes: int
    rounds: int
    points: int
    processes: int
    n: int
    n_curve: int
    settings: tuple[str, ...]
    spent: float = 0.0
    """Seconds of training, commands as a whole."""
    curve: list[dict[str, Any]] = field(default_factory=list)

    @contextmanager
    def counted(self) -> Iterator[None]:
        """What is done here is training time."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.spent += time.monotonic() - began

    def train(self, stage: str, output: str, data: str, *more: str) -> None:
        """One `llava train`, with the number of processes that was asked for."""
        launch = ["-m", "llava_cli"]
        if self.processes > 1:
            launch = ["-m", "torch.distributed.run", "--standalone",
                      "--nproc-per-node", str(self.processes), *launch]  # fmt: skip
        scenes = self.out / "scenes"
        given = ["train", stage, "--data", scenes / data, "--images", scenes,
                 "--output", self.out / output, "--recipe", f"demo-{stage}", *more]  # fmt: skip
        command = [sys.executable, *launch, *map(str, given)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    def log(self, output: str) -> list[dict[str, Any]]:
        """The steps that a run has done."""
        text = (self.out / output / "log.jsonl").read_text("utf-8")
        return [json.loads(line) for line in text.splitlines()]


def say(text: str) -> None:
    """A line of the report, at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def fresh() -> Parts:
    """The bundled model's tower and language model with a new connector."""
    return assemble(load("demo-stage2"), model=BUNDLED, vision_tower=BUNDLED)


def seconds_a_picture(parts: Parts, threads: int) -> float:
    """Of the frozen tower, one thread a process: what filling the feature cache costs."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    pixels = torch.randn(32, 3, parts.pixels.size, parts.pixels.size)
    took = []
    try:
        for _ in range(3):
            began = time.perf_counter()
            with autocast(load("demo-stage2"), torch.device("cpu")), torch.no_grad():
                tower_features(parts.model, pixels)
            took.append((time.perf_counter() - began) / len(pixels))
    finally:
        torch.set_num_threads(before)
    return min(took)


def draw(run: Run) -> None:
    """Scenes with captions and conversations, and a small part of each to time steps on."""
    from llava_train.scene_files import write_scenes

    folder = run.out / "scenes"
    write_scenes(folder, n=run.scenes, seed=SEED, workers=os.cpu_count() or 1)
    kinds: tuple[Kind, ...] = ("mixed", "short")
    mix(folder / "scenes.jsonl", folder / "mixed.jsonl", SEED, run.rounds, kinds)
    for name, count in (("stage1.json", 1280), ("mixed.jsonl", 640)):
        text = (folder / name).read_text("utf-8")
        if name.endswith(".json"):
            part = json.dumps(json.loads(text)[:count])
        else:
            part = "".join(line + "\n" for line in text.splitlines()[:count])
        (folder / f"probe-{name}").write_text(part, "utf-8")


def probe(run: Run, stage: str, data: str, *more: str) -> tuple[float, float]:
    """Mean seconds of a step, short or long, and of all the rest of a command."""
    began = time.monotonic()
    output = f"probe-{stage}"
    run.train(stage, output, f"probe-{data}", *more, "--set", f"steps={PROBE}")
    whole = time.monotonic() - began
    steps = [line["seconds"] + line["data_wait"] for line in run.log(output)]
    shutil.rmtree(run.out / output)
    return statistics.fmean(steps[2:]), whole - sum(steps)


def stage1(run: Run) -> None:
    """The connector alone, for its share of the time."""
    start = ("--model", BUNDLED, "--vision-tower", BUNDLED)
    step, _ = probe(run, "stage1", "stage1.json", *start)
    steps = max(2, int(run.minutes * 60 * STAGE1_SHARE / step))
    say(f"stage 1: {steps} steps of {step:.2f} s")
    run.train("stage1", "stage1", "stage1.json", *start, "--set", f"steps={steps}")


def stage2(run: Run, tower_s: float) -> Iterator[int]:
    """Connector and language model for the rest of the time; stops at every point of the curve."""
    start = ["--from", str(run.out / "stage1")]
    for setting in run.settings:
        start += ["--set", setting]
    with run.counted():
        step, rest = probe(run, "stage2", "mixed.jsonl", *start)
        began = time.monotonic()
        run.train("stage2", "stage2", "mixed.jsonl", *start, "--plan")  # reads all of the data
        rest += time.monotonic() - began
    left = run.minutes * 60 * (1 - RESERVE) - run.spent
    left -= run.scenes * tower_s + run.points * rest
    steps = max(2 * run.points, int(left / step))
    say(f"stage 2: {steps} steps of {step:.2f} s")
    for point in range(1, run.points + 1):
        stop = math.ceil(steps * point / run.points)
        with run.counted():
            run.train("stage2", "stage2", "mixed.jsonl", *start, "--set", f"steps={steps}",
                      "--max-steps", str(stop))  # fmt: skip
        yield stop


def as_chat(model: Path, out: Path) -> str:
    """A copy that is asked questions: stage 1's own prompt format has none."""
    shutil.copytree(model, out)
    config = json.loads((out / "config.json").read_text("utf-8"))
    config["llava_prompt_format"] = "vicuna_v1"
    (out / "config.json").write_text(json.dumps(config, indent=2), "utf-8")
    return str(out)


def score(run: Run, model: str, n: int) -> list[Measure]:
    """Answers to `n` scenes that no training draws."""
    return evaluate(model, "torch", n, workers=os.cpu_count() or 1)


def mean(measures: Sequence[Measure]) -> float:
    """Over the kinds of questions, in percent."""
    return statistics.fmean(m.percent for m in measures if m.name != LOWER_IS_BETTER)


def point(run: Run, steps: int, measures: Sequence[Measure]) -> None:
    """Another point of the learning curve."""
    found = {"minutes": run.spent / 60, "stage2_steps": steps, "mean": mean(measures)}
    run.curve.append(found)
    say(f"{found['minutes']:6.1f} minutes, stage 2 step {steps:5}: {found['mean']:5.1f} % right")


def table(columns: dict[str, list[Measure]]) -> Iterator[str]:
    """Markdown: a row a kind of question, and how much of the bundled model's share is reached."""
    yield f"| measure | {' | '.join(columns)} | of the bundled |"
    yield "|---" * (len(columns) + 2) + "|"
    last, bundled = list(columns.values())[-2:]
    for i, measure in enumerate(bundled):
        cells = " | ".join(f"{found[i].percent:.1f}" for found in columns.values())
        share = ""
        if measure.name != LOWER_IS_BETTER and measure.percent:
            share = f"{100 * last[i].percent / measure.percent:.0f} %"
        yield f"| {measure.name} | {cells} | {share} |"
    cells = " | ".join(f"{mean(found):.1f}" for found in columns.values())
    share = f"{100 * mean(last) / mean(bundled):.0f} %"
    yield f"| mean, without what is invented | {cells} | {share} |"


def main() -> None:
    """Read the options, train, print the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--out", type=Path, required=True, help="a folder that is not there")
    parser.add_argument("--minutes", type=float, default=40, help="of training; default 40")
    parser.add_argument("--scenes", type=int, default=12_000)
    parser.add_argument("--rounds", type=int, default=2, help="pairs of samples a picture")
    parser.add_argument("--points", type=int, default=5, help="of the curve within stage 2")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--n", type=int, default=500, help="scenes that the table is about")
    parser.add_argument("--n-curve", type=int, default=100, help="scenes of a point of the curve")
    parser.add_argument("--set", dest="settings", action="append", metavar="KEY=VALUE",
                        default=None, help="of stage 2's recipe; default lr=8e-4")  # fmt: skip
    given = vars(parser.parse_args())
    given["settings"] = tuple(given["settings"] or ("lr=8e-4",))
    run = Run(**given)
    run.out.mkdir(parents=True)

    parts = fresh()
    export(run.out / "fresh", parts.model, parts.tokenizer, parts.pixels, prompt_format="vicuna_v1")
    tower_s = seconds_a_picture(parts, 1 if run.processes > 1 else torch.get_num_threads())
    del parts
    columns = {"new connector": score(run, str(run.out / "fresh"), run.n)}
    say(f"before: {mean(columns['new connector']):.1f} % right")
    with run.counted():
        draw(run)
    with run.counted():
        stage1(run)
    aligned = as_chat(run.out / "stage1" / "model", run.out / "aligned")
    point(run, 0, score(run, aligned, run.n_curve))
    for steps in stage2(run, tower_s):
        last = score(run, str(run.out / "stage2"), run.n_curve)
        point(run, steps, last)
    columns["after stage 1"] = score(run, aligned, run.n)
    columns["after stage 2"] = score(run, str(run.out / "stage2"), run.n)
    columns["bundled model"] = score(run, BUNDLED, run.n)
    for line in table(columns):
        say(line)
    say(f"{run.spent / 60:.1f} minutes of training on {run.processes} processes")
    document = {
        "minutes": run.spent / 60,
        "curve": run.curve,
        "table": {name: {m.name: m.percent for m in found} for name, found in columns.items()},
    }
    (run.out / "from_parts.json").write_text(json.dumps(document, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
