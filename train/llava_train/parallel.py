"""Several processes that train one model, started by torchrun: each has all of it and some batches.

Every process adds up its own micro-batches, then gradients are summed over all: the loss is divided
by the answer tokens of the whole global batch already. Because nothing is exchanged while a batch
is computed, processes may hold batches of any kind (with pictures, without, none at all) and never
wait for one that does not come. Not here: parameters that are split over processes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
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

    def wait(self) -> None:
        """Until every process is here."""
        self.sums([0.0])

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Gradients summed over all processes; one that no process has stays None, as on one."""
        if self.size == 1:
            return
        every = list(parameters)
        has = self.sums([float(p.grad is not None) for p in every])
        some = [p for p, count in zip(every, has, strict=True) if count]
        for parameter in some:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for bucket in _buckets(some):
            grads = [p.grad for p in bucket if p.grad is not None]
            flat = torch.cat([grad.reshape(-1) for grad in grads])
            distributed.all_reduce(flat)
            for grad, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
                grad.copy_(part.view_as(grad))


def _buckets(parameters: Sequence[torch.nn.Parameter]) -> Iterator[list[torch.nn.Parameter]]:
    """Neighbouring parameters of one type, about `_BUCKET` bytes together."""
    bucket: list[torch.nn.Parameter] = []
    size = 0
    for parameter in parameters:
        full = size + parameter.nbytes > _BUCKET
        if bucket and (full or parameter.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(parameter)
        size += parameter.nbytes
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
