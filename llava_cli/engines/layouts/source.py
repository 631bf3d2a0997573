"""One form for every source: llava-hf's configuration, preprocessing and tensors.

Not here: how the kinds of sources are told apart and read (`sources.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llava_cli.engines.layouts.tensors import Tensor


@dataclass(frozen=True)
class Source:
    """A model in llava-hf's form, not read yet."""

    kind: str
    """What it was, for people."""
    folder: Path
    """Where the tokenizer's files lie."""
    name: str
    config: Mapping[str, Any]
    preprocessor: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    """By llava-hf's names on disk (`models/tensor_names.py`)."""
    prompt_format: str | None = None
    """Name in `prompts.FORMATS`, where the files tell it."""
    notes: tuple[str, ...] = field(default=())
    """What a person should know."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """What its model card says: license, base_model, language."""


@dataclass(frozen=True)
class Extras:
    """What a person gives beside the source."""

    base: Path | None = None
    """Folder of the language model or LLaVA that an adapter, projector or delta belongs to."""
    vision_tower: Path | None = None
    """Folder of the tower, for checkpoints that do not hold it."""
    prompt_format: str | None = None
