"""Writes RUN/model/: a llava-hf folder that transformers, our engines and the converter load.

The names on disk are the ones that every transformers release reads (`vision_tower.vision_model.*`,
`language_model.model.*`). config.json carries one key more: `llava_prompt_format`.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from llava_cli.errors import LlavaError
from llava_cli.pixels import PixelConfig
from llava_cli.prompts import FORMATS, PromptFormat
from llava_cli.tiles import Grid
from llava_train.labels import IMAGE_TOKEN
from llava_train.sharding import gathered
from llava_train.tiling import grid_of
from llava_train.towers import LLAVAS, has_class

_NAMES = (
    (r"^model\.vision_tower\.(?!vision_model\.)", "vision_tower.vision_model."),
    (r"^model\.vision_tower\.", "vision_tower."),
    (r"^model\.multi_modal_projector\.", "multi_modal_projector."),
    (r"^model\.language_model\.", "language_model.model."),
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^model\.image_newline$", "image_newline"),
)
"""Names in memory -> names on disk, first match."""
_TEMPLATE = """
{% if messages[0]['role'] == 'system' %}
{% set first = messages[0]['content'] %}
{% set system = first if first is string else first[0]['text'] %}
{% set turns = messages[1:] %}
{% else %}
{% set system = @system@ %}
{% set turns = messages %}
{% endif %}
{{ @system_open@ + system + @system_close@ if system else '' }}
{% for turn in turns %}
{% set said = turn['content'] %}
{% set parts = [{'type': 'text', 'text': said}] if said is string else said %}
{{ @user_open@ if turn['role'] == 'user' else @header@ + @answer_open@ }}
{% for part in parts if part['type'] == 'image' %}
{{ @image_open@ + '<image>' + @image_close@ + @image_gap@ }}
{% endfor %}
{% for part in parts if part['type'] == 'text' %}
{{ part['text'] }}
{% endfor %}
{{ @user_close@ if turn['role'] == 'user' else @answer_close@ }}
{% endfor %}
{{ @header@ if add_generation_prompt else '' }}
"""
"""A chat template (Jinja); lines are joined, @name@ is that text of the prompt format."""
_SHARD = 4 * 2**30
"""Bytes of one weight file."""


def export(
    folder: Path,
    model: Any,
    tokenizer: Any,
    pixels: PixelConfig,
    *,
    prompt_format: str,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write the model, its tokenizer and its processor; all of the folder or nothing."""
    aside = folder.with_name(f".{folder.name}-writing")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    _weights(aside, model, dtype)
    _config(aside, model, dtype, prompt_format)
    _processor(aside, model, tokenizer, pixels, FORMATS[prompt_format])
    old = folder.with_name(f".{folder.name}-old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    aside.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def disk_name(name: str) -> str:
    """The name on disk of a tensor's name in memory."""
    for pattern, replacement in _NAMES:
        renamed, count = re.subn(pattern, replacement, name)
        if count:
            return renamed
    raise LlavaError(f"the tensor {name} has no place in a llava-hf folder")


def tensors(model: Any, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and values on disk; of split parameters, every process walks through all."""
    tied = bool(model.config.tie_word_embeddings)
    for name, tensor in model.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        value = gathered(tensor.detach()).to(
            "cpu", dtype if tensor.is_floating_point() else tensor.dtype
        )
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise LlavaError(
                f"{name} does not fit into {dtype} or is not finite", "use export_dtype=bfloat16"
            )
        yield disk_name(name), value.contiguous()


def _weights(folder: Path, model: Any, dtype: torch.dtype) -> None:
    """One safetensors file, or shards with an index."""
    from safetensors.torch import save_file

    shards: list[dict[str, torch.Tensor]] = [{}]
    room, total = _SHARD, 0
    for name, tensor in tensors(model, dtype):
        if shards[-1] and tensor.nbytes > room:
            shards.append({})
            room = _SHARD
        shards[-1][name] = tensor
        room -= tensor.nbytes
        total += tensor.nbytes
    index: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        if len(shards) == 1:
            file = "model.safetensors"
        save_file(shard, folder / file, {"format": "pt"})
        (folder / file).chmod(0o644)  # safetensors lets nobody else read it
        index |= dict.fromkeys(shard, file)
    if len(shards) > 1:
        document = {"metadata": {"total_size": total}, "weight_map": index}
        _write(folder / "model.safetensors.index.json", document)


def _config(folder: Path, model: Any, dtype: torch.dtype, prompt_format: str) -> None:
    config: dict[str, Any] = json.loads(model.config.to_json_string(use_diff=False))
    name = str(dtype).removeprefix("torch.")
    config.pop("_name_or_path", None)
    for part in (config, config["text_config"], config["vision_config"]):
        part.pop("torch_dtype", None)
        part.pop("_name_or_path", None)
        part["dtype"] = name
    config["architectures"] = [LLAVAS[config["model_type"]]]
    config["llava_prompt_format"] = prompt_format
    _write(folder / "config.json", config)


def _processor(
    folder: Path, model: Any, tokenizer: Any, pixels: PixelConfig, form: PromptFormat
) -> None:
    from transformers import LlavaNextProcessor, LlavaProcessor

    config = model.config
    tokenizer.chat_template = None  # the language model's own, which knows no picture
    grid = grid_of(config)
    kind: Any = LlavaNextProcessor if grid else LlavaProcessor
    processor = kind(
        image_processor=image_processor(pixels, grid),
        tokenizer=tokenizer,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        image_token=IMAGE_TOKEN,
        # CLIP's CLS, which `default` drops again
        num_additional_image_tokens=int(has_class(config.vision_config)),
        chat_template=chat_template(form),
    )
    processor.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)  # for readers of the older layout
    ids = {key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    _write(folder / "generation_config.json", {k: v for k, v in ids.items() if v is not None})


def image_processor(pixels: PixelConfig, grid: Grid | None = None) -> Any:
    """transformers' processor that prepares pictures as `llava_cli.pixels` does, or its tiles."""
    import transformers

    # The forms without torchvision, where this release has them: what is saved is the same.
    clip, llava, tiles = (
        getattr(transformers, f"{name}Pil", None) or getattr(transformers, name)
        for name in ("CLIPImageProcessor", "LlavaImageProcessor", "LlavaNextImageProcessor")
    )
    square = {"height": pixels.size, "width": pixels.size}
    values: dict[str, Any] = {
        "image_mean": list(pixels.mean),
        "image_std": list(pixels.std),
        "resample": pixels.resample,
    }
    if grid is not None:
        grids = [list(pinpoint) for pinpoint in grid.pinpoints]
        edge = {"shortest_edge": pixels.size}
        return tiles(size=edge, crop_size=square, image_grid_pinpoints=grids, **values)
    if pixels.aspect == "pad":
        return llava(do_pad=True, size={"shortest_edge": pixels.size}, crop_size=square, **values)
    if pixels.aspect == "crop":
        return clip(
            size={"shortest_edge": pixels.size}, crop_size=square, do_center_crop=True, **values
        )
    return clip(size=square, do_center_crop=False, **values)


def chat_template(form: PromptFormat) -> str | None:
    """The format as a chat template for other programs; None where it has no turns.

    They tokenise it as one text; our own engines never use it.
    """
    if not form.reads_question or form.system_in_user:
        return None
    quoted = {key: json.dumps(value) for key, value in vars(form).items() if isinstance(value, str)}
    template = "".join(line.strip() for line in _TEMPLATE.splitlines())
    return re.sub(r"@(\w+)@", lambda match: quoted[match[1]], template)


def _write(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", "utf-8")
