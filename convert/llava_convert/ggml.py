"""ggml's own functions that turn float32 rows into a tensor type, called from many threads.

They come from the library inside llama-cpp-python, so that the bytes are those that
`llama_model_quantize` writes; Q4_K is made to the same bytes by `q4_k.py`. Every row is independent
of the others, and a call leaves Python's lock: rows are quantised side by side. Not here: which
type a tensor gets (`mixtures.py`).
"""

from __future__ import annotations

import ctypes
import functools
import math
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from llava_cli.errors import ModelInvalid
from llava_convert import q4_k

Array = npt.NDArray[np.float32]
Kind = GGMLQuantizationType

_HALF = 65519.0
"""Beyond it a value rounds to infinity in float16."""
LARGEST = {
    Kind.F16: _HALF,
    Kind.BF16: 3.39e38,
    Kind.Q8_0: 127 * _HALF,
    Kind.Q5_0: 16 * _HALF,
    Kind.Q4_0: 8 * _HALF,
    Kind.Q5_1: _HALF,
    Kind.Q4_1: _HALF,
    Kind.Q6_K: 128 * 32 * _HALF,
    Kind.Q5_K: 63 * _HALF,
    Kind.Q4_K: 63 * _HALF,
    Kind.Q3_K: 32 * 4 * _HALF,
    Kind.Q2_K: 15 * _HALF,
}
"""The largest magnitude that a type holds for certain: block scales and minima are float16."""


def kind_bytes(kind: Kind, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor on the disk."""
    block, size = GGML_QUANT_SIZES[kind]
    return math.prod(shape) // block * size


def fits(kind: Kind, shape: tuple[int, ...]) -> bool:
    """Whether rows divide into the type's blocks."""
    return shape[-1] % GGML_QUANT_SIZES[kind][0] == 0


def peak_of(values: Array, name: str) -> float:
    """The largest magnitude; NaN and infinity are an error that names the tensor."""
    if not values.size:
        return 0.0
    peak = max(abs(float(values.max())), abs(float(values.min())))  # NaN wins in both
    if not math.isfinite(peak):
        raise ModelInvalid(
            f"tensor {name} holds NaN or infinite values",
            "the checkpoint is damaged: fetch it again",
        )
    return peak


def encode(
    values: Array, kind: Kind, name: str, *, peak: float | None = None, weights: Array | None = None
) -> npt.NDArray[np.uint8]:
    """Whole rows in the given type, as bytes; a value that it cannot hold is an error.

    `weights` is how much each column matters, (columns,), from an importance matrix.
    """
    peak = peak_of(values, name) if peak is None else peak
    if peak > LARGEST.get(kind, peak):
        raise ModelInvalid(
            f"tensor {name} holds values beyond the range of {kind.name}", "convert to f32"
        )
    rows = np.ascontiguousarray(values, np.float32)
    if kind == Kind.F32:
        return rows.reshape(-1).view(np.uint8)
    if kind == Kind.Q4_K and weights is None:
        return _quick_q4_k()(rows)
    return _ggml_encode(rows, kind, name, weights)


def _ggml_encode(
    rows: Array, kind: Kind, name: str, weights: Array | None = None
) -> npt.NDArray[np.uint8]:
    """By ggml's own function."""
    columns = rows.shape[-1] if rows.ndim else 1
    count = rows.size // max(columns, 1)
    out = np.empty(kind_bytes(kind, rows.shape), np.uint8)
    used = _quantize()(
        int(kind), rows.ctypes.data, out.ctypes.data, 0, count, columns,
        None if weights is None else weights.ctypes.data,
    )  # fmt: skip
    if used != out.nbytes:
        raise ModelInvalid(f"ggml wrote {used} bytes of tensor {name}, not {out.nbytes}")
    return out


@functools.cache
def _quick_q4_k() -> q4_k.Quantize:
    return q4_k.encoder(lambda values: _ggml_encode(values.reshape(-1, 256), Kind.Q4_K, "Q4_K"))


@functools.cache
def _quantize() -> Any:
    """ggml_quantize_chunk(type, source, target, start, rows, columns, weights) -> bytes."""
    from llava_cli.engines.gguf.binding import ggml_base

    function = ggml_base().ggml_quantize_chunk
    function.restype = ctypes.c_size_t
    function.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64,
        ctypes.c_int64, ctypes.c_void_p,
    ]  # fmt: skip
    return function
