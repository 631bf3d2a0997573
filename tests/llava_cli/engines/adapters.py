"""LoRA adapters as peft writes them, with weights that change the answer."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any


def write_lora(model: Path, folder: Path, *, seed: int = 0, **settings: Any) -> Path:
    """An adapter for a whole LLaVA or a language model alone."""
    import peft
    import torch
    import transformers

    config = json.loads((model / "config.json").read_text())
    t: Any = transformers
    auto = t.AutoModelForImageTextToText if "vision_config" in config else t.AutoModelForCausalLM
    chosen = {"r": 4, "lora_alpha": 12, "target_modules": ["q_proj", "k_proj", "down_proj"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # between peft and transformers
        adapted: Any = peft.get_peft_model(
            auto.from_pretrained(model), peft.LoraConfig(**{**chosen, **settings})
        )
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                weight.normal_(0.0, 0.2)
    adapted.save_pretrained(str(folder))
    return folder
