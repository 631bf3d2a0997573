"""Tensors of a checkpoint folder, single or in shards, read a few rows at a time.

`open_tensors` reads headers only and checks them against the files' sizes; values come later, as
float32. The safetensors format is written out here because its library has no bfloat16 without
torch, and maps whole files into memory. Pickled shards are torch's to read (`pickles.py`).

Not here: what a tensor means (`llava_cli.models.tensor_names`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llava_cli.engines.layouts.pickles import read_pickle
from llava_cli.engines.layouts.tensors import Array, Read, Tensor
from llava_cli.errors import ModelInvalid
from llava_cli.models.folders import WEIGHTS, read_json

SINGLE, INDEX, PICKLE, PICKLE_INDEX = WEIGHTS
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


def _reader(path: Path, name: str, dtype: str, shape: tuple[int, ...], offset: int) -> Read:
    """Rows of one tensor that begins at `offset` of a file."""
    row = math.prod(shape[1:])

    def read(first: int, count: int) -> Array:
        kind = FLOATS.get(dtype)
        if kind is None:
            raise ModelInvalid(
                f"tensor {name} is stored as {dtype}, which cannot be converted",
                "save the model in float32, float16 or bfloat16 first",
            )
        item = ITEM_BYTES[dtype]
        try:
            with path.open("rb") as file:
                file.seek(offset + first * row * item)
                raw = file.read(count * row * item)
        except OSError as error:
            raise ModelInvalid(f"{path.name} cannot be read: {error.strerror}") from error
        if len(raw) != count * row * item:
            raise ModelInvalid(*_truncated(path))
        values = np.frombuffer(raw, dtype=np.dtype(kind).newbyteorder("<"))
        if dtype == "BF16":
            values = (values.astype(np.uint32) << 16).view(np.float32)
        return values.astype(np.float32, copy=False).reshape(count, *shape[1:])

    return read


def open_tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint folder, by its name in the file; safetensors before pickles."""
    if (folder / SINGLE).is_file():
        return read_header(folder / SINGLE)
    if (folder / INDEX).is_file():
        return _open_index(folder, INDEX, read_header)
    if (folder / PICKLE).is_file():
        return read_pickle(folder / PICKLE)
    if (folder / PICKLE_INDEX).is_file():
        return _open_index(folder, PICKLE_INDEX, read_pickle)
    raise ModelInvalid(
        f"{folder} holds no weights: neither {SINGLE} nor {INDEX}",
        "check that the download is complete",
    )


def _open_index(
    folder: Path, index_name: str, open_shard: Callable[[Path], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """All shards that the index names, checked against it in both directions."""
    places = read_json(folder / index_name).get("weight_map")
    if not isinstance(places, Mapping) or not places:
        raise ModelInvalid(f"{index_name} has no weight_map", "fetch the index again")
    tensors: dict[str, Tensor] = {}
    found: dict[str, str] = {}
    for shard in sorted({str(file) for file in places.values()}):
        if Path(shard).name != shard:
            raise ModelInvalid(f"{index_name} names the file {shard!r} outside of its folder")
        if not (folder / shard).is_file():
            raise ModelInvalid(
                f"shard {shard} is missing from {folder}", "fetch the missing file and try again"
            )
        for name, tensor in open_shard(folder / shard).items():
            if name in tensors:
                raise ModelInvalid(
                    f"tensor {name} is in both {found[name]} and {shard}",
                    "fetch the checkpoint again",
                )
            tensors[name], found[name] = tensor, shard
    for name, shard in places.items():
        if found.get(name) != shard:
            raise ModelInvalid(
                f"{index_name} says that {name} is in {shard}, but it is not",
                "the index and the shards are of different versions: fetch both again",
            )
    return tensors


def read_header(path: Path) -> dict[str, Tensor]:
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


def _tensor(path: Path, name: str, entry: Any, start: int, size: int) -> Tensor:
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
    read = _reader(path, name, dtype, shape, start + first)
    return Tensor(name, dtype, shape, read)


def _truncated(path: Path) -> tuple[str, str]:
    return f"{path.name} is cut off: it is shorter than its header says", "fetch it again"
