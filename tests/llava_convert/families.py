"""Tiny random checkpoints of every family of language models and towers, by transformers itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

SIZES: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3,
}  # fmt: skip
PINPOINTS = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]


def text_config(family: str, vocabulary: int) -> Any:
    import transformers

    t: Any = transformers
    sizes = {**SIZES, "vocab_size": vocabulary}
    longrope = {
        "rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 512,
        "short_factor": [1.0 + 0.1 * n for n in range(16)],
        "long_factor": [2.0 + 0.1 * n for n in range(16)], "partial_rotary_factor": 1.0,
    }  # fmt: skip
    make: dict[str, Callable[[], Any]] = {
        "llama": lambda: t.LlamaConfig(**sizes, num_key_value_heads=2, head_dim=32),
        "mistral": lambda: t.MistralConfig(**sizes, num_key_value_heads=1, head_dim=32,
                                           sliding_window=None),
        "qwen2": lambda: t.Qwen2Config(**sizes, num_key_value_heads=1),
        "qwen2 tied": lambda: t.Qwen2Config(**sizes, num_key_value_heads=2,
                                            tie_word_embeddings=True),
        "phi3": lambda: t.Phi3Config(**sizes, num_key_value_heads=1),
        "phi3 longrope": lambda: t.Phi3Config(**{**sizes, "max_position_embeddings": 1024},
                                              num_key_value_heads=2, rope_parameters=longrope,
                                              original_max_position_embeddings=512),
        "phi": lambda: t.PhiConfig(**sizes, partial_rotary_factor=0.5),
    }  # fmt: skip
    return make[family]()


def vision_config(kind: str) -> Any:
    import transformers

    t: Any = transformers
    sizes: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3,
             "num_attention_heads": 2, "image_size": 56, "patch_size": 14}  # fmt: skip
    if kind == "clip":
        return t.CLIPVisionConfig(**sizes)
    if kind == "siglip":
        return t.SiglipVisionConfig(**sizes, vision_use_head=False)
    return t.SiglipVisionConfig(**{**sizes, "image_size": 60})  # 4 px at the edge are not seen


def build(
    tiny: ModuleType, folder: Path, family: str, tower: str = "clip", kind: str = "Llava"
) -> Path:
    """A tiny random checkpoint, written by transformers."""
    import torch
    import transformers

    torch.manual_seed(0)
    folder.mkdir(parents=True)
    tokens = tiny.bpe_tokenizer()
    vision = vision_config(tower)
    siglip = tower != "clip"
    grid = [[side // 56 * vision.image_size for side in pair] for pair in PINPOINTS]
    extra = {} if kind == "Llava" else {"image_grid_pinpoints": grid}
    config = getattr(transformers, f"{kind}Config")(
        vision_config=vision,
        text_config=text_config(family, -(-len(tokens) // 32) * 32),
        image_token_index=tokens.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1 if siglip else -2,
        vision_feature_select_strategy="full" if siglip else "default",
        **extra,
    )
    config.tie_word_embeddings = config.text_config.tie_word_embeddings
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config).float()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                weight.normal_(0.0, 1.1 / weight[0].numel() ** 0.5)
            elif "norm" in name and name.endswith("weight"):
                weight.normal_(1.0, 0.1)
            else:
                weight.normal_(0.0, 0.1)
        model.get_input_embeddings().weight.normal_(0.0, 1.0)
    model.save_pretrained(folder)
    tokens.save_pretrained(folder)
    size = {"height": vision.image_size, "width": vision.image_size}
    settings = {"image_processor_type": f"{kind}ImageProcessor", "do_pad": True, "size": size,
                "crop_size": size, "resample": 3, "rescale_factor": 1 / 255,
                "image_mean": [0.5] * 3, "image_std": [0.5] * 3, **extra}  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    saved = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**saved, "llava_prompt_format": "vicuna_v1"}))
    return folder
