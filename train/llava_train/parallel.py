"""Several processes that train one model, started by torchrun: each has all of it and some batches.

Every process adds up its own micro-batches, then gradients are summed over all: the loss is divided
by the answer tokens of the whole global batch already. Because nothing is exchanged while a batch
is computed, processes may hold batches of any kind (with pictures, without, none at all) and never
wait for one that does not come. Sums are taken in float64 and rounded once (`GradientSum`), so that
it does not matter which process computed what. Parameters that are split over processes:
`sharding.py`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import distributed

from llava_cli.errors import UsageError

_BUCKET = 64 * 2**20
"""Bytes of gradients that are exchanged at a time."""


@dataclass(frozen=True)
class Group:
    """The processes of a run, and which one this is."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    def sums(self, values: Sequence[float]) -> list[float]:
        """Each value summed over all processes."""
        if self.size == 1:
            return list(values)
        kind = torch.float64 if self.device.type != "mps" else torch.float32
        tensor = torch.tensor(values, dtype=kind, device=self.device)
        distributed.all_reduce(tensor)
        return [float(value) for value in tensor.tolist()]

    def most(self, count: int) -> int:
        """The largest of all processes' counts."""
        if self.size == 1:
            return count
        tensor = torch.tensor(count, device=self.device)
        distributed.all_reduce(tensor, distributed.ReduceOp.MAX)
        return int(tensor)

    def wait(self) -> None:
        """Until every process is here."""
        self.sums([0.0])


class GradientSum:
    """The gradients of a step's micro-batches, added in one precision and rounded once.

    In float64 the order of the additions moves a sum by 1e-16 of itself, which the rounding to
    float32 hides: any number of processes gets the same gradient. It costs 8 bytes a trained
    parameter, and twice the bytes exchanged. In float32, torch adds in place as it always does and
    other numbers of processes end some 1e-6 apart.
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter], dtype: torch.dtype) -> None:
        self._parameters = parameters
        self._dtype = dtype
        self._sums: dict[int, torch.Tensor] = {}
        """By place in `parameters`, what micro-batches before the last gave."""

    def add(self) -> None:
        """Take over what the backward pass of a micro-batch left."""
        for place, parameter in enumerate(self._parameters):
            grad = parameter.grad
            if grad is None or grad.dtype == self._dtype:
                continue
            if place in self._sums:
                self._sums[place] += grad
            else:
                self._sums[place] = grad.to(self._dtype)
            parameter.grad = None

    def finish(self, group: Group) -> None:
        """Every parameter's `grad`, over all processes; what no process has stays None."""
        found = [
            self._sums.pop(place, parameter.grad)
            for place, parameter in enumerate(self._parameters)
        ]
        if group.size > 1:
            _sum_over(group, found, self._parameters, self._dtype)
        for parameter, grad in zip(self._parameters, found, strict=True):
            parameter.grad = None if grad is None else grad.to(parameter.dtype)


def _sum_over(
    group: Group,
    grads: list[torch.Tensor | None],
    parameters: Sequence[torch.nn.Parameter],
    dtype: torch.dtype,
) -> None:
    """Replace each gradient by its sum over all processes; one that none has stays None."""
    has = group.sums([float(grad is not None) for grad in grads])
    for place, count in enumerate(has):
        if count and grads[place] is None:
            shape = parameters[place].shape
            grads[place] = torch.zeros(shape, dtype=dtype, device=group.device)
    some = [grad for grad in grads if grad is not None]
    for bucket in _buckets(some):
        flat = torch.cat([grad.reshape(-1) for grad in bucket])
        distributed.all_reduce(flat)
        for grad, part in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
            grad.copy_(part.view_as(grad))


def _buckets(tensors: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Neighbouring tensors of one type, about `_BUCKET` bytes together."""
    bucket: list[torch.Tensor] = []
    size = 0
    for tensor in tensors:
        full = size + tensor.nbytes > _BUCKET
        if bucket and (full or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.nbytes
    if bucket:
        yield bucket


@contextmanager
def group(device: str | None) -> Iterator[Group]:
    """The processes that torchrun started, or this one alone.

    Raises UsageError where torchrun's variables are not whole.
    """
    size = _number("WORLD_SIZE", 1)
    if size == 1:
        yield Group(device=torch.device(device or _default(0)))
        return
    rank = _number("RANK", None)
    where = torch.device(device or _default(_number("LOCAL_RANK", 0)))
    if where.type == "cuda":
        torch.cuda.set_device(where)
    if "MASTER_ADDR" not in os.environ:
        raise UsageError("WORLD_SIZE is set, MASTER_ADDR is not", "start it by torchrun")
    started = distributed.is_initialized()
    if not started:
        distributed.init_process_group("nccl" if where.type == "cuda" else "gloo")
    try:
        yield Group(rank, size, where)
        distributed.barrier()  # nobody leaves while another still waits for it
    finally:
        if not started:
            distributed.destroy_process_group()


def leave() -> None:
    """End this process at once, if it is one of several that torchrun started.

    Threads of torch's collectives can outlive their group; one that wakes while the interpreter is
    taken down aborts the process ("terminate called without an active exception") after all its
    work is done and written. Nothing runs behind this call, no `atexit` function either.
    """
    if _number("WORLD_SIZE", 1) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _number(name: str, default: int | None) -> int:
    text = os.environ.get(name, "" if default is None else str(default))
    if not text.isdecimal():
        raise UsageError(f"{name} = {text!r} is not a number", "start it by torchrun")
    return int(text)


def _default(local: int) -> str:
    return f"cuda:{local}" if torch.cuda.is_available() else "cpu"
