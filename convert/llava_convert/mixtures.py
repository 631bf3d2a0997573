"""Which type every tensor of a text GGUF gets: llama.cpp's mixtures, as data and three rules.

A mixture names a default type and stores what suffers most more precisely: the head, values of the
attention, the matrix behind the FFN. The rules are those of `llama_model_quantize` for dense models
(llama-quant.cpp of llama.cpp 0c1e57098), so that the files are equal byte by byte.

Not here: the bytes themselves (`ggml.py`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from gguf import LlamaFileType

from llava_cli.errors import UsageError
from llava_convert.ggml import Kind, fits


@dataclass(frozen=True)
class OutType:
    """What a person asks for; single tensors may still be stored wider."""

    label: str
    """In file names."""
    kind: Kind
    file_type: LlamaFileType


_FILE = LlamaFileType
OUTTYPES: dict[str, OutType] = {
    kind.label.lower(): kind
    for kind in (
        OutType("F32", Kind.F32, _FILE.ALL_F32),
        OutType("F16", Kind.F16, _FILE.MOSTLY_F16),
        OutType("BF16", Kind.BF16, _FILE.MOSTLY_BF16),
        OutType("Q8_0", Kind.Q8_0, _FILE.MOSTLY_Q8_0),
        OutType("Q6_K", Kind.Q6_K, _FILE.MOSTLY_Q6_K),
        OutType("Q5_K_M", Kind.Q5_K, _FILE.MOSTLY_Q5_K_M),
        OutType("Q5_K_S", Kind.Q5_K, _FILE.MOSTLY_Q5_K_S),
        OutType("Q4_K_M", Kind.Q4_K, _FILE.MOSTLY_Q4_K_M),
        OutType("Q4_K_S", Kind.Q4_K, _FILE.MOSTLY_Q4_K_S),
        OutType("Q4_0", Kind.Q4_0, _FILE.MOSTLY_Q4_0),
        OutType("Q3_K_M", Kind.Q3_K, _FILE.MOSTLY_Q3_K_M),
        OutType("Q2_K", Kind.Q2_K, _FILE.MOSTLY_Q2_K),
    )
}
"""By the name on the command line."""
MMPROJ_OUTTYPES = ("f32", "f16", "bf16", "q8_0")
"""Types that a vision tower bears; K-quants ruin it."""
FLOATS = (Kind.F32, Kind.F16, Kind.BF16)

FALLBACKS = {
    Kind.Q2_K: Kind.Q4_0,
    Kind.Q3_K: Kind.Q4_0,
    Kind.Q4_K: Kind.Q5_0,
    Kind.Q5_K: Kind.Q5_1,
    Kind.Q6_K: Kind.Q8_0,
}
"""For rows that do not divide into blocks of 256; F16 where not even 32 fits."""


@dataclass(frozen=True)
class ModelTraits:
    """What the rules ask about a model."""

    layers: int
    tied: bool
    """No `output.weight`: the embedding is the head."""
    queries_per_key: int
    """Heads that share one key head."""
    is_70b: bool
    """80 layers with shared keys, whose small values matrix llama.cpp stores more precisely."""
    has_imatrix: bool = False


Rule = Callable[[int, ModelTraits], Kind | None]
"""Layer and model -> another type than the default, or None."""


def _more_bits(layer: int, model: ModelTraits) -> bool:
    """The first and last eighth of the layers, and every third between."""
    eighth = model.layers // 8
    return layer < eighth or layer >= 7 * model.layers // 8 or (layer - eighth) % 3 == 2


def _some_more(kind: Kind) -> Rule:
    return lambda layer, model: kind if _more_bits(layer, model) else None


def _always(kind: Kind) -> Rule:
    return lambda _layer, _model: kind


ATTENTION_V: Mapping[LlamaFileType, Rule] = {
    _FILE.MOSTLY_Q2_K: lambda _, model: Kind.Q4_K if model.queries_per_key >= 4 else Kind.Q3_K,
    _FILE.MOSTLY_Q3_K_M: lambda layer, _: Kind.Q5_K if layer < 2 else Kind.Q4_K,
    _FILE.MOSTLY_Q4_K_S: lambda layer, _: Kind.Q5_K if layer < 4 else None,
    _FILE.MOSTLY_Q4_K_M: _some_more(Kind.Q6_K),
    _FILE.MOSTLY_Q5_K_M: _some_more(Kind.Q6_K),
}
FFN_DOWN: Mapping[LlamaFileType, Rule] = {
    _FILE.MOSTLY_Q2_K: _always(Kind.Q3_K),
    _FILE.MOSTLY_Q3_K_M: lambda n, model: Kind.Q5_K if n < model.layers // 16 else Kind.Q4_K,
    _FILE.MOSTLY_Q4_K_S: lambda n, model: Kind.Q5_K if n < model.layers // 8 else None,
    _FILE.MOSTLY_Q4_K_M: _some_more(Kind.Q6_K),
    _FILE.MOSTLY_Q5_K_M: _some_more(Kind.Q6_K),
    _FILE.MOSTLY_Q4_0: lambda n, model: (
        Kind.Q4_1 if model.has_imatrix and n < model.layers // 8 else None
    ),
}
ATTENTION_OUT: Mapping[LlamaFileType, Rule] = {
    _FILE.MOSTLY_Q2_K: _always(Kind.Q3_K),
    _FILE.MOSTLY_Q3_K_M: _always(Kind.Q4_K),
}
CATEGORIES: tuple[tuple[str, Mapping[LlamaFileType, Rule]], ...] = (
    ("attn_qkv.weight", ATTENTION_V),
    ("attn_v.weight", ATTENTION_V),
    ("attn_output.weight", ATTENTION_OUT),
    ("ffn_down.weight", FFN_DOWN),
)
"""Endings of names, and the rules that hold for them."""

_BLOCK = re.compile(r"blk\.(\d+)\.")


def outtype(name: str, known: Iterable[str] = tuple(OUTTYPES)) -> OutType:
    """An output type by its name on the command line."""
    if name.lower() not in known:
        raise UsageError(f"unknown output type {name!r}", f"known: {', '.join(known)}")
    return OUTTYPES[name.lower()]


def tensor_kind(wanted: OutType, shape: tuple[int, ...], *, full: bool) -> Kind:
    """The type without a mixture: norms, biases and what is marked `full` are always float32."""
    if full or len(shape) < 2:
        return Kind.F32
    return wanted.kind if fits(wanted.kind, shape) else Kind.F16


def mixed_kind(wanted: OutType, name: str, shape: tuple[int, ...], model: ModelTraits) -> Kind:
    """The type that a tensor of the language model gets in a mixture."""
    if len(shape) < 2 or not name.endswith("weight") or "_norm.weight" in name:
        return Kind.F32
    if wanted.kind in FLOATS:
        return wanted.kind
    return _fallback(_chosen(wanted, name, shape, model), shape)


def _chosen(wanted: OutType, name: str, shape: tuple[int, ...], model: ModelTraits) -> Kind:
    if name == "output.weight" or (model.tied and name == "token_embd.weight"):
        if wanted.kind == Kind.Q8_0 or not fits(wanted.kind, shape):
            return Kind.Q8_0
        return Kind.Q6_K
    block = _BLOCK.match(name)
    layer = int(block.group(1)) if block else 0
    for ending, rules in CATEGORIES:
        if not name.endswith(ending):
            continue
        rule = rules.get(wanted.file_type)
        kind = (rule(layer, model) if rule else None) or wanted.kind
        if rules is ATTENTION_V and model.is_70b and kind in (Kind.Q3_K, Kind.Q4_K):
            return Kind.Q5_K
        return kind
    return wanted.kind


def _fallback(kind: Kind, shape: tuple[int, ...]) -> Kind:
    """A type whose blocks divide the rows."""
    if fits(kind, shape):
        return kind
    smaller = FALLBACKS.get(kind, kind)
    return smaller if fits(smaller, shape) else Kind.F16
