"""The one result of resolving a model reference: which files, in which format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class ModelFiles:
    """Files of one model on this disk."""

    reference: str
    """What the user wrote (or the name of the bundled model)."""
    format: Literal["gguf", "hf", "original"]
    """`original`: what the original LLaVA code wrote, or a LoRA adapter with its base."""
    path: Path
    """The text .gguf, or the model's folder."""
    mmproj: Path | None = None
    """The projector .gguf (format gguf only)."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """config.json of a folder, or the text GGUF's metadata."""
    prompt_format: str | None = None
    """Name in `prompts.FORMATS` as the model's own files give it; None where they do not."""
    bundled: bool = False
    base: Path | None = None
    """Folder of the model that an adapter, a projector or a delta belongs to (`original` only)."""
    vision_tower: Path | None = None
    """Folder of the tower that the checkpoint names (`original` only)."""
