"""transformers' models with the numbers of `tiny_families`' GGUF files: an independent reference.

Takes the same ids (with the family's own token at each picture's places) and the picture's pixels,
which have the tower's size, so that nobody resizes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader

from tests import tiny_families as tiny

IMAGE, BREAK = tiny.CONTROLS.index("<image>"), tiny.CONTROLS.index("[IMG_BREAK]")
_TEXT = {
    "token_embd": "embed_tokens", "output_norm": "norm", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
}  # fmt: skip
_GEMMA = {
    "ffn_norm": "pre_feedforward_layernorm", "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm", "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
}  # fmt: skip
_SIGLIP = {
    "v.patch_embd": "embeddings.patch_embedding",
    "v.position_embd": "embeddings.position_embedding", "v.post_ln": "post_layernorm",
    "ln1": "layer_norm1", "ln2": "layer_norm2", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_out": "self_attn.out_proj", "ffn_up": "mlp.fc1", "ffn_down": "mlp.fc2",
}  # fmt: skip
_QWEN = {
    "v.post_ln": "merger.ln_q", "mm.0": "merger.mlp.0", "mm.2": "merger.mlp.2", "ln1": "norm1",
    "ln2": "norm2", "attn_out": "attn.proj", "ffn_up": "mlp.fc1", "ffn_down": "mlp.fc2",
}  # fmt: skip
_QWEN25 = _QWEN | {
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
_PIXTRAL = {
    "v.patch_embd": "patch_conv", "v.pre_ln": "ln_pre", "ln1": "attention_norm", "ln2": "ffn_norm",
    "attn_q": "attention.q_proj", "attn_k": "attention.k_proj", "attn_v": "attention.v_proj",
    "attn_out": "attention.o_proj", "ffn_gate": "feed_forward.gate_proj",
    "ffn_up": "feed_forward.up_proj", "ffn_down": "feed_forward.down_proj",
}  # fmt: skip


class Reference:
    """One family's model in transformers."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        text = _tensors(folder / f"{name}.gguf")
        tower = _tensors(folder / f"mmproj-{name}.gguf")
        makers = {"smolvlm": _smolvlm, "gemma3": _gemma3, "pixtral": _pixtral,
                  "qwen2vl": _qwen2vl, "qwen2.5vl": _qwen25vl}  # fmt: skip
        make = makers[name]
        self._model, weights = make(text, tower)
        weights["lm_head.weight"] = text["output.weight"]
        missing, unknown = self._model.load_state_dict(weights, strict=False)
        if unknown or any("head." not in key for key in missing):
            raise ValueError(f"missing {missing}, unknown {unknown}")

    def answer(
        self, ids: Sequence[int | None], pixels: np.ndarray[Any, Any], count: int
    ) -> tuple[list[int], Any]:
        """Greedy ids behind a prompt, and the first logits; None stands where a picture is."""
        full = [IMAGE if token is None else token for token in ids]
        if self.name == "pixtral":  # behind each row of patches but the last
            first, row = full.index(IMAGE), pixels.shape[1] // 8 + 1
            for place in range(first + row - 1, first + full.count(IMAGE), row):
                full[place] = BREAK
        given = self._inputs(full, pixels)
        with torch.no_grad():
            first = self._model(**given).logits[0, -1].numpy()
            out = self._model.generate(
                **given, max_new_tokens=count, do_sample=False, eos_token_id=None, pad_token_id=0
            )
        return out[0, len(full) :].tolist(), first

    def _inputs(self, ids: list[int], pixels: np.ndarray[Any, Any]) -> dict[str, Any]:
        """`pixels` uint8 (H, W, 3)."""
        normal = torch.from_numpy((pixels / 255 - 0.5) / 0.5).float().permute(2, 0, 1)  # (3, H, W)
        given: dict[str, Any] = {"input_ids": torch.tensor([ids])}
        is_image = (given["input_ids"] == IMAGE).int()
        if self.name == "smolvlm":  # the one tile and the whole picture are the same here
            given["pixel_values"] = normal.expand(1, 2, *normal.shape)
        elif self.name == "gemma3":
            given |= {"pixel_values": normal[None], "token_type_ids": is_image}
        elif self.name == "pixtral":
            sizes = torch.tensor([list(normal.shape[1:])])
            given |= {"pixel_values": normal[None], "image_sizes": sizes}
        else:
            rows, columns = (side // 14 for side in normal.shape[1:])
            blocks = normal.reshape(3, rows // 2, 2, 14, columns // 2, 2, 14)
            blocks = blocks.permute(1, 4, 2, 5, 0, 3, 6)[..., None, :, :]  # both frames are alike
            patches = blocks.expand(*blocks.shape[:5], 2, 14, 14).reshape(rows * columns, -1)
            given |= {"pixel_values": patches, "mm_token_type_ids": is_image,
                      "image_grid_thw": torch.tensor([[1, rows, columns]])}  # fmt: skip
        return given


def _sizes(words: int) -> dict[str, Any]:
    return {
        "hidden_size": tiny.HIDDEN, "intermediate_size": tiny.FFN, "num_hidden_layers": tiny.LAYERS,
        "num_attention_heads": tiny.HEADS, "num_key_value_heads": tiny.HEADS, "vocab_size": words,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
        "head_dim": tiny.HEAD,
    }  # fmt: skip


_TOWER = {
    "hidden_size": tiny.TOWER, "intermediate_size": tiny.TOWER_FFN, "num_attention_heads": 2,
    "num_hidden_layers": tiny.TOWER_LAYERS, "layer_norm_eps": 1e-6,
    "hidden_act": "gelu_pytorch_tanh",
}  # fmt: skip


def _smolvlm(text: Mapping[str, Any], tower: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration

    make: Any = Idefics3Config
    config = make(
        vision_config={**_TOWER, "image_size": 32, "patch_size": 8},
        text_config={"model_type": "llama", **_sizes(len(text["output.weight"]))},
        image_token_id=IMAGE, scale_factor=2, tie_word_embeddings=False, pad_token_id=0,
    )  # fmt: skip
    weights = _halves(_renamed(text, "model.text_model", _TEXT))
    weights |= _renamed(tower, "model.vision_model", _SIGLIP, "encoder.layers")
    weights["model.connector.modality_projection.proj.weight"] = tower["mm.model.fc.weight"]
    return Idefics3ForConditionalGeneration(config).eval(), weights


def _gemma3(text: Mapping[str, Any], tower: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    theta = {"rope_type": "default", "rope_theta": 10000.0}
    config = Gemma3Config(
        vision_config={**_TOWER, "image_size": 48, "patch_size": 8},
        text_config={
            **_sizes(len(text["output.weight"])), "query_pre_attn_scalar": tiny.HEAD,
            "sliding_window": 512,
            "rope_parameters": {"full_attention": theta, "sliding_attention": theta},
        },
        mm_tokens_per_image=9, image_token_index=IMAGE, tie_word_embeddings=False,
    )  # fmt: skip
    weights = _renamed(text, "model.language_model", _TEXT | _GEMMA)
    weights = {name: v - 1.0 if "norm" in name else v for name, v in weights.items()}
    weights |= _renamed(tower, "model.vision_tower", _SIGLIP, "encoder.layers")
    projector = "model.multi_modal_projector"
    weights[f"{projector}.mm_input_projection_weight"] = tower["mm.input_projection.weight"]
    weights[f"{projector}.mm_soft_emb_norm.weight"] = tower["mm.soft_emb_norm.weight"] - 1.0
    return Gemma3ForConditionalGeneration(config).eval(), weights


def _qwen2vl(text: Mapping[str, Any], tower: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    config = Qwen2VLConfig(
        vision_config={"depth": tiny.TOWER_LAYERS, "embed_dim": tiny.TOWER, "num_heads": 2,
                       "hidden_size": tiny.HIDDEN, "patch_size": 14,
                       "mlp_ratio": tiny.TOWER_FFN // tiny.TOWER},
        text_config=_qwen_text(text), tie_word_embeddings=False, image_token_id=IMAGE,
    )  # fmt: skip
    model = Qwen2VLForConditionalGeneration(config)
    return model.eval(), _qwen_weights(text, tower, _QWEN)


def _qwen25vl(text: Mapping[str, Any], tower: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    config = Qwen2_5_VLConfig(
        vision_config={"depth": tiny.TOWER_LAYERS, "hidden_size": tiny.TOWER, "num_heads": 2,
                       "intermediate_size": tiny.TOWER_FFN, "out_hidden_size": tiny.HIDDEN,
                       "patch_size": 14, "window_size": 112, "fullatt_block_indexes": [1]},
        text_config=_qwen_text(text), tie_word_embeddings=False, image_token_id=IMAGE,
    )  # fmt: skip
    model = Qwen2_5_VLForConditionalGeneration(config)
    return model.eval(), _qwen_weights(text, tower, _QWEN25)


def _qwen_text(text: Mapping[str, Any]) -> dict[str, Any]:
    sizes = _sizes(len(text["output.weight"]))
    del sizes["head_dim"]
    rope = {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10000.0}
    return {**sizes, "rope_parameters": rope}


def _qwen_weights(
    text: Mapping[str, Any], tower: Mapping[str, Any], names: Mapping[str, str]
) -> dict[str, Any]:
    weights = _renamed(text, "model.language_model", _TEXT)
    weights |= _renamed(tower, "model.visual", names, "blocks")
    both = [tower["v.patch_embd.weight"], tower["v.patch_embd.weight.1"]]
    weights["model.visual.patch_embed.proj.weight"] = torch.stack(both, dim=2)
    for layer in range(tiny.TOWER_LAYERS):
        for kind in ("weight", "bias"):
            parts = [tower[f"v.blk.{layer}.attn_{part}.{kind}"] for part in "qkv"]
            weights[f"model.visual.blocks.{layer}.attn.qkv.{kind}"] = torch.cat(parts)
    return weights


def _pixtral(text: Mapping[str, Any], tower: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    from transformers import (
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        PixtralVisionConfig,
    )

    config = LlavaConfig(
        vision_config=PixtralVisionConfig(
            hidden_size=tiny.TOWER, intermediate_size=tiny.TOWER_FFN, num_attention_heads=2,
            num_hidden_layers=tiny.TOWER_LAYERS, image_size=64, patch_size=8,
            hidden_act="silu",
        ),
        text_config=LlamaConfig(**_sizes(len(text["output.weight"]))),
        image_token_index=IMAGE, vision_feature_layer=-1, vision_feature_select_strategy="full",
        tie_word_embeddings=False,
    )  # fmt: skip
    weights = _halves(_renamed(text, "model.language_model", _TEXT))
    weights |= _halves(_renamed(tower, "model.vision_tower", _PIXTRAL, "transformer.layers"))
    for number in (1, 2):
        for kind in ("weight", "bias"):
            name = f"model.multi_modal_projector.linear_{number}.{kind}"
            weights[name] = tower[f"mm.{number}.{kind}"]
    return LlavaForConditionalGeneration(config).eval(), weights


def _halves(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Queries and keys for a rope that turns halves; llama.cpp's turns neighbours."""
    for name, values in weights.items():
        if "q_proj" in name or "k_proj" in name:
            pairs = values.reshape(tiny.HEADS, tiny.HEAD // 2, 2, -1)
            weights[name] = pairs.transpose(1, 2).reshape(values.shape)
    return weights


def _tensors(path: Path) -> dict[str, Any]:
    return {
        tensor.name: torch.from_numpy(np.array(tensor.data)) for tensor in GGUFReader(path).tensors
    }


def _renamed(
    tensors: Mapping[str, Any], prefix: str, names: Mapping[str, str], layers: str = "layers"
) -> dict[str, torch.Tensor]:
    """transformers' names, for those tensors that `names` knows."""
    found = {}
    for name, values in tensors.items():
        inner, _, kind = name.rpartition(".")
        block = re.fullmatch(r"(?:v\.)?blk\.(\d+)\.(\w+)", inner)
        if block and block[2] in names:
            found[f"{prefix}.{layers}.{block[1]}.{names[block[2]]}.{kind}"] = values
        elif not block and inner in names:
            found[f"{prefix}.{names[inner]}.{kind}"] = values
    return found
