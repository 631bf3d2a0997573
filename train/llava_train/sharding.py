"""Parameters split over the processes (FSDP2), for language models too large for one GPU.

Each process keeps a share of every trained module and of the language model, and gathers a layer
while it runs. Gathering is a meeting of all: so every process computes equally many micro-batches,
and each of them runs the connector, on a blank picture where it has none. Checkpoints and exports
are gathered whole, so that they are the same files as without. A frozen tower stays whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from llava_train.assemble import Parts
from llava_train.dataset import Shapes
from llava_train.labels import IGNORE_INDEX
from llava_train.loader import Batch
from llava_train.parallel import Group
from llava_train.tiling import grid_of

Loss = Callable[[Any, Batch], torch.Tensor]
_BLANK = (1, 1)
"""(width, height) of the picture that stands where a micro-batch has none."""


class Sharded(nn.Module):
    """A model whose loss is computed from parameters that are gathered on the way."""

    def __init__(self, model: Any, loss: Loss, side: int) -> None:
        super().__init__()
        self.model = model
        self._loss = loss
        grid = grid_of(model.config)
        self._squares = (1 if grid is None else grid.tiles(_BLANK), 3, side, side)
        self._shapes: Shapes = () if grid is None else (_BLANK,)

    def forward(self, batch: Batch) -> torch.Tensor:
        """The sum of the loss; a blank picture without a position takes part with zero gradient."""
        if batch.pixels is None and batch.features is None:
            blank = torch.zeros(self._squares, device=batch.ids.device)
            batch = replace(batch, pixels=blank, shapes=self._shapes)
        return self._loss(self.model, batch)


def shard(parts: Parts, loss: Loss, device: torch.device) -> Sharded:
    """Split a model's parameters over all processes; the rest goes to the device whole."""
    from torch.distributed.fsdp import fully_shard

    tower = parts.members("vision_tower")
    whole: set[nn.Parameter] = set() if any(p.requires_grad for p in tower) else set(tower)
    for layer in parts.model.model.language_model.layers:
        fully_shard(layer)
    root = Sharded(parts.model, loss, parts.pixels.size)
    fully_shard(root, ignored_params=whole)
    if whole:
        parts.module("vision_tower").to(device)
    return root


def evened(batches: Sequence[Batch], group: Group, pad_id: int) -> list[Batch]:
    """A process's micro-batches, and empty ones until every process has as many."""
    ids = torch.full((1, 8), pad_id)
    empty = Batch(ids, torch.full_like(ids, IGNORE_INDEX), None, 0)
    return [*batches, *[empty] * (group.most(len(batches)) - len(batches))]


def gathered(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor whole, in every process; all of them ask for the same ones in the same order."""
    full = getattr(tensor, "full_tensor", None)
    return tensor if full is None else full()


def split_like(tensor: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """This process's share of a whole tensor, split as a parameter is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(parameter, DTensor):
        return tensor
    place = parameter.device_mesh.device_type
    return distribute_tensor(tensor.to(place), parameter.device_mesh, parameter.placements)


def split_state(optimizer: torch.optim.Optimizer) -> None:
    """An optimizer's whole moments, split as their parameters are."""
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                state[key] = split_like(value, parameter)
