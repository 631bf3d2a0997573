"""Families of language models as data: what config.json leaves out, tensors, llama.cpp's name.

One entry a family that LLaVA models use. Not here: values and checks (`llava_convert`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Rule:
    """One kind of tensor."""

    source: str
    """llava-hf's name; {n} is the layer."""
    target: str
    """GGUF's name."""
    shape: str
    """Dimensions in torch's order, by names to which the converter gives sizes."""
    when: str = ""
    """A flag of the model that must be set for it."""


@dataclass(frozen=True)
class Family:
    """One kind of language model."""

    architecture: str
    """llama.cpp's name."""
    defaults: Mapping[str, Any]
    """What transformers assumes where config.json is silent."""
    rules: tuple[Rule, ...]
    permuted: bool = False
    """llama.cpp's rope turns neighbours, transformers' turns halves: rows of q and k move."""
    activations: tuple[str, ...] = ("silu", "swish")


_LAYER = "language_model.model.layers.{n}."
_COMMON = (
    Rule("language_model.model.embed_tokens.weight", "token_embd.weight", "vocab hidden"),
    Rule("language_model.lm_head.weight", "output.weight", "vocab hidden"),
    Rule(_LAYER + "input_layernorm.weight", "blk.{n}.attn_norm.weight", "hidden"),
)
_RMS = (
    Rule("language_model.model.norm.weight", "output_norm.weight", "hidden"),
    Rule(_LAYER + "post_attention_layernorm.weight", "blk.{n}.ffn_norm.weight", "hidden"),
    Rule(_LAYER + "mlp.down_proj.weight", "blk.{n}.ffn_down.weight", "hidden ffn"),
    Rule(_LAYER + "self_attn.o_proj.weight", "blk.{n}.attn_output.weight", "hidden q"),
)
_QKV = tuple(
    Rule(f"{_LAYER}self_attn.{x}_proj.weight", f"blk.{{n}}.attn_{x}.weight", f"{rows} hidden")
    for x, rows in (("q", "q"), ("k", "kv"), ("v", "kv"))
)
_QKV_BIAS = tuple(
    Rule(f"{_LAYER}self_attn.{x}_proj.bias", f"blk.{{n}}.attn_{x}.bias", rows, "attention_bias")
    for x, rows in (("q", "q"), ("k", "kv"), ("v", "kv"))
)
_GATED = (
    Rule(_LAYER + "mlp.gate_proj.weight", "blk.{n}.ffn_gate.weight", "ffn hidden"),
    Rule(_LAYER + "mlp.up_proj.weight", "blk.{n}.ffn_up.weight", "ffn hidden"),
)
LLAMA_RULES = (
    *_COMMON, *_RMS, *_QKV, *_QKV_BIAS, *_GATED,
    Rule(_LAYER + "self_attn.o_proj.bias", "blk.{n}.attn_output.bias", "hidden", "attention_bias"),
    Rule(_LAYER + "mlp.gate_proj.bias", "blk.{n}.ffn_gate.bias", "ffn", "mlp_bias"),
    Rule(_LAYER + "mlp.up_proj.bias", "blk.{n}.ffn_up.bias", "ffn", "mlp_bias"),
    Rule(_LAYER + "mlp.down_proj.bias", "blk.{n}.ffn_down.bias", "hidden", "mlp_bias"),
)  # fmt: skip
QWEN2_RULES = (*_COMMON, *_RMS, *_QKV, *_QKV_BIAS, *_GATED)
PHI3_RULES = (
    *_COMMON, *_RMS,
    Rule(_LAYER + "self_attn.qkv_proj.weight", "blk.{n}.attn_qkv.weight", "qkv hidden"),
    Rule(_LAYER + "mlp.gate_up_proj.weight", "blk.{n}.ffn_up.weight", "ffn2 hidden"),
)  # fmt: skip
PHI_RULES = (
    *_COMMON, *_QKV, *_QKV_BIAS,
    Rule("language_model.lm_head.bias", "output.bias", "vocab"),
    Rule("language_model.model.final_layernorm.weight", "output_norm.weight", "hidden"),
    Rule("language_model.model.final_layernorm.bias", "output_norm.bias", "hidden"),
    Rule(_LAYER + "input_layernorm.bias", "blk.{n}.attn_norm.bias", "hidden"),
    Rule(_LAYER + "self_attn.dense.weight", "blk.{n}.attn_output.weight", "hidden q"),
    Rule(_LAYER + "self_attn.dense.bias", "blk.{n}.attn_output.bias", "hidden"),
    Rule(_LAYER + "mlp.fc1.weight", "blk.{n}.ffn_up.weight", "ffn hidden"),
    Rule(_LAYER + "mlp.fc1.bias", "blk.{n}.ffn_up.bias", "ffn"),
    Rule(_LAYER + "mlp.fc2.weight", "blk.{n}.ffn_down.weight", "hidden ffn"),
    Rule(_LAYER + "mlp.fc2.bias", "blk.{n}.ffn_down.bias", "hidden"),
)  # fmt: skip

LLAMA_DEFAULTS: dict[str, Any] = {
    "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6,
    "hidden_act": "silu", "attention_bias": False, "mlp_bias": False,
    "tie_word_embeddings": False,
}  # fmt: skip
MISTRAL_DEFAULTS: dict[str, Any] = {
    **LLAMA_DEFAULTS, "intermediate_size": 14336, "num_key_value_heads": 8,
    "max_position_embeddings": 131072, "sliding_window": 4096,
}  # fmt: skip
QWEN2_DEFAULTS: dict[str, Any] = {
    **LLAMA_DEFAULTS, "intermediate_size": 22016, "num_key_value_heads": 32,
    "max_position_embeddings": 32768, "attention_bias": True, "use_sliding_window": False,
    "sliding_window": 4096,
}  # fmt: skip
PHI3_DEFAULTS: dict[str, Any] = {
    **LLAMA_DEFAULTS, "hidden_size": 3072, "intermediate_size": 8192, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 4096, "original_max_position_embeddings": 4096,
}  # fmt: skip
PHI_DEFAULTS: dict[str, Any] = {
    **LLAMA_DEFAULTS, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24,
    "layer_norm_eps": 1e-5, "hidden_act": "gelu_new", "attention_bias": True,
    "partial_rotary_factor": 0.5, "qk_layernorm": False,
}  # fmt: skip

FAMILIES: dict[str, Family] = {
    "llama": Family("llama", LLAMA_DEFAULTS, LLAMA_RULES, permuted=True),
    "mistral": Family("llama", MISTRAL_DEFAULTS, LLAMA_RULES, permuted=True),
    "qwen2": Family("qwen2", QWEN2_DEFAULTS, QWEN2_RULES),
    "phi3": Family("phi3", PHI3_DEFAULTS, PHI3_RULES),
    "phi": Family(
        "phi2", PHI_DEFAULTS, PHI_RULES,
        activations=("gelu_new", "gelu_fast", "gelu_pytorch_tanh"),
    ),
}  # fmt: skip
"""By transformers' model_type."""
