"""Importance matrices: how much each column of a matrix matters, as `llama-imatrix` measured it.

Reads both forms, GGUF (`NAME.in_sum2`, `NAME.counts`) and the older .dat, and normalises as
llama-quantize does, so that the result is equal byte by byte.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter

from llava_cli.engines.layouts.tensors import Array
from llava_cli.errors import ModelInvalid

_AGAIN = "make it again with llama-imatrix, for this very model"


@dataclass(frozen=True)
class Imatrix:
    """What one file says."""

    name: str
    weights: dict[str, Array]
    """By the tensor's name in the text GGUF: (columns,)."""
    datasets: tuple[str, ...]
    chunks: int

    def of(self, tensor: str, columns: int) -> Array | None:
        """Weights of one tensor; None where the file has none, or none that can be used."""
        weights = self.weights.get(tensor)
        if weights is None or weights.size == columns:
            return weights
        if tensor == "token_embd.weight":
            return None
        raise ModelInvalid(
            f"{self.name} has {weights.size} columns for {tensor}, the model {columns}", _AGAIN
        )

    def describe(self, writer: GGUFWriter) -> None:
        """Under the keys that llama-quantize writes."""
        writer.add_string("quantize.imatrix.file", self.name)
        if self.datasets:
            writer.add_string("quantize.imatrix.dataset", self.datasets[0])
        writer.add_int32("quantize.imatrix.entries_count", len(self.weights))
        if self.chunks > 0:
            writer.add_int32("quantize.imatrix.chunks_count", self.chunks)


def read_imatrix(path: Path) -> Imatrix:
    """One importance matrix."""
    try:
        with path.open("rb") as file:
            is_gguf = file.read(4) == b"GGUF"
        found = _read_gguf(path) if is_gguf else _read_legacy(path)
    except OSError as error:
        raise ModelInvalid(f"cannot read {path}: {error.strerror}", "check the path") from error
    except (ValueError, KeyError, IndexError, struct.error, UnicodeDecodeError) as error:
        raise ModelInvalid(f"{path} is not an importance matrix", _AGAIN) from error
    for name, weights in found.weights.items():
        if not np.isfinite(weights).all():
            raise ModelInvalid(f"{path} has NaN or infinite weights for {name}", _AGAIN)
    return found


def _read_gguf(path: Path) -> Imatrix:
    from gguf import GGUFReader

    reader = GGUFReader(path)
    tensors = {tensor.name: np.array(tensor.data, np.float32) for tensor in reader.tensors}
    weights: dict[str, Array] = {}
    for name, sums in tensors.items():
        if not name.endswith(".in_sum2"):
            continue
        target = name.removesuffix(".in_sum2")
        counts = np.rint(tensors[f"{target}.counts"].reshape(-1)).astype(np.float32)
        rows = sums.reshape(len(counts), -1)
        ones = np.ones_like(rows)
        divided = np.divide(rows, counts[:, None], out=ones, where=counts[:, None] > 0)
        weights[target] = np.ascontiguousarray(divided.reshape(-1))
    if not weights:
        raise ValueError("no sums")
    fields: dict[str, Any] = {name: field.contents() for name, field in reader.fields.items()}
    datasets = fields.get("imatrix.datasets") or []
    return Imatrix(path.name, weights, tuple(datasets), int(fields.get("imatrix.chunk_count", 0)))


def _read_legacy(path: Path) -> Imatrix:
    """count, then (length, name, calls, size, sums) each; chunks and a dataset's name behind."""
    data = path.read_bytes()
    place = 0

    def number() -> int:
        nonlocal place
        (value,) = struct.unpack_from("<i", data, place)
        place += 4
        return int(value)

    def piece(size: int) -> bytes:
        nonlocal place
        if size < 0 or place + size > len(data):
            raise ValueError("cut off")
        place += size
        return data[place - size : place]

    weights: dict[str, Array] = {}
    for _ in range(number()):
        name = piece(number()).decode()
        calls, size = number(), number()
        sums = np.frombuffer(piece(4 * size), "<f4").astype(np.float32)
        weights[name] = sums / np.float32(calls) if calls > 0 else sums
    if not weights:
        raise ValueError("empty")
    chunks = number() if place < len(data) else 0
    dataset = piece(number()).decode() if place < len(data) else ""
    return Imatrix(path.name, weights, (dataset,) if dataset else (), chunks)
