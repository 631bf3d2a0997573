"""The text GGUF of a language model: its metadata and tensors.

Not here: tokens (`vocabulary.py`), names (`names.py`), types (`mixtures.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from gguf import GGUFWriter, RopeScalingType, size_label

from llava_cli import __version__
from llava_cli.engines.layouts.tensors import Array, Tensor, constant, each, permute
from llava_cli.errors import ModelInvalid
from llava_convert.checkpoints import Checkpoint, TextShape
from llava_convert.gguf_file import PlannedTensor
from llava_convert.mixtures import ModelTraits, OutType
from llava_convert.vocabulary import Vocabulary

ROPE_TYPES = ("default", "linear", "llama3")
TOOL = f"llava-cli {__version__}"
QUANTIZATION_VERSION = 2
"""GGML_QNT_VERSION."""


def plan_text(checkpoint: Checkpoint, tensors: Mapping[str, Tensor]) -> tuple[PlannedTensor, ...]:
    """The tensors of the text GGUF: embedding, blocks by number, head."""
    shape = checkpoint.text
    plan = [
        PlannedTensor(name, constant(name, values), full=True)
        for name, values in rope_tensors(shape).items()
    ]
    plan += [_planned(name, tensors[name], shape) for name in sorted(tensors, key=_order)]
    if shape.family.architecture == "phi2" and "output.bias" not in tensors:
        rows = tensors["token_embd.weight"].shape[0]
        plan.append(PlannedTensor("output.bias", constant("zeros", np.zeros(rows, np.float32))))
    return tuple(plan)


def traits(shape: TextShape, tensors: Mapping[str, Tensor], has_imatrix: bool) -> ModelTraits:
    """What the mixtures' rules ask."""
    grouped = shape.kv_heads < shape.heads
    return ModelTraits(
        layers=shape.layers,
        tied="output.weight" not in tensors,
        queries_per_key=shape.heads // shape.kv_heads,
        is_70b=shape.layers == 80
        and (shape.family.architecture == "qwen2" or (shape.family.permuted and grouped)),
        has_imatrix=has_imatrix,
    )


def text_header(
    checkpoint: Checkpoint, vocabulary: Vocabulary, wanted: OutType, name: str, parameters: int
) -> GGUFWriter:
    """Everything about the language model that a reader must know."""
    shape = checkpoint.text
    writer = GGUFWriter(None, shape.family.architecture)
    writer.add_type("model")
    writer.add_name(name)
    writer.add_size_label(size_label(parameters, parameters, 0, 0))
    add_facts(writer, checkpoint.source.facts)
    writer.add_block_count(shape.layers)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    if shape.family.architecture == "phi2":
        writer.add_layer_norm_eps(shape.eps)
    else:
        writer.add_layer_norm_rms_eps(shape.eps)
    writer.add_rope_dimension_count(shape.rotary)
    writer.add_rope_freq_base(shape.rope_theta)
    _add_rope_scaling(writer, shape)
    if shape.sliding_window is not None:
        writer.add_sliding_window(shape.sliding_window)
    writer.add_vocab_size(len(vocabulary.tokens))
    writer.add_file_type(wanted.file_type)
    writer.add_quantization_version(QUANTIZATION_VERSION)
    vocabulary.write(writer)
    if checkpoint.prompt_format is not None:
        writer.add_string("llava.prompt_format", checkpoint.prompt_format)
    return writer


def add_facts(writer: GGUFWriter, facts: Mapping[str, str]) -> None:
    """Where a file comes from: licence, base model, the tool that made it."""
    if facts.get("license"):
        writer.add_license(facts["license"])
    base = facts.get("base_model", "")
    if base:
        writer.add_base_model_count(1)
        writer.add_base_model_name(0, base.rpartition("/")[2])
        if base.count("/") == 1:
            writer.add_base_model_repo_url(0, f"https://huggingface.co/{base}")
    writer.add_string("llava.converter", TOOL)


def _add_rope_scaling(writer: GGUFWriter, shape: TextShape) -> None:
    kind = rope_type(shape)
    if kind == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(_rope_number(shape, "factor"))
    if kind == "longrope":
        writer.add_rope_scaling_attn_factors(_long_attention(shape))
    if shape.family.architecture == "phi3":
        writer.add_rope_scaling_orig_ctx_len(shape.trained_context)


def _long_attention(shape: TextShape) -> float:
    """By how much longrope scales sines and cosines."""
    given = shape.rope.get("attention_factor")
    if isinstance(given, (int, float)):
        return float(given)
    scale = shape.context / shape.trained_context
    return math.sqrt(1 + math.log(scale) / math.log(shape.trained_context)) if scale > 1 else 1.0


def rope_type(shape: TextShape) -> str:
    """How positions beyond the trained context are scaled: default, linear or llama3."""
    kind = str(shape.rope.get("rope_type") or shape.rope.get("type") or "default")
    known = ("default", "longrope") if shape.family.architecture == "phi3" else ROPE_TYPES
    if kind not in known:
        raise ModelInvalid(
            f"rope scaling {kind!r} cannot be converted yet", f"known: {', '.join(known)}"
        )
    return kind


def rope_tensors(shape: TextShape) -> dict[str, Array]:
    """Divisors of the rope frequencies, (rotary / 2,), by GGUF's names; empty for most models."""
    kind = rope_type(shape)
    if kind == "llama3":
        return {"rope_freqs.weight": _llama3_factors(shape)}
    if kind != "longrope":
        return {}
    factors: dict[str, Array] = {}
    for key in ("long", "short"):
        values = shape.rope.get(f"{key}_factor")
        if not isinstance(values, list) or len(values) != shape.rotary // 2:
            raise ModelInvalid(
                f"{key}_factor in rope_parameters is not a list of {shape.rotary // 2} numbers"
            )
        factors[f"rope_factors_{key}.weight"] = np.array(values, np.float32)
    return factors


def _llama3_factors(shape: TextShape) -> Array:
    """Llama 3.1's: slow frequencies are divided, fast ones kept, those between blended.

    In float32, step by step as llama.cpp's converter computes them, so that the bits are the same.
    """
    one, factor = np.float32(1), np.float32(_rope_number(shape, "factor"))
    low, high = _rope_number(shape, "low_freq_factor"), _rope_number(shape, "high_freq_factor")
    trained = _rope_number(shape, "original_max_position_embeddings")
    steps = np.arange(0, shape.rotary, 2, dtype=np.float32) / np.float32(shape.rotary)
    frequencies = one / (shape.rope_theta ** steps.astype(np.float64)).astype(np.float32)
    wavelengths = np.float32(2 * math.pi) / frequencies
    smooth = (np.float32(trained) / wavelengths - np.float32(low)) / np.float32(high - low)
    between = one / ((one - smooth) / factor + smooth)
    divisors = np.where(wavelengths > np.float32(trained / low), factor, between)
    return np.where(wavelengths < np.float32(trained / high), one, divisors).astype(np.float32)


def _rope_number(shape: TextShape, key: str) -> float:
    value = shape.rope.get(key)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or value <= 0:
        raise ModelInvalid(f"{key} in rope_parameters is {value!r}, not a positive number")
    return float(value)


def _planned(name: str, tensor: Tensor, shape: TextShape) -> PlannedTensor:
    """q and k in the order that llama.cpp's rope wants; the rest as it is."""
    if not shape.family.permuted or name.split(".")[-2] not in ("attn_q", "attn_k"):
        return PlannedTensor(name, tensor)
    head = shape.head_dim
    if head % tensor.unit:  # made from a whole tensor: let it be read in one piece
        head = tensor.shape[0]
    ordered = each(tensor, lambda rows: permute(rows, rows.shape[0] // shape.head_dim))
    return PlannedTensor(name, replace(ordered, unit=head))


def _order(name: str) -> tuple[int, int, str]:
    """Embedding first, blocks by number, the rest behind."""
    pieces = name.split(".")
    if pieces[0] == "blk":
        return 1, int(pieces[1]), name
    return (0 if name.startswith("token_embd") else 2), 0, name
