"""The training loop, top to bottom: load, freeze, batches, step, log, checkpoint, export.

Not here: data (`loading.py`, `dataset.py`, `loader.py`), what one step computes (`stepping.py`),
state on disk (`checkpoint.py`), the finished folder (`export.py`).
"""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from llava_cli.errors import LlavaError
from llava_train import adapters, checkpoint, flops, parallel
from llava_train.assemble import Parts, assemble, locate
from llava_train.checkpoint import Identity, Saver
from llava_train.dataset import EncodedData, Plan
from llava_train.export import export, tensors
from llava_train.features import FeatureCache
from llava_train.loader import Loader
from llava_train.loading import Note, feature_cache, load_data
from llava_train.parallel import Group
from llava_train.recipe import MODULES, Recipe
from llava_train.runlog import Log, StepLog, provenance
from llava_train.sharding import shard
from llava_train.stepping import (
    NotFinite,
    Rounded,
    Stepper,
    answer_loss,
    build_optimizer,
    speed_up,
)  # fmt: skip
from llava_train.validation import Validation, ValidationLog


@dataclass(frozen=True)
class Result:
    """How a call of `train` ended."""

    output: Path
    steps: int
    """Steps done by the run so far."""
    total: int
    """Steps that the recipe asks for."""
    loss: float | None
    """Of the last step; None where this call did none."""
    interrupted: bool = False
    """Stopped by SIGTERM; the state is saved."""

    @property
    def model(self) -> Path:
        """The folder with the result."""
        return self.output / "model"


@dataclass(frozen=True)
class Watch:
    """Who is told what while a run goes on; all of it in the first process only."""

    note: Note = lambda text: None
    on_start: Callable[[int, int], None] = lambda done, stop: None
    """Steps done before, and the step at which this call ends."""
    on_step: Callable[[StepLog], None] = lambda line: None
    on_validation: Callable[[ValidationLog], None] = lambda line: None


def train(
    recipe: Recipe,
    *,
    model: str | Path | None = None,
    vision_tower: str | Path | None = None,
    from_run: str | Path | None = None,
    data: Sequence[str | Path],
    images: str | Path | None = None,
    output: str | Path,
    resume: str = "auto",
    max_steps: int | None = None,
    device: str | None = None,
    note: Note = lambda text: None,
    on_step: Callable[[StepLog], None] = lambda line: None,
    watch: Watch | None = None,
) -> Result:
    """Train by a recipe into a run folder.

    `max_steps` stops early and leaves the schedule as it is, so that the run can be continued;
    the recipe's own `steps` is what shortens the schedule. Started by torchrun, every process calls
    it alike. `watch` replaces `note` and `on_step`.
    """
    watch = watch or Watch(note=note, on_step=on_step)
    files = [Path(path) for path in data]
    folder = None if images is None else Path(images)
    with parallel.group(device) as group:
        if not group.first:
            watch = Watch()
        parts = assemble(recipe, model=model, vision_tower=vision_tower, from_run=from_run)
        encoded = load_data(recipe, parts, files, folder, watch.note)
        run = _prepare(recipe, parts, encoded, Path(output), group, resume, watch)
        if group.first:
            about = json.dumps(provenance(files, folder, group.size), indent=2)
            (run.place / "run.json").write_text(about + "\n", "utf-8")
        stop = run.plan.steps if max_steps is None else min(max_steps, run.plan.steps)
        result = _steps(run, stop)
        if not result.interrupted and group.first:
            _finish(run, locate(from_run if model is None else model), result)
        elif not result.interrupted and run.stepper.sharded:
            for _ in tensors(parts.model, torch.float32):  # the first process gathers them
                pass
        group.wait()
        return result


@dataclass(frozen=True)
class _Run:
    """What one call of `train` works with."""

    recipe: Recipe
    parts: Parts
    encoded: EncodedData
    plan: Plan
    place: Path
    group: Group
    weights: Mapping[str, nn.Parameter]
    stepper: Stepper
    saver: Saver
    loader: Loader
    cache: FeatureCache | None
    first: int
    """Steps done before."""
    watch: Watch
    rounded: Rounded | None

    def save(self, step: int) -> None:
        """The state after a step; processes that hold a share of it give it to the first."""
        if self.group.first or self.stepper.sharded:
            self.saver.save(step, self.weights, self.stepper.optimizer)


def _prepare(
    recipe: Recipe,
    parts: Parts,
    encoded: EncodedData,
    place: Path,
    group: Group,
    resume: str,
    watch: Watch,
) -> _Run:
    """The plan, the optimizer, and the state of an earlier call put back."""
    plan = Plan(encoded, recipe)
    split = recipe.shard and group.size > 1
    sharded = shard(parts, answer_loss, group.device) if split else None
    if sharded is None:
        parts.model.to(group.device)
    speed_up(parts, recipe, group.device)
    weights = dict(item for name in MODULES for item in parts.parameters(name))
    optimizer = build_optimizer(parts, recipe)
    counted = {"samples": len(encoded), "positions": int(encoded.lengths.sum())}
    about = {"recipe": recipe.deciding(), "data": counted}
    identity = Identity(recipe.fingerprint(), encoded.fingerprint, parts.source, about)
    states = place / "checkpoints"
    chosen = checkpoint.choose(states, resume) if group.first else 0
    first = int(group.sums([chosen])[0])
    if first:
        checkpoint.restore(states, first, weights, optimizer, identity)
        watch.note(f"continuing after step {first}")
    place.mkdir(parents=True, exist_ok=True)
    cache = feature_cache(recipe, parts, encoded, place, group, watch.note)
    if group.first:
        (place / "recipe.toml").write_text(recipe.to_toml(), "utf-8")
    rounded = None if sharded else Rounded(parts, recipe)
    saver = Saver(states, identity, recipe.keep, beside=recipe.async_save, writes=group.first)
    stepper = Stepper(parts, recipe, optimizer, plan.steps, group, sharded)
    loader = Loader(encoded, parts.pixels, recipe, cache)
    return _Run(
        recipe, parts, encoded, plan, place, group, weights, stepper, saver, loader, cache, first,
        watch, rounded,
    )  # fmt: skip


def _steps(run: _Run, stop: int) -> Result:
    """Steps until `stop`, SIGTERM, or a loss that is no number."""
    recipe, group, saver = run.recipe, run.group, run.saver
    meter = _Meter(run)
    saved, saved_at, loss = run.first, time.monotonic(), None
    run.watch.on_start(run.first, stop)
    logs = _Logs(run)
    batches = run.loader.steps(_share(run), run.first, stop)
    with _sigterm() as asked, logs, closing(batches), closing(saver):
        for step in range(run.first + 1, stop + 1):
            waiting = time.perf_counter()
            micro_batches = next(batches)
            waited = time.perf_counter() - waiting
            try:
                line = run.stepper.step(step, micro_batches)
            except NotFinite as error:
                raise _named(run, error, step, saved) from error
            loss = line.loss
            logs.step(meter.measured(line, waited))
            last = step == run.plan.steps
            if last or (recipe.val_every and step % recipe.val_every == 0):
                logs.validate(step)  # before the state is saved: a kill in between repeats both
            due = bool(recipe.save_every) and step % recipe.save_every == 0
            late = 0 < recipe.save_every_s <= time.monotonic() - saved_at and group.first
            asking, saving = group.sums([asked.is_set(), due or late or step == stop])
            stopping = asking > 0
            if saving or stopping:  # of which all processes know
                run.save(step)
                saved, saved_at = step, time.monotonic()
            if stopping:
                break
        saver.wait()
    _note_broken(run)
    done = max(run.first, stop) if loss is None else step
    return Result(run.place, done, run.plan.steps, loss, interrupted=done < stop)


def _share(run: _Run) -> Callable[[int], list[npt.NDArray[np.int64]]]:
    """This process's micro-batches of a step."""
    return lambda step: run.plan.micro_batches(step)[run.group.rank :: run.group.size]


def _named(run: _Run, error: NotFinite, step: int, saved: int) -> NotFinite:
    """The last good state saved, and the error with the batch's samples."""
    names = [run.encoded.names[i] for i in run.plan.batch(step - 1)]
    if saved < step - 1:  # the weights are still those of the step before
        run.save(step - 1)
        run.saver.wait()
    if run.group.first:
        text = json.dumps({"step": step, "samples": names}, indent=2)
        (run.place / "failed-batch.json").write_text(text + "\n", "utf-8")
    some = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return NotFinite(
        f"{error.message}; its samples: {some}",
        f"step {step - 1} is saved, the samples are in failed-batch.json; {error.hint}",
    )


def _note_broken(run: _Run) -> None:
    """Which samples were left out because their picture does not decode."""
    broken = {run.encoded.names[i]: why for i, why in sorted(run.loader.broken.items())}
    if not broken:
        return
    path = run.place / f"broken{f'-{run.group.rank}' if run.group.rank else ''}.json"
    path.write_text(json.dumps(broken, indent=2) + "\n", "utf-8")
    some = ", ".join(list(broken)[:5])
    run.watch.note(f"{len(broken)} samples left out, their picture is broken: {some}")


def _finish(run: _Run, base: Path, result: Result) -> None:
    """The model's folder; an adapter also on its own."""
    recipe, parts = run.recipe, run.parts
    if run.rounded:
        run.rounded.restore()
    try:
        if recipe.adapter != "none":
            adapters.save(run.place / "adapter", parts.model, recipe, str(base))
            adapters.merge(parts.model)
        export(
            result.model, parts.model, parts.tokenizer, parts.pixels,
            prompt_format=recipe.prompt_format, dtype=getattr(torch, recipe.export_dtype),
        )  # fmt: skip
    except OSError as error:
        raise LlavaError(
            f"{result.model} cannot be written: {error.strerror or error}",
            "make room; the same command goes on from the last checkpoint",
        ) from error
    if run.cache and result.steps == run.plan.steps:
        run.cache.remove()


class _Meter:
    """Adds to a step's line how long it waited and what share of the device it used."""

    def __init__(self, run: _Run) -> None:
        self._run = run
        cuda = run.group.device.type == "cuda"
        name = torch.cuda.get_device_name(run.group.device) if cuda else "CPU"
        peak = flops.peak(name)
        self._peak = None if peak is None else peak * run.group.size

    def measured(self, line: StepLog, waited: float) -> StepLog:
        run = self._run
        samples = map(int, run.plan.batch(line.step - 1))
        done = flops.of_samples(run.parts, run.encoded, run.recipe, samples)
        share = done / (line.seconds + waited) / self._peak if self._peak else None
        return replace(line, data_wait=waited, flops=done, mfu=share)


class _Logs:
    """The run's two logs, in the first process; nowhere in the others."""

    def __init__(self, run: _Run) -> None:
        self._run = run
        held = run.plan.held_out
        self._validation = Validation(
            run.parts, run.recipe, run.encoded, held, Loader(run.encoded, run.parts.pixels,
            replace(run.recipe, pixel_cache_mb=0), run.cache), run.group,
        )  # fmt: skip
        self._steps = self._log("log.jsonl")
        self._validations = self._log("validation.jsonl") if len(held) else None

    def _log(self, name: str) -> Log | None:
        return Log(self._run.place / name, self._run.first) if self._run.group.first else None

    def step(self, line: StepLog) -> None:
        """Write it and say it."""
        if self._steps:
            self._steps.write(line)
        self._run.watch.on_step(line)

    def validate(self, step: int) -> None:
        """Measure, write it and say it; the other processes wait at their next step."""
        if self._validations:
            line = self._validation.measure(step)
            self._validations.write(line)
            self._run.watch.on_validation(line)

    def __enter__(self) -> _Logs:
        return self

    def __exit__(self, *error: object) -> None:
        for log in (self._steps, self._validations):
            with log or nullcontext():
                pass


@contextmanager
def _sigterm() -> Iterator[threading.Event]:
    """An event that SIGTERM sets while the loop runs (in the main thread only)."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGTERM, before)
