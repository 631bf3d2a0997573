"""Token ids as the rows of numbers that a model looks up itself, to be read with a picture's rows.

llama.cpp takes a batch of ids or a batch of rows. Read apart, the few words around a picture cost
far more each than its rows: every batch unpacks all weights, and counts in sixteens.

Only for models whose first step is nothing but the look-up. Legend: N ids, D embedding width.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from llava_cli.engines.gguf.binding import ggml_base
from llava_cli.models.gguf_header import BF16, BLOCKS, F16, F32, GGUFHeader

Rows = npt.NDArray[np.float32]
_PLAIN = ("llama", "qwen2")
"""Architectures that do nothing else to a token's row; LLaVA's are of these."""
_NAME = "token_embd.weight"


class Embeddings:
    """The table of one model, left where it lies in the file."""

    def __init__(self, header: GGUFHeader) -> None:
        """Raises KeyError or AttributeError where the table is not there, or of another kind."""
        info = header.tensors[_NAME]
        self._width = info.shape[0]
        values, size = BLOCKS[info.type]
        self._convert = _converter(info.type)
        row = self._width // values * size
        shape = (info.shape[1], row)
        self._table = np.memmap(header.path, np.uint8, "r", info.offset, shape)

    def __call__(self, ids: Sequence[int]) -> Rows:
        """(N, D)"""
        packed = np.ascontiguousarray(self._table[list(ids)])
        rows = np.empty((len(ids), self._width), np.float32)
        self._convert(packed.ctypes.data, rows.ctypes.data, rows.size)
        return rows


def embeddings_of(header: GGUFHeader) -> Embeddings | None:
    """The look-up of a model; None where it cannot be done here."""
    kind = header.architecture
    if kind not in _PLAIN or header.metadata.get(f"{kind}.embedding_scale"):
        return None
    try:
        return Embeddings(header)
    except (KeyError, AttributeError, OSError, ValueError):
        return None


def _converter(kind: int) -> Callable[[int, int, int], object]:
    """ggml's own: (packed values, float32 values, how many)."""
    if kind == F32:
        return lambda source, target, count: ctypes.memmove(target, source, 4 * count)
    ggml = ggml_base()
    names = {F16: "ggml_fp16_to_fp32_row", BF16: "ggml_bf16_to_fp32_row"}
    ggml.ggml_type_name.restype, ggml.ggml_type_name.argtypes = ctypes.c_char_p, [ctypes.c_int]
    name = names.get(kind) or f"dequantize_row_{ggml.ggml_type_name(kind).decode()}"
    function = getattr(ggml, name)
    function.restype = None
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    return function
