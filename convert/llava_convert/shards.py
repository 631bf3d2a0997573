"""Tensors of a safetensors checkpoint, read a few rows at a time.

`open_tensors` reads headers only and checks them against the files' sizes; values come later, as
float32, from `SourceTensor.rows` or `.array`, so that memory never holds more than is asked for.
Written out here because the safetensors library has no bfloat16 without torch, and maps whole
files into memory.

Not here: what a tensor means (`names.py`), pickled checkpoints (never read).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llava_cli.errors import ModelInvalid
from llava_cli.models.folders import read_json

Array = npt.NDArray[np.float32]

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2,
    "U16": 2, "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip
FLOATS: dict[str, type[np.generic]] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np.uint16,
}
"""What a dtype is on disk; bfloat16 is the upper half of a float32."""
MAX_HEADER_BYTES = 100_000_000
CHUNK_BYTES = 32 << 20
"""How much float32 is in memory at a time."""


@dataclass(frozen=True)
class SourceTensor:
    """Where one tensor lies on the disk."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    """In torch's order, slowest dimension first."""
    path: Path
    offset: int
    """Of its first byte in the file."""

    def array(self) -> Array:
        """All of it."""
        return self._read(0, math.prod(self.shape)).reshape(self.shape)

    def chunks(self) -> Iterator[Array]:
        """All of it, in groups of whole rows (the last dimensions); one chunk if it has no rows."""
        if len(self.shape) < 2:
            yield self.array()
            return
        row = math.prod(self.shape[1:])
        step = max(1, CHUNK_BYTES // (4 * max(row, 1)))
        for first in range(0, self.shape[0], step):
            count = min(step, self.shape[0] - first)
            yield self._read(first * row, count * row).reshape(count, *self.shape[1:])

    def _read(self, first: int, count: int) -> Array:
        kind = FLOATS.get(self.dtype)
        if kind is None:
            raise ModelInvalid(
                f"tensor {self.name} is stored as {self.dtype}, which cannot be converted",
                "save the model in float32, float16 or bfloat16 first",
            )
        item = ITEM_BYTES[self.dtype]
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset + first * item)
                raw = file.read(count * item)
        except OSError as error:
            raise ModelInvalid(f"{self.path.name} cannot be read: {error.strerror}") from error
        if len(raw) != count * item:
            raise ModelInvalid(*_truncated(self.path))
        values = np.frombuffer(raw, dtype=np.dtype(kind).newbyteorder("<"))
        if self.dtype == "BF16":
            return (values.astype(np.uint32) << 16).view(np.float32)
        return values.astype(np.float32)


def open_tensors(folder: Path) -> dict[str, SourceTensor]:
    """Every tensor of a checkpoint folder, single or sharded, by its name in the file."""
    if (folder / SINGLE).is_file():
        return read_header(folder / SINGLE)
    if (folder / INDEX).is_file():
        return _open_index(folder)
    if any(folder.glob("*.bin")) or any(folder.glob("*.pth")):
        raise ModelInvalid(
            f"{folder} holds its weights as pickle files, which can run code and are not read",
            "save the model again with safetensors (save_pretrained does)",
        )
    raise ModelInvalid(
        f"{folder} holds no {SINGLE} and no {INDEX}", "check that the download is complete"
    )


def _open_index(folder: Path) -> dict[str, SourceTensor]:
    """All shards that the index names, checked against it in both directions."""
    index = read_json(folder / INDEX)
    places = index.get("weight_map")
    if not isinstance(places, Mapping) or not places:
        raise ModelInvalid(f"{INDEX} has no weight_map", "fetch the index again")
    tensors: dict[str, SourceTensor] = {}
    for shard in sorted({str(file) for file in places.values()}):
        if Path(shard).name != shard:
            raise ModelInvalid(f"{INDEX} names the file {shard!r} outside of its folder")
        if not (folder / shard).is_file():
            raise ModelInvalid(
                f"shard {shard} is missing from {folder}", "fetch the missing file and try again"
            )
        for name, tensor in read_header(folder / shard).items():
            if name in tensors:
                raise ModelInvalid(
                    f"tensor {name} is in both {tensors[name].path.name} and {shard}",
                    "fetch the checkpoint again",
                )
            tensors[name] = tensor
    for name, shard in places.items():
        if name not in tensors or tensors[name].path.name != shard:
            raise ModelInvalid(
                f"{INDEX} says that {name} is in {shard}, but it is not",
                "the index and the shards are of different versions: fetch both again",
            )
    return tensors


def read_header(path: Path) -> dict[str, SourceTensor]:
    """The tensors of one safetensors file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise ModelInvalid(*_truncated(path))
        if length > MAX_HEADER_BYTES:
            raise ModelInvalid(f"{path.name} is not a safetensors file: its header is too long")
        text = file.read(length)
    try:
        header = json.loads(text)
    except ValueError as error:
        raise ModelInvalid(
            f"{path.name} is not a safetensors file: its header is not JSON", "fetch it again"
        ) from error
    if not isinstance(header, dict):
        raise ModelInvalid(f"{path.name} is not a safetensors file: its header is not an object")
    header.pop("__metadata__", None)
    return {name: _tensor(path, name, entry, 8 + length, size) for name, entry in header.items()}


def _tensor(path: Path, name: str, entry: Any, start: int, size: int) -> SourceTensor:
    """One entry of a header, refused unless its numbers agree with each other and the file."""
    try:
        dtype = str(entry["dtype"])
        shape = tuple(int(n) for n in entry["shape"])
        first, last = (int(n) for n in entry["data_offsets"])
    except (KeyError, TypeError, ValueError) as error:
        raise ModelInvalid(f"the header of {path.name} is damaged at tensor {name}") from error
    if start + last > size:
        raise ModelInvalid(*_truncated(path))
    item = ITEM_BYTES.get(dtype)
    if item is None:
        raise ModelInvalid(f"tensor {name} in {path.name} has the unknown type {dtype}")
    if min(shape, default=0) < 0 or first < 0 or last - first != item * math.prod(shape):
        raise ModelInvalid(f"the header of {path.name} is damaged at tensor {name}")
    return SourceTensor(name, dtype, shape, path, start + first)


def _truncated(path: Path) -> tuple[str, str]:
    return f"{path.name} is cut off: it is shorter than its header says", "fetch it again"
