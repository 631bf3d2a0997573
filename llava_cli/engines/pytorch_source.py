"""Checkpoints that are no llava-hf folder, as the PyTorch engine reads them: straight into memory.

A checkpoint of the original LLaVA code, a projector or LoRA over its base, a delta: its weights
become a state dict under llava-hf's names, one tensor at a time, in the numbers that are wanted;
only tokenizer and settings pass through a temporary folder. So it answers as its llava-hf
conversion does. Not here: what such folders hold (`layouts`), where their missing parts are
(`llava_cli.models.originals`).
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_cli.engines.layouts.hf_form import (
    Shape,
    embedding_rows,
    groups,
    grown,
    write_settings,
    write_tokens,
)
from llava_cli.engines.layouts.source import Extras, Source
from llava_cli.engines.layouts.sources import open_source
from llava_cli.engines.layouts.tensors import Tensor
from llava_cli.errors import LlavaError, ModelInvalid
from llava_cli.models.files import ModelFiles
from llava_cli.models.folders import read_json
from llava_cli.models.tensor_names import NOT_WEIGHTS

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Opened:
    """A model as engines read it."""

    files: ModelFiles
    """Of format `hf`; its folder may be a temporary one, without weights."""
    tensors: Mapping[str, Tensor] | None = None
    """The weights by llava-hf's names on disk, where the folder does not hold them."""
    notes: tuple[str, ...] = ()
    """What a person should know."""


@contextmanager
def opened(files: ModelFiles, prompt_format: str | None = None) -> Iterator[Opened]:
    """The model in llava-hf's form; its folder lasts as long as the context."""
    if files.format != "original":
        yield Opened(files)
        return
    extras = Extras(files.base, files.vision_tower, prompt_format)
    source = open_source(files.path, extras)
    with tempfile.TemporaryDirectory(prefix="llava-", ignore_cleanup_errors=True) as aside:
        yield _brought(files, source, Path(aside))


def parameters(tensors: Mapping[str, Tensor]) -> int:
    """How many values the weights have."""
    return sum(tensor.row * (tensor.shape[0] if tensor.shape else 1) for tensor in tensors.values())


def from_memory(
    files: ModelFiles, tensors: Mapping[str, Tensor], dtype: torch.dtype, more: Mapping[str, Any]
) -> tuple[Any, Mapping[str, Any]]:
    """transformers' model with these weights, and its report about names that did not fit.

    Raises ModelInvalid for a tensor that has no place in the model.
    """
    from transformers import AutoConfig, GenerationConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    config: Any = AutoConfig.from_pretrained(files.path, local_files_only=True)
    kind: Any = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]
    model, report = kind.from_pretrained(
        None,
        config=config,
        state_dict=_state_dict(tensors, dtype),
        dtype=dtype,
        output_loading_info=True,
        **more,
    )
    if homeless := sorted(str(name) for name in report.get("unexpected_keys") or ()):
        raise ModelInvalid(
            f"tensor {homeless[0]} of {files.reference} has no place in a LLaVA "
            f"({len(homeless)} in all)",
            "nothing is left out silently: the checkpoint has parts that LLaVA does not have",
        )
    if (files.path / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(
            files.path, local_files_only=True
        )
    return model, report


def _brought(files: ModelFiles, source: Source, folder: Path) -> Opened:
    """A source whose small files are written into a folder."""
    try:
        image_id = write_tokens(source, folder)
        tensors = grown(source.tensors, image_id)
        write_settings(source, folder, image_id, _shape(source, tensors))
    except OSError as error:
        raise LlavaError(
            f"the settings of {files.reference} cannot be written aside: {error.strerror or error}",
            "make room in the folder for temporary files (TMPDIR)",
        ) from error
    read = replace(
        files,
        format="hf",
        path=folder,
        config=read_json(folder / "config.json"),
        prompt_format=source.prompt_format,
    )
    return Opened(read, tensors, source.notes)


def _shape(source: Source, tensors: Mapping[str, Tensor]) -> Shape:
    vision = source.config.get("vision_config") or {}
    text = source.config.get("text_config") or {}
    return Shape(
        patch=int(vision.get("patch_size", 14)),
        has_class=vision.get("model_type", "clip_vision_model") == "clip_vision_model",
        language=str(text.get("model_type", "llama")),
        rows=embedding_rows(tensors),
    )


def _state_dict(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Every weight, in the numbers that are wanted; a few rows at a time are float32."""
    import torch

    state: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if any(re.fullmatch(pattern, name) for pattern, _ in NOT_WEIGHTS):
            continue
        values = torch.empty(tensor.shape, dtype=dtype)
        rows = values if tensor.shape else values.reshape(1)
        for first, count in groups(tensor):
            rows[first : first + count] = torch.from_numpy(tensor.read(first, count).copy())
        state[name] = values
    return state
