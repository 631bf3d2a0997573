"""One name for every tensor of a LLaVA, whichever program wrote it.

The original code, transformers 4 and 5 on disk and in memory, PEFT and plain language models name
the same tensors differently. All become llava-hf's names on disk: `language_model.model.X`,
`language_model.lm_head.X`, `vision_tower.vision_model.X`, `multi_modal_projector.X`,
`image_newline`. What no rule knows keeps its name, so that a later error can say it.

The PyTorch engine, the converter and what reads adapters share these maps. Not here: values.
"""

from __future__ import annotations

import re

TEXT, HEAD = "language_model.model.", "language_model.lm_head."
VISION, PROJECTOR = "vision_tower.vision_model.", "multi_modal_projector."
NEWLINE = "image_newline"

RULES: tuple[tuple[str, str], ...] = (
    (r"(?:.+\.)?mm_projector\.0\.(.+)", PROJECTOR + r"linear_1.\1"),
    (r"(?:.+\.)?mm_projector\.2\.(.+)", PROJECTOR + r"linear_2.\1"),
    (r"(?:.+\.)?mm_projector\.(weight|bias)", PROJECTOR + r"linear_1.\1"),
    (r"(?:model\.)?multi_modal_projector\.(.+)", PROJECTOR + r"\1"),
    (r"(?:model\.)?(?:vision_tower\.)+(?:vision_model\.)?(.+)", VISION + r"\1"),
    (r"vision_model\.(.+)", VISION + r"\1"),
    (r"(?:model\.)?image_newline", NEWLINE),
    (r"(?:model\.)?language_model\.model\.(.+)", TEXT + r"\1"),
    (r"(?:(?:model\.)?language_model\.)?lm_head\.(.+)", HEAD + r"\1"),
    (r"model\.language_model\.(.+)", TEXT + r"\1"),
    (r"model\.((?:embed_tokens|layers|norm|final_layernorm|rotary_emb)\..+)", TEXT + r"\1"),
)
"""Patterns of whole names in the order they are tried, and what becomes of them."""

NOT_WEIGHTS: tuple[tuple[str, str], ...] = (
    (
        re.escape(TEXT) + r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",
        "computed from config.json",
    ),
    (re.escape(VISION) + r"embeddings\.position_ids", "a constant: 0, 1, 2, ..."),
    (re.escape(VISION) + r"head\..+", "SigLIP's pooling, which LLaVA does not use"),
)
"""Patterns of names that older programs store and no LLaVA needs, each with the reason."""


def canonical(name: str) -> str:
    """llava-hf's name of a tensor."""
    name = re.sub(r"^(?:base_model\.model\.|base_model\.)", "", name)
    name = re.sub(r"^model\.model\.", "model.", name)
    for pattern, target in RULES:
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(target)
    return name
