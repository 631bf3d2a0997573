"""Tensors of torch's .bin files, which are pickles, without ever running what is in them.

torch's own restricted reader (`weights_only`) takes tensors and plain containers and refuses every
other class; the values stay on the disk until they are asked for. Needs torch, which only people
with such files must have.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from llava_cli.engines.layouts.tensors import Array, Read, Tensor
from llava_cli.errors import MissingDependency, ModelInvalid

if TYPE_CHECKING:
    import torch

DTYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
"""torch's names -> safetensors'."""
CONTAINERS = ("state_dict", "model", "module")
"""Where some trainers put the tensors inside of the file's dictionary."""


def read_pickle(path: Path) -> dict[str, Tensor]:
    """The tensors of one .bin file."""
    loaded = _load(path)
    for key in CONTAINERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping) or not loaded:
        raise ModelInvalid(f"{path.name} holds no tensors by name", "it is not a model's file")
    tensors: dict[str, Tensor] = {}
    for name, value in loaded.items():
        if not hasattr(value, "untyped_storage"):
            raise ModelInvalid(f"{path.name} holds {name!r}, which is not a tensor")
        dtype = str(value.dtype).removeprefix("torch.")
        kind = DTYPES.get(dtype, dtype)
        tensors[str(name)] = Tensor(
            str(name), kind, tuple(value.shape), _reader(str(name), value, dtype)
        )
    return tensors


def _reader(name: str, value: torch.Tensor, dtype: str) -> Read:
    def read(first: int, count: int) -> Array:
        if dtype not in DTYPES:
            raise ModelInvalid(
                f"tensor {name} is stored as {dtype}, which cannot be converted",
                "save the model in float32, float16 or bfloat16 first",
            )
        rows = value[first : first + count] if value.dim() else value.reshape(1)
        return cast(Array, rows.detach().float().contiguous().numpy())

    return read


def _load(path: Path) -> Any:
    try:
        import torch
    except ImportError as error:
        raise MissingDependency(
            f"{path.name} is a torch file, and torch is not installed",
            "pip install 'llava-cli[torch]', or get the model's safetensors files",
        ) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks on old pickles, which are refused below
            try:
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError as error:
                if "mmap" not in str(error):
                    raise
                return torch.load(path, map_location="cpu", weights_only=True)  # before torch 1.6
    except pickle.UnpicklingError as error:
        raise ModelInvalid(
            f"{path.name} holds more than tensors: reading it could run foreign code",
            "get the model as safetensors, from someone you trust",
        ) from error
    except (RuntimeError, ValueError, EOFError, OSError, KeyError, AttributeError) as error:
        raise ModelInvalid(
            f"{path.name} is cut off or is no torch file", "fetch it again"
        ) from error
