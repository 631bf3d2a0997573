"""What came of a conversion, for the command that prints it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class ConvertedFile:
    """One file that was written, or with `dry_run` would be."""

    path: Path
    role: str
    """`text`, `mmproj`, `weights` of a llava-hf folder, or `adapter`."""
    type: str
    bytes: int
    sha256: str | None
    """None with `dry_run`."""
    tensors: Mapping[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    """Name -> type and shape."""


@dataclass(frozen=True)
class ConvertResult:
    """What came of a conversion."""

    files: tuple[ConvertedFile, ...]
    mapped: int
    """How many of the source's tensors are in the files."""
    ignored: dict[str, str]
    """Source tensors that are not, each with the reason."""
    notes: tuple[str, ...] = ()
    """What a person should know about the result."""
    kind: str = ""
    """What the source was."""
    prompt_format: str | None = None
    memory_bytes: int = 0
    """About how much memory the conversion takes at most."""
