"""From source tensors to open files: rows are read and quantised side by side, written in order.

Each group of rows is read once and encoded for every file that wants it, on as many threads as
there are cores; only a few groups are in memory at a time. Not here: what stands in the files
(`text.py`, `mmproj.py`), their names and their end (`gguf_file.py`).
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llava_convert.ggml import Kind, encode, peak_of
from llava_convert.gguf_file import PlannedTensor, Sink
from llava_convert.imatrix import Imatrix

CHUNK_VALUES = 1 << 20
"""How many values one thread takes at a time: 4 MB of float32."""
BASE_BYTES = 250 << 20
"""Python with numpy and ggml's libraries, and a vocabulary."""
Bytes = npt.NDArray[np.uint8]
Progress = Callable[[int, int], None]
"""Called with the bytes written so far and in all."""


@dataclass(frozen=True)
class Plan:
    """The files of one role, and their tensors."""

    role: str
    tensors: tuple[PlannedTensor, ...]
    sinks: tuple[Sink, ...]
    imatrix: Imatrix | None = None


@dataclass(frozen=True)
class _Job:
    """One group of rows on its way."""

    plan: Plan
    tensor: PlannedTensor
    last: bool
    encoded: Future[Mapping[Kind, Bytes]]


def default_threads() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def stream(plans: Sequence[Plan], threads: int, progress: Progress | None) -> None:
    """Every tensor of every plan into its open files."""
    sinks = [sink for plan in plans for sink in plan.sinks]
    total = sum(sink.bytes for sink in sinks)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="quantise")
    waiting: deque[_Job] = deque()

    def write_one() -> None:
        job = waiting.popleft()
        encoded = job.encoded.result()
        for sink in job.plan.sinks:
            sink.append(encoded[sink.kinds[job.tensor.name]])
            if job.last:
                sink.end_tensor(job.tensor)
        if progress is not None:
            progress(sum(sink.written for sink in sinks), total)

    try:
        for job in _jobs(plans, pool):
            waiting.append(job)
            if len(waiting) > 2 * threads:
                write_one()
        while waiting:
            write_one()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def memory_needed(plans: Sequence[Plan], threads: int) -> int:
    """About how many bytes a run holds at most: the program, and the groups on their way."""
    largest = 0
    for plan in plans:
        for tensor in plan.tensors:
            rows = max((count for _, count in groups_of(tensor)), default=0)
            # source, float32 and what is made of it; all of a tensor that is made in one piece
            largest = max(largest, rows * tensor.values.row * (8 + 4 * len(plan.sinks)))
    return BASE_BYTES + largest * (2 * threads + 1)


def _jobs(plans: Sequence[Plan], pool: ThreadPoolExecutor) -> Iterator[_Job]:
    for plan in plans:
        for tensor in plan.tensors:
            kinds = {sink.kinds[tensor.name] for sink in plan.sinks}
            groups = list(groups_of(tensor))
            for place, (first, count) in enumerate(groups):
                future = pool.submit(_encode, plan, tensor, kinds, first, count)
                yield _Job(plan, tensor, place == len(groups) - 1, future)


def groups_of(tensor: PlannedTensor) -> Iterator[tuple[int, int]]:
    """(first row, count) of a tensor's parts."""
    rows, unit = (tensor.shape[0] if tensor.shape else 1), tensor.values.unit
    step = max(CHUNK_VALUES // max(tensor.values.row * unit, 1), 1) * unit
    if len(tensor.shape) < 2:
        step = max(rows, 1)
    for first in range(0, rows, step):
        yield first, min(step, rows - first)


def _encode(
    plan: Plan, tensor: PlannedTensor, kinds: set[Kind], first: int, count: int
) -> Mapping[Kind, Bytes]:
    """One group of rows in every type that is wanted; runs on a thread of the pool."""
    name = tensor.values.name
    values = tensor.values.read(first, count)
    peak = peak_of(values, name)
    weights = plan.imatrix.of(tensor.name, tensor.shape[-1]) if plan.imatrix else None
    return {kind: encode(values, kind, name, peak=peak, weights=weights) for kind in kinds}
