"""Types of tensors in a GGUF: which one a tensor gets, how many bytes it takes, its bytes.

Not here: which tensors there are (`text.py`, `mmproj.py`), the file around them (`gguf_file.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType
from gguf.quants import quantize

from llava_cli.errors import ModelInvalid, UsageError
from llava_convert.shards import Array

Kind = GGMLQuantizationType

LARGEST = {Kind.F16: 65519.0, Kind.BF16: 3.39e38, Kind.Q8_0: 127 * 65519.0}
"""Beyond it a value rounds to infinity; a block of Q8_0 has a float16 scale."""


@dataclass(frozen=True)
class OutType:
    """What a person asks for; single tensors may still be stored wider."""

    label: str
    """In file names."""
    kind: Kind
    file_type: LlamaFileType


OUTTYPES = {
    "f32": OutType("F32", Kind.F32, LlamaFileType.ALL_F32),
    "f16": OutType("F16", Kind.F16, LlamaFileType.MOSTLY_F16),
    "bf16": OutType("BF16", Kind.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": OutType("Q8_0", Kind.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}
FALLBACK = Kind.F16
"""For rows that do not divide into blocks, as llama.cpp's converter does."""


def outtype(name: str) -> OutType:
    """An output type by its name on the command line."""
    try:
        return OUTTYPES[name.lower()]
    except KeyError:
        raise UsageError(f"unknown output type {name!r}", f"known: {', '.join(OUTTYPES)}") from None


def tensor_kind(wanted: OutType, shape: tuple[int, ...], *, full: bool) -> Kind:
    """The type one tensor gets: norms, biases and what is marked `full` are always float32."""
    if full or len(shape) < 2:
        return Kind.F32
    block, _ = GGML_QUANT_SIZES[wanted.kind]
    return FALLBACK if shape[-1] % block else wanted.kind


def kind_bytes(kind: Kind, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor on the disk."""
    block, size = GGML_QUANT_SIZES[kind]
    return math.prod(shape) // block * size


def encode(values: Array, kind: Kind, name: str) -> npt.NDArray[np.generic]:
    """Rows of a tensor in the given type; a value that it cannot hold is an error."""
    peak = float(np.abs(values).max(initial=0.0))
    if not np.isfinite(peak):
        raise ModelInvalid(
            f"tensor {name} holds NaN or infinite values",
            "the checkpoint is damaged: fetch it again",
        )
    if peak > LARGEST.get(kind, peak):
        raise ModelInvalid(
            f"tensor {name} holds values beyond the range of {kind.name}", "convert to f32"
        )
    return quantize(np.ascontiguousarray(values), kind)
