"""One optimizer step: forward, loss, backward, update, and what makes it quick.

The loss of a global batch is the sum over all its answer tokens divided by their number, however
the batch is cut into micro-batches and shared between processes. Not here: which samples make up
the batch (`dataset.py`), when state is saved (`loop.py`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from llava_cli.errors import LlavaError, OutOfMemory
from llava_train import attention
from llava_train.assemble import Parts
from llava_train.labels import IGNORE_INDEX
from llava_train.loader import Batch
from llava_train.parallel import GradientSum, Group
from llava_train.recipe import MODULES, Recipe
from llava_train.runlog import StepLog
from llava_train.sharding import Sharded, evened, gathered
from llava_train.tiling import packed


class NotFinite(LlavaError):
    """The loss or the gradient of a step is no number; the weights are those before the step."""


@dataclass(frozen=True)
class Stepper:
    """What stays the same from step to step."""

    parts: Parts
    recipe: Recipe
    optimizer: torch.optim.Optimizer
    total: int
    """Steps of the whole run, for the schedule."""
    group: Group = Group()
    sharded: Sharded | None = None
    """Computes the loss where parameters are split over the processes."""

    def step(self, number: int, micro_batches: Sequence[Batch]) -> StepLog:
        """One update from the global batch, of which these are this process's micro-batches.

        Raises NotFinite before anything is changed, OutOfMemory where a batch does not fit.
        """
        began = time.perf_counter()
        factor = lr_factor(self.recipe, number, self.total)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        counts = [0.0, 0.0, 0.0]
        for batch in micro_batches:
            counts[0] += batch.answer_tokens
            counts[1] += batch.tokens
            counts[2] += batch.pixels is not None or batch.features is not None
        answers, tokens, pictured = (int(count) for count in self.group.sums(counts))
        self._modes()
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        sums = GradientSum(trained, self._sums_in())
        try:
            loss = self._backward(number, micro_batches, max(1, answers), sums)
        except torch.OutOfMemoryError as error:
            raise OutOfMemory(
                f"step {number} did not fit into memory", "lower micro_batch, or max_length"
            ) from error
        sums.finish(Group() if self.sharded else self.group)  # there, summed as they come
        if self.sharded and not pictured:  # what blank pictures gave is no gradient
            for parameter in (
                *self.parts.members("connector"),
                *self.parts.members("vision_tower"),
            ):
                parameter.grad = None
        norm = float(gathered(nn.utils.clip_grad_norm_(trained, self.recipe.clip or math.inf)))
        if not math.isfinite(loss) or not math.isfinite(norm):
            self.optimizer.zero_grad(set_to_none=True)
            raise NotFinite(
                f"step {number}: the loss is {loss}, the gradient's norm {norm}",
                "lower the learning rate, or use --set precision=float32",
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        seconds = time.perf_counter() - began
        return StepLog(number, loss, self.recipe.lr * factor, tokens, answers, norm, seconds)

    def _sums_in(self) -> torch.dtype:
        """What gradients and losses of micro-batches are added in."""
        exact = self.recipe.exact_sums and self.group.device.type != "mps"  # which has no float64
        return torch.float64 if exact else torch.float32

    def _backward(
        self, number: int, micro_batches: Sequence[Batch], answers: int, sums: GradientSum
    ) -> float:
        """This process's part of the step's gradients; the loss of the global batch."""
        device, root = self.group.device, self.sharded
        loss = torch.zeros((), device=device, dtype=self._sums_in())
        scale = self.group.size if root else 1  # gradients of shards are averaged
        for batch in evened(micro_batches, self.group, 0) if root else micro_batches:
            if root is None and not batch.answer_tokens:  # all its pictures were broken
                continue
            self._seed(number, batch)
            with autocast(self.recipe, device):
                moved = batch.to(device)
                part = (root(moved) if root else answer_loss(self.parts.model, moved)) / answers
            if part.requires_grad:
                (part * scale).backward()
                sums.add()
            loss += part.detach()
        return self.group.sums([float(loss)])[0]

    def _seed(self, number: int, batch: Batch) -> None:
        """Dropout by seed, step and sample: whatever was drawn before, in whatever process."""
        if self.recipe.adapter != "none" and self.recipe.lora_dropout and batch.samples:
            mixed = np.random.SeedSequence([self.recipe.seed, number, batch.samples[0]])
            torch.manual_seed(int(mixed.generate_state(1)[0]))

    def _modes(self) -> None:
        self.parts.model.train()
        if not self.recipe.train_vision_tower:
            self.parts.module("vision_tower").eval()


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


class Rounded:
    """Frozen float32 matrices in bfloat16 while a run lasts.

    Autocast makes the same of them at every use, because it keeps a cast only of what is trained;
    made once, a frozen model computes the same bits in less time. Costs half their size.
    """

    def __init__(self, parts: Parts, recipe: Recipe) -> None:
        self._exact: list[tuple[nn.Parameter, torch.Tensor]] = []
        if recipe.precision != "bfloat16" or recipe.adapter == "dora":  # reads weights elsewhere
            return
        modules = list(parts.model.modules())
        rows = {id(m.weight) for m in modules if isinstance(m, nn.Embedding)}  # tied to a head
        for module in modules:
            if not isinstance(module, (nn.Linear, nn.Conv2d)):
                continue
            for parameter in module.parameters(recurse=False):
                if _rounds(parameter) and id(parameter) not in rows:
                    self._exact.append((parameter, parameter.data))
                    parameter.data = parameter.data.to(torch.bfloat16)

    def restore(self) -> None:
        """The weights as they were, for whoever reads them."""
        for parameter, exact in self._exact:
            parameter.data = exact
        self._exact.clear()


def _rounds(parameter: nn.Parameter) -> bool:
    return not parameter.requires_grad and parameter.dtype == torch.float32


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


def answer_loss(model: Any, batch: Batch) -> torch.Tensor:
    """Sum of the cross-entropy over the answer tokens of a micro-batch.

    Equal to LlavaForConditionalGeneration's own loss times the number of answer tokens, but with
    logits only where the next token bears loss, and without an attention mask: padding stands on
    the right, causal attention never looks there, and its positions bear no loss.
    """
    hidden = model.model.language_model(
        inputs_embeds=embedded(model, batch), position_ids=batch.positions, use_cache=False
    ).last_hidden_state  # (B, S, D)
    targets = functional.pad(batch.labels[:, 1:], (0, 1), value=IGNORE_INDEX)
    kept = targets != IGNORE_INDEX
    logits = model.lm_head(hidden[kept])  # (answers, V)
    return functional.cross_entropy(logits.float(), targets[kept], reduction="sum")


def embedded(model: Any, batch: Batch) -> torch.Tensor:
    """(B, S, D): what the language model reads, pictures in their places."""
    embeddings = model.get_input_embeddings()(batch.ids)  # (B, S, D)
    seen = batch.features
    if seen is None and batch.pixels is not None:
        seen = tower_features(model, batch.pixels)
    if seen is not None:
        features = model.model.multi_modal_projector(seen)  # (P, N, D)
        if batch.shapes:
            features = packed(model, features, batch.shapes)
        slots = (batch.ids == model.config.image_token_index).unsqueeze(-1)
        embeddings = embeddings.masked_scatter(slots, features.to(embeddings.dtype))
    return embeddings


def tower_features(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    """(P, N, V): what the connector reads of pictures (P, 3, H, W)."""
    tower = model.model.vision_tower
    trained = next(tower.parameters()).requires_grad
    with nullcontext() if trained else torch.no_grad():
        hidden = tower_states(tower, pixels, model.config.vision_feature_layer)
    return hidden[:, 1:] if model.config.vision_feature_select_strategy == "default" else hidden


def tower_states(tower: Any, pixels: torch.Tensor, layer: int) -> torch.Tensor:
    """(P, N, V), CLIP's CLS first: hidden state `layer` of a tower; later layers are not run."""
    depth = layer if layer >= 0 else len(tower.encoder.layers) + 1 + layer
    dtype = tower.embeddings.patch_embedding.weight.dtype
    hidden: torch.Tensor = tower.embeddings(pixels.to(dtype))
    if hasattr(tower, "pre_layrnorm"):  # CLIP's; SigLIP has none
        hidden = tower.pre_layrnorm(hidden)
    for block in tower.encoder.layers[:depth]:
        hidden = block(hidden, None)
    return hidden


def autocast(recipe: Recipe, device: torch.device) -> AbstractContextManager[Any]:
    """bfloat16 matrix products over float32 weights, if the recipe says so."""
    if recipe.precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)
