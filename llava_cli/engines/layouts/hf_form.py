"""All of a llava-hf folder but its weights, from any source: tokenizer, settings, template.

With `<image>` as a token, and rows for it in embedding and head. transformers does the tokenizer's
part, because it is also what will read the result. Not here: the weights themselves, which the
converter writes (`llava_convert.hf_target`) and the PyTorch engine reads into memory.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llava_cli import __version__
from llava_cli.engines.hf_vocabulary import load_tokenizer
from llava_cli.engines.layouts.chat_templates import fitting_template
from llava_cli.engines.layouts.source import Source
from llava_cli.engines.layouts.tensors import Array, Tensor, constant, stacked
from llava_cli.errors import ModelInvalid
from llava_cli.models.tensor_names import HEAD, TEXT

IMAGE = "<image>"
EMBEDDING, OUTPUT = TEXT + "embed_tokens.weight", HEAD + "weight"
PADDED_TO = 64
"""Rows of a grown vocabulary: a multiple, as llava-hf's own checkpoints have."""
PROCESSORS = {"llava": "LlavaProcessor", "llava_next": "LlavaNextProcessor",
              "llava_onevision": "LlavaOnevisionProcessor"}  # fmt: skip
_CHUNK_VALUES = 1 << 20
"""Values that are read at a time: 4 MB of float32."""


@dataclass(frozen=True)
class Shape:
    """What the settings say of the model beside what its source says."""

    patch: int
    """Pixels of a patch's side."""
    has_class: bool
    """The tower has a class position (CLIP)."""
    language: str
    """transformers' model_type of the language model."""
    rows: int
    """Of the embedding as it will be."""
    dtype: str | None = None
    """torch's name of the numbers, where they are not the source's."""


def write_tokens(source: Source, folder: Path) -> int | None:
    """The tokenizer's files; the id of `<image>` where it had to be made or found."""
    known = source.config.get("image_token_index", source.config.get("image_token_id"))
    if isinstance(known, int):
        copy_plain_files(source.folder, folder)
        return None
    return _write_tokenizer(source.folder, folder, source.prompt_format)


def write_settings(source: Source, folder: Path, image_id: int | None, shape: Shape) -> None:
    """config.json, and how pictures are prepared where the source did not say it for itself."""
    config = {key: value for key, value in source.config.items() if key != "quantization_config"}
    text = dict(config.get("text_config") or {})
    text["vocab_size"] = shape.rows
    text.setdefault("model_type", shape.language)
    config["text_config"] = text
    if image_id is not None:
        config["image_token_index"] = image_id
    if shape.dtype:
        config["dtype"] = shape.dtype
        config.pop("torch_dtype", None)
    if source.prompt_format is not None:
        config["llava_prompt_format"] = source.prompt_format
    config["llava_converter"] = f"llava-cli {__version__}"
    _json(folder / "config.json", config)
    if image_id is None:
        return
    processor = PROCESSORS[str(config.get("model_type", "llava"))]
    _json(folder / "preprocessor_config.json",
          {**source.preprocessor, "processor_class": processor})  # fmt: skip
    _json(
        folder / "processor_config.json",
        {
            "processor_class": processor,
            "image_token": IMAGE,
            "patch_size": shape.patch,
            "num_additional_image_tokens": int(shape.has_class),
            "vision_feature_select_strategy": config["vision_feature_select_strategy"],
        },
    )


def copy_plain_files(folder: Path, target: Path) -> None:
    """Tokenizer, templates and licence of a llava-hf folder, as they are."""
    for path in sorted(folder.iterdir()):
        small = path.suffix in (".json", ".jinja", ".model", ".txt") or path.stem == "LICENSE"
        weights = path.name.endswith(".index.json") or path.name.startswith("adapter_")
        if path.is_file() and small and not weights:
            shutil.copyfile(path, target / path.name)


def grown(tensors: Mapping[str, Tensor], image_id: int | None) -> dict[str, Tensor]:
    """Embedding and head with a row for `<image>`: new rows are the mean of the old ones."""
    result = dict(tensors)
    rows = embedding_rows(tensors)
    if image_id is None or image_id < rows:
        return result
    wanted = -(-(image_id + 1) // PADDED_TO) * PADDED_TO
    for name in (EMBEDDING, OUTPUT):
        if name in tensors:
            mean = _mean(tensors[name])
            new = np.repeat(mean[None], wanted - rows, axis=0)
            result[name] = stacked(tensors[name], constant(name, new))
    return result


def embedding_rows(tensors: Mapping[str, Tensor]) -> int:
    """Rows of the embedding, which config.json need not say truly."""
    for name in (EMBEDDING, OUTPUT):
        if name in tensors and tensors[name].shape:
            return tensors[name].shape[0]
    raise ModelInvalid("the checkpoint has no embed_tokens.weight", "it is not complete")


def groups(tensor: Tensor) -> Iterator[tuple[int, int]]:
    """(first row, count) of parts that are small enough to be in memory as float32."""
    rows = tensor.shape[0] if tensor.shape else 1
    step = max(_CHUNK_VALUES // max(tensor.row * tensor.unit, 1), 1) * tensor.unit
    for first in range(0, rows, step):
        yield first, min(step, rows - first)


def _write_tokenizer(folder: Path, target: Path, prompt_format: str | None) -> int:
    """Save it into `target`; gives the id of `<image>`."""
    tokenizer = load_tokenizer(folder)
    if IMAGE not in tokenizer.get_vocab():
        tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
    number: int = tokenizer.get_vocab()[IMAGE]
    tokenizer.save_pretrained(target)
    for name in ("tokenizer.model", "generation_config.json"):  # transformers 5 drops the first
        if (folder / name).is_file():
            shutil.copyfile(folder / name, target / name)
    template = fitting_template(folder, prompt_format)
    if template:
        (target / "chat_template.jinja").write_text(template, encoding="utf-8")
    return number


def _mean(tensor: Tensor) -> Array:
    total = np.zeros(tensor.shape[1], np.float64)
    for first, count in groups(tensor):
        total += tensor.read(first, count).sum(axis=0, dtype=np.float64)
    return (total / tensor.shape[0]).astype(np.float32)


def _json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
