"""The training loop, top to bottom: load, freeze, batches, loss, step, log, checkpoint, export.

One optimizer step sees one global batch; its loss is the sum over all answer tokens of that batch
divided by their number, however it is cut into micro-batches. Not here: data (`dataset.py`),
labels (`labels.py`), state on disk (`checkpoint.py`), the finished folder (`export.py`).
"""

from __future__ import annotations

import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from llava_cli.errors import LlavaError, OutOfMemory, UsageError
from llava_cli.pixels import normalise
from llava_cli.prompts import FORMATS
from llava_train import attention, checkpoint, dataset
from llava_train.assemble import Parts, assemble
from llava_train.checkpoint import Identity
from llava_train.dataset import Batch, EncodedData, Loader, Plan, decoded
from llava_train.export import export
from llava_train.features import FeatureCache
from llava_train.labels import IGNORE_INDEX, Encoder
from llava_train.recipe import MODULES, Recipe

Note = Callable[[str], None]


@dataclass(frozen=True)
class StepLog:
    """One line of RUN/log.jsonl."""

    step: int
    """Steps done, this one included."""
    loss: float
    """Mean over the batch's answer tokens, before the step."""
    lr: float
    tokens: int
    answer_tokens: int
    grad_norm: float
    """Before it is clipped."""
    seconds: float


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
) -> Result:
    """Train by a recipe into a run folder.

    `max_steps` stops early and leaves the schedule as it is, so that the run can be continued;
    the recipe's own `steps` is what shortens the schedule.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("training in several processes is not supported", "run one, not torchrun")
    place = Path(output)
    parts = assemble(recipe, model=model, vision_tower=vision_tower, from_run=from_run)
    encoded = load_data(recipe, parts, data, images, note)
    plan = Plan(encoded, recipe)
    stop = plan.steps if max_steps is None else min(max_steps, plan.steps)
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    parts.model.to(where)
    speed_up(parts, recipe, where)
    weights = dict(item for name in MODULES for item in parts.parameters(name))
    optimizer = build_optimizer(parts, recipe)
    identity = Identity(recipe.fingerprint(), encoded.fingerprint, parts.source)
    states = place / "checkpoints"
    first = checkpoint.choose(states, resume)
    if first:
        checkpoint.restore(states, first, weights, optimizer, identity)
        note(f"continuing after step {first}")
    cache = feature_cache(recipe, parts, encoded, place, where, note)
    place.mkdir(parents=True, exist_ok=True)
    (place / "recipe.toml").write_text(recipe.to_toml(), "utf-8")
    log = Log(place / "log.jsonl", first)

    def save(step: int) -> None:
        checkpoint.save(states, step, weights, optimizer, identity, recipe.keep)

    loader = Loader(encoded, parts.pixels, recipe, cache)
    saved, saved_at, line = first, time.monotonic(), None
    with _sigterm() as stopping, log:
        batches = loader.steps(plan.micro_batches, first, stop)
        for step, micro_batches in enumerate(batches, first + 1):
            line = one_step(parts, recipe, optimizer, micro_batches, step, plan.steps, where)
            log.write(line)
            on_step(line)
            due = recipe.save_every and step % recipe.save_every == 0
            late = recipe.save_every_s and time.monotonic() - saved_at >= recipe.save_every_s
            if due or late or step == stop or stopping.is_set():
                save(step)
                saved, saved_at = step, time.monotonic()
            if stopping.is_set():
                break
    loss = None if line is None else line.loss
    if saved < stop:
        return Result(place, saved, plan.steps, loss, interrupted=True)
    export(
        place / "model", parts.model, parts.tokenizer, parts.pixels,
        prompt_format=recipe.prompt_format, dtype=getattr(torch, recipe.export_dtype),
    )  # fmt: skip
    if cache and saved == plan.steps:
        cache.remove()
    return Result(place, saved, plan.steps, loss)


def load_data(
    recipe: Recipe,
    parts: Parts,
    data: Sequence[str | Path],
    images: str | Path | None,
    note: Note = lambda text: None,
) -> EncodedData:
    """Read and encode all samples of a run."""
    longest = parts.model.config.text_config.max_position_embeddings
    limit = min(recipe.max_length, longest or recipe.max_length)
    encoder = Encoder(parts.tokenizer, image_tokens=parts.image_tokens, max_length=limit)
    samples = dataset.read([Path(path) for path in data])
    folder = None if images is None else Path(images)
    encoded = dataset.encode(samples, folder, encoder, FORMATS[recipe.prompt_format], parts.pad_id)
    note(
        f"{len(encoded)} samples, {int(encoded.lengths.sum())} positions, "
        f"{int(encoded.loss.sum())} of them bear loss"
    )
    if encoded.cut:
        note(f"{encoded.cut} samples are longer than {limit} and were cut at the end")
    return encoded


def feature_cache(
    recipe: Recipe,
    parts: Parts,
    encoded: EncodedData,
    place: Path,
    device: torch.device,
    note: Note,
) -> FeatureCache | None:
    """The tower's output for every picture of the run, if the recipe says so."""
    pictures = [path for path in encoded.images if path is not None]
    if not recipe.feature_cache or not pictures:
        return None
    if recipe.train_vision_tower:
        raise UsageError("feature_cache needs a frozen tower", "set train_vision_tower=false")
    model, config = parts.model, parts.pixels
    dtype = torch.float32 if recipe.precision == "float32" else torch.bfloat16
    width = model.config.vision_config.hidden_size
    rows = parts.image_tokens
    cache = FeatureCache(place / "features", pictures, (rows, width), dtype)

    def pixels(path: Path) -> npt.NDArray[np.float32]:
        return normalise(decoded(path, config, str(path)), config)

    def tower(batch: torch.Tensor) -> torch.Tensor:
        with autocast(recipe, device), torch.no_grad():
            return tower_features(model, batch.to(device))

    layer = f"{recipe.feature_layer} {recipe.select} {recipe.aspect} {recipe.precision}"
    parts.module("vision_tower").eval()
    cache.fill(f"{parts.source} {layer}", pixels, tower, recipe.workers, note)
    return cache


def speed_up(parts: Parts, recipe: Recipe, device: torch.device) -> None:
    """What changes how fast or in how little memory the same numbers come out."""
    language_model = parts.model.model.language_model
    if device.type == "cpu" and recipe.precision == "bfloat16":
        attention.use(language_model)
    if recipe.gradient_checkpointing:
        model = parts.model  # older releases of transformers know it by its former name
        enable = getattr(model, "activation_checkpointing_enable", None)
        (enable or model.gradient_checkpointing_enable)()
    if recipe.compile:
        language_model.compile(dynamic=True)


def build_optimizer(parts: Parts, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW with a learning rate per module, and no decay on biases and norms."""
    groups = []
    for name in MODULES:
        parameters = parts.parameters(name)
        for decays in (True, False):
            chosen = [p for _, p in parameters if (p.dim() > 1) == decays]
            if chosen:
                decay = recipe.weight_decay if decays else 0.0
                lr = recipe.lr_of(name)
                groups.append({"params": chosen, "lr": lr, "base_lr": lr, "weight_decay": decay})
    return torch.optim.AdamW(groups, betas=(recipe.beta1, recipe.beta2), eps=recipe.eps, fused=True)


def lr_factor(recipe: Recipe, step: int, total: int) -> float:
    """Share of the learning rate at a step (the first is 1)."""
    warmup = math.ceil(recipe.warmup * total)
    if step <= warmup:
        return step / warmup
    if recipe.schedule == "constant":
        return 1.0
    done = (step - 1 - warmup) / max(1, total - warmup)
    shape = 1 - done if recipe.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return recipe.min_lr + (1 - recipe.min_lr) * shape


def one_step(
    parts: Parts,
    recipe: Recipe,
    optimizer: torch.optim.Optimizer,
    micro_batches: Sequence[Batch],
    step: int,
    total: int,
    device: torch.device,
) -> StepLog:
    """Forward and backward over a global batch, then one update."""
    began = time.perf_counter()
    factor = lr_factor(recipe, step, total)
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    answers = sum(batch.answer_tokens for batch in micro_batches)
    tokens = sum(batch.tokens for batch in micro_batches)
    loss = torch.zeros((), device=device)
    parts.model.train()
    if not recipe.train_vision_tower:
        parts.module("vision_tower").eval()
    try:
        for batch in micro_batches:
            with autocast(recipe, device):
                part = answer_loss(parts.model, batch.to(device)) / answers
            part.backward()
            loss += part.detach()
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(
            f"step {step} did not fit into memory", "lower micro_batch, or max_length"
        ) from error
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    norm = nn.utils.clip_grad_norm_(trained, recipe.clip or math.inf)
    value, norm_value = float(loss), float(norm)
    if not math.isfinite(value) or not math.isfinite(norm_value):
        raise LlavaError(
            f"step {step}: the loss is {value}, the gradient's norm {norm_value}",
            "lower the learning rate, or use --set precision=float32",
        )
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    seconds = time.perf_counter() - began
    lr = recipe.lr * factor
    return StepLog(step, value, lr, tokens, answers, norm_value, seconds)


def answer_loss(model: Any, batch: Batch) -> torch.Tensor:
    """Sum of the cross-entropy over the answer tokens of a micro-batch.

    Equal to LlavaForConditionalGeneration's own loss times the number of answer tokens, but with
    logits only where the next token bears loss, and without an attention mask: padding stands on
    the right, causal attention never looks there, and its positions bear no loss.
    """
    embeddings = model.get_input_embeddings()(batch.ids)  # (B, S, D)
    seen = batch.features
    if seen is None and batch.pixels is not None:
        seen = tower_features(model, batch.pixels)
    if seen is not None:
        features = model.model.multi_modal_projector(seen)  # (P, N, D)
        slots = (batch.ids == model.config.image_token_index).unsqueeze(-1)
        embeddings = embeddings.masked_scatter(slots, features.to(embeddings.dtype))
    hidden = model.model.language_model(
        inputs_embeds=embeddings, use_cache=False
    ).last_hidden_state  # (B, S, D)
    targets = functional.pad(batch.labels[:, 1:], (0, 1), value=IGNORE_INDEX)
    kept = targets != IGNORE_INDEX
    logits = model.lm_head(hidden[kept])  # (answers, V)
    return functional.cross_entropy(logits.float(), targets[kept], reduction="sum")


def tower_features(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    """(P, N, V): what the connector reads of pictures (P, 3, H, W)."""
    tower = model.model.vision_tower
    trained = next(tower.parameters()).requires_grad
    with nullcontext() if trained else torch.no_grad():
        hidden = tower_states(tower, pixels, model.config.vision_feature_layer)
    return hidden[:, 1:] if model.config.vision_feature_select_strategy == "default" else hidden


def tower_states(tower: Any, pixels: torch.Tensor, layer: int) -> torch.Tensor:
    """(P, 1 + N, V): hidden state `layer` of a CLIP tower; later layers are not run."""
    depth = layer if layer >= 0 else len(tower.encoder.layers) + 1 + layer
    dtype = tower.embeddings.patch_embedding.weight.dtype
    hidden: torch.Tensor = tower.pre_layrnorm(tower.embeddings(pixels.to(dtype)))
    for block in tower.encoder.layers[:depth]:
        hidden = block(hidden, None)
    return hidden


def autocast(recipe: Recipe, device: torch.device) -> AbstractContextManager[Any]:
    """bfloat16 matrix products over float32 weights, if the recipe says so."""
    if recipe.precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


class Log:
    """RUN/log.jsonl: one JSON line a step; lines after the step resumed from are dropped."""

    def __init__(self, path: Path, after: int) -> None:
        kept = []
        if after and path.is_file():
            for text in path.read_text("utf-8").splitlines():
                try:
                    if json.loads(text)["step"] <= after:
                        kept.append(text + "\n")
                except (ValueError, KeyError, TypeError):
                    continue  # a line cut short by a kill
        path.write_text("".join(kept), "utf-8")
        self._file = path.open("a", encoding="utf-8")

    def write(self, line: StepLog) -> None:
        """Append a step's line, at once."""
        self._file.write(json.dumps(asdict(line)) + "\n")
        self._file.flush()

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


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
