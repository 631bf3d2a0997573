"""How a model is loaded and run where the defaults are not wanted; None leaves it to the engine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tuning:
    """Settings of the GGUF engine."""

    ubatch: int | None = None
    """Positions computed in one go."""
    repack: bool | None = None
    """Rearrange the weights for this processor while loading."""
    mmap: bool | None = None
    """Read the weights where they lie in the file."""
    mlock: bool = False
    """Keep the weights from being swapped out."""
    gpu_layers: int | None = None
    """How many layers the device computes."""
