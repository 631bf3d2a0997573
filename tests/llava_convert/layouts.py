"""Checkpoints in the layouts that LLaVA models have, written with the weights of a llava-hf one."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file, save_file

from llava_convert import ConvertResult, Extras, convert

Tensors = dict[str, Any]
WEIGHTS = "model.safetensors"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
             "tokenizer.model", "chat_template.jinja")  # fmt: skip


def original_name(name: str) -> str:
    """The original code's name of a llava-hf tensor."""
    for pattern, target in (
        (r"language_model\.model\.", "model."),
        (r"language_model\.lm_head\.", "lm_head."),
        (r"multi_modal_projector\.linear_1\.", "model.mm_projector.0."),
        (r"multi_modal_projector\.linear_2\.", "model.mm_projector.2."),
        (r"vision_tower\.", "model.vision_tower.vision_tower.vision_model."),
        (r"image_newline", "model.image_newline"),
    ):
        if re.match(pattern, name):
            return re.sub("^" + pattern, target, name)
    raise AssertionError(name)


def original_config(folder: Path, **changes: Any) -> dict[str, Any]:
    """config.json as the original code writes it."""
    config = json.loads((folder / "config.json").read_text())
    return {
        **config["text_config"],
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava_llama",
        "mm_vision_tower": "openai/clip-vit-large-patch14-336",
        "mm_hidden_size": 64,
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "image_aspect_ratio": "pad",
        "tokenizer_model_max_length": 2048,
        "use_mm_proj": True,
        **changes,
    }


def copy_tokenizer(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER:
        if (source / name).is_file():
            shutil.copy(source / name, target)


def write_tower(source: Path, folder: Path) -> Path:
    """The tower alone, as transformers saves it."""
    from transformers import CLIPVisionModel, LlavaForConditionalGeneration

    model: Any = LlavaForConditionalGeneration.from_pretrained(source)
    tower = CLIPVisionModel(model.config.vision_config)
    tower.load_state_dict(model.model.vision_tower.state_dict())
    tower.save_pretrained(folder)
    size = {"height": 56, "width": 56}
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 56},
             "crop_size": size, "do_center_crop": True, "resample": 3,
             "image_mean": [0.48145466, 0.4578275, 0.40821073],
             "image_std": [0.26862954, 0.26130258, 0.27577711]}
        )
    )  # fmt: skip
    return folder


def write_original(
    source: Path, folder: Path, *, tower: bool = True, form: str = "safetensors", **changes: Any
) -> Path:
    """The same weights in the original code's layout."""
    import torch

    copy_tokenizer(source, folder)
    tensors = {original_name(k): v for k, v in load_file(source / WEIGHTS).items()}
    if not tower:
        tensors = {k: v for k, v in tensors.items() if "vision_tower" not in k}
    (folder / "config.json").write_text(json.dumps(original_config(source, **changes)))
    if form == "safetensors":
        save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    elif form == "bin":
        torch.save(as_torch(tensors), folder / "pytorch_model.bin")
    else:
        names = sorted(tensors)
        places: dict[str, str] = {}
        for number in range(2):
            file = f"pytorch_model-{number + 1:05}-of-00002.bin"
            part = {name: tensors[name] for name in names[number::2]}
            torch.save(as_torch(part), folder / file)
            places |= dict.fromkeys(part, file)
        index = {"metadata": {}, "weight_map": places}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder


def as_torch(tensors: Tensors) -> dict[str, Any]:
    import torch

    return {name: torch.from_numpy(value.copy()) for name, value in tensors.items()}


def write_language_model(source: Path, folder: Path, **changes: Any) -> Path:
    """The language model alone, as transformers saves it: a base such as Vicuna."""
    copy_tokenizer(source, folder)
    tensors = load_file(source / WEIGHTS)
    plain = {original_name(k): v for k, v in tensors.items() if k.startswith("language_model.")}
    plain |= changes
    save_file(plain, folder / WEIGHTS, {"format": "pt"})
    config = json.loads((source / "config.json").read_text())["text_config"]
    config["architectures"] = ["LlamaForCausalLM"]
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def adapted(model: Any, folder: Path, targets: str = "all-linear") -> Any:
    """The model with a random LoRA of peft on its matrices, which is saved; gives it merged."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # between peft and transformers
        settings = LoraConfig(r=4, lora_alpha=12, target_modules=targets)
        peft: Any = get_peft_model(model, settings)
        with torch.no_grad():
            for name, weight in peft.named_parameters():
                if "lora_" in name:
                    weight.normal_(0, 0.2)
        peft.save_pretrained(str(folder))
        return peft.merge_and_unload()


def run(source: Path, out: Path, **extras: Any) -> ConvertResult:
    return convert(
        source, out, outtypes=["f32"], mmproj_outtype="f32", name="m", extras=Extras(**extras)
    )


def same(ours: ConvertResult, reference: ConvertResult) -> bool:
    return [f.sha256 for f in ours.files] == [f.sha256 for f in reference.files]
