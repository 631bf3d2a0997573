"""Tensors that are read late and a few rows at a time, wherever their values come from.

A `Tensor` knows its shape and how to get any of its rows as float32: from a file on the disk
(`shards.py`, `pickles.py`) or from other tensors (here, `adapters.py`). Nothing is kept, so that
memory never holds more than is asked for, and any thread may read any rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from llava_cli.errors import ModelInvalid
from llava_cli.models.tensor_names import canonical

Array = npt.NDArray[np.float32]
Read = Callable[[int, int], Array]
"""First row and count -> float32 (count, *shape[1:])."""

ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Bytes of a value in the types that can be converted, by safetensors' names."""


@dataclass(frozen=True)
class Tensor:
    """One tensor of a source, not read yet."""

    name: str
    """In the source, for messages."""
    dtype: str
    """As it is stored, in safetensors' words."""
    shape: tuple[int, ...]
    """In torch's order, slowest dimension first."""
    read: Read
    unit: int = 1
    """Rows are read in groups of so many."""

    def array(self) -> Array:
        """All of it."""
        if not self.shape:
            return self.read(0, 1).reshape(())
        return self.read(0, self.shape[0])

    @property
    def row(self) -> int:
        """Values of one row."""
        return math.prod(self.shape[1:])


def constant(name: str, values: Array) -> Tensor:
    """A tensor whose values are known already."""
    return Tensor(name, "F32", values.shape, lambda first, count: values[first : first + count])


def whole(tensor: Tensor, change: Callable[[Array], Array], shape: tuple[int, ...]) -> Tensor:
    """A tensor computed from all of another; it is read in one piece."""

    def read(first: int, count: int) -> Array:
        return change(tensor.array())[first : first + count]

    return Tensor(tensor.name, tensor.dtype, shape, read, unit=max(shape[0], 1))


def each(tensor: Tensor, change: Callable[[Array], Array]) -> Tensor:
    """A tensor whose rows are those of another, changed one by one."""
    read = tensor.read
    return replace(tensor, read=lambda first, count: change(read(first, count)))


def stacked(upper: Tensor, lower: Tensor) -> Tensor:
    """One tensor's rows, then another's."""
    split = upper.shape[0]

    def read(first: int, count: int) -> Array:
        parts = []
        if first < split:
            parts.append(upper.read(first, min(count, split - first)))
        if first + count > split:
            start = max(first - split, 0)
            parts.append(lower.read(start, first + count - split - start))
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    return replace(upper, shape=(split + lower.shape[0], *upper.shape[1:]), read=read)


def slice_rows(tensor: Tensor, start: int, stop: int) -> Tensor:
    """Some of a tensor's rows."""
    read = tensor.read
    return replace(
        tensor,
        shape=(stop - start, *tensor.shape[1:]),
        read=lambda first, count: read(start + first, count),
    )


def summed(tensor: Tensor, other: Tensor) -> Tensor:
    """The sum of two tensors; where one has more rows, they are its own."""
    rows = min(tensor.shape[0], other.shape[0])
    longer = tensor if tensor.shape[0] >= other.shape[0] else other
    ours, theirs, rest = tensor.read, other.read, longer.read

    def read(first: int, count: int) -> Array:
        both = max(min(first + count, rows) - first, 0)
        parts = []
        if both:
            parts.append(ours(first, both) + theirs(first, both))
        if both < count:
            parts.append(rest(first + both, count - both))
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    return replace(tensor, shape=longer.shape, read=read)


def renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under llava-hf's names; two that become the same are an error."""
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        target = canonical(name)
        if target in result:
            raise ModelInvalid(
                f"{result[target].name} and {name} are the same tensor under two names"
            )
        result[target] = tensor
    return result


def permute(values: Array, heads: int) -> Array:
    """Rows of q or k from transformers' order (halves) to that of llama.cpp's rope (pairs).

    (heads * 2 * head_dim / 2, ...) -> the two halves of each head interleaved.
    """
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)
