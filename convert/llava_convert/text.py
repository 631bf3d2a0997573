"""The text GGUF of a Llama or Mistral language model: its metadata and tensors.

Not here: tokens (`vocabulary.py`), names (`names.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
from gguf import GGUFWriter, RopeScalingType, size_label

from llava_cli.errors import ModelInvalid
from llava_convert.checkpoints import Checkpoint, TextShape
from llava_convert.gguf_file import PlannedTensor
from llava_convert.quantize import OutType
from llava_convert.shards import Array, SourceTensor
from llava_convert.vocabulary import Vocabulary

ARCHITECTURE = "llama"
QUANTIZATION_VERSION = 2
"""GGML_QNT_VERSION."""


def plan_text(
    checkpoint: Checkpoint, tensors: Mapping[str, SourceTensor]
) -> tuple[PlannedTensor, ...]:
    """The tensors of the text GGUF: embedding, blocks by number, head."""
    shape = checkpoint.text
    plan = [_planned(name, tensors[name], shape) for name in sorted(tensors, key=_order)]
    factors = rope_factors(shape)
    if factors is not None:
        plan.insert(0, PlannedTensor("rope_freqs.weight", factors.shape, "rope_parameters",
                                     lambda: iter((factors,)), full=True))  # fmt: skip
    return tuple(plan)


def text_header(
    checkpoint: Checkpoint, vocabulary: Vocabulary, wanted: OutType, name: str, parameters: int
) -> GGUFWriter:
    """Everything about the language model that a reader must know."""
    shape = checkpoint.text
    writer = GGUFWriter(None, ARCHITECTURE)
    writer.add_type("model")
    writer.add_name(name)
    writer.add_size_label(size_label(parameters, parameters, 0, 0))
    writer.add_block_count(shape.layers)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_layer_norm_rms_eps(shape.rms_eps)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_theta)
    if rope_type(shape) == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(_rope_number(shape, "factor"))
    writer.add_vocab_size(len(vocabulary.tokens))
    writer.add_file_type(wanted.file_type)
    writer.add_quantization_version(QUANTIZATION_VERSION)
    vocabulary.write(writer)
    if checkpoint.prompt_format is not None:
        writer.add_string("llava.prompt_format", checkpoint.prompt_format)
    return writer


def permute(values: Array, heads: int) -> Array:
    """Rows of q or k from transformers' order (halves) to that of llama.cpp's rope (pairs).

    (heads * 2 * head_dim / 2, ...) -> the two halves of each head interleaved.
    """
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)


def rope_type(shape: TextShape) -> str:
    """How positions beyond the trained context are scaled: default, linear or llama3."""
    kind = str(shape.rope.get("rope_type") or shape.rope.get("type") or "default")
    if kind not in ("default", "linear", "llama3"):
        raise ModelInvalid(
            f"rope scaling {kind!r} cannot be converted yet", "known: default, linear, llama3"
        )
    return kind


def rope_factors(shape: TextShape) -> Array | None:
    """Llama 3.1's divisors of the rope frequencies, (head_dim / 2,); None for other models."""
    if rope_type(shape) != "llama3":
        return None
    factor = _rope_number(shape, "factor")
    low, high = _rope_number(shape, "low_freq_factor"), _rope_number(shape, "high_freq_factor")
    trained = _rope_number(shape, "original_max_position_embeddings")
    steps = np.arange(0, shape.head_dim, 2, dtype=np.float32) / np.float32(shape.head_dim)
    wavelengths = 2 * math.pi * np.float64(shape.rope_theta) ** steps.astype(np.float64)
    smooth = (trained / wavelengths - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    divisors = np.where(wavelengths > trained / low, factor, between)
    return np.where(wavelengths < trained / high, 1.0, divisors).astype(np.float32)


def _rope_number(shape: TextShape, key: str) -> float:
    value = shape.rope.get(key)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or value <= 0:
        raise ModelInvalid(f"{key} in rope_parameters is {value!r}, not a positive number")
    return float(value)


def _planned(name: str, tensor: SourceTensor, shape: TextShape) -> PlannedTensor:
    heads = {"attn_q": shape.heads, "attn_k": shape.kv_heads}.get(name.split(".")[-2])
    if heads is None:
        return PlannedTensor(name, tensor.shape, tensor.name, tensor.chunks)

    def permuted() -> Iterator[Array]:
        yield permute(tensor.array(), heads)

    return PlannedTensor(name, tensor.shape, tensor.name, permuted)


def _order(name: str) -> tuple[int, int, str]:
    """Embedding first, blocks by number, the rest behind."""
    pieces = name.split(".")
    if pieces[0] == "blk":
        return 1, int(pieces[1]), name
    return (0 if name.startswith("token_embd") else 2), 0, name
