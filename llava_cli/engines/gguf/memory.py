"""How much memory a model takes, reckoned from its metadata before anything is loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llava_cli.engines.gguf.batch import MOST_SLOTS
from llava_cli.engines.gguf.context import ContextSettings
from llava_cli.models.files import ModelFiles

_VALUE_BYTES = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32}
_SHARE = 0.5
"""Of the memory that is free once the weights are in, for the slots of a batch."""


def bytes_a_position(config: Mapping[str, Any], kv_type: str) -> int:
    """Keys and values of all layers for one position."""
    kind = config.get("general.architecture", "llama")

    def number(name: str, default: int) -> int:
        value = config.get(f"{kind}.{name}", default)
        return max(value) if isinstance(value, list) else int(value)

    heads = number("attention.head_count", 1)
    head = number("embedding_length", 4096) // max(heads, 1)
    keys, values = number("attention.key_length", head), number("attention.value_length", head)
    rows = number("block_count", 32) * number("attention.head_count_kv", heads)
    return int(rows * (keys + values) * _VALUE_BYTES[kv_type])


def slots_for(positions: int, settings: ContextSettings, files: ModelFiles) -> int:
    """How many sequences of so many positions the free memory bears beside the weights."""
    free = available_bytes()
    if free is None:
        return 4
    weights = sum(_size(path) for path in (files.path, files.mmproj) if path is not None)
    room = (free - weights) * _SHARE
    each = max(1, positions * bytes_a_position(files.config, settings.kv_type))
    return max(1, min(MOST_SLOTS, int(room // each)))


def available_bytes() -> int | None:
    """Memory that can be had without swapping; None where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text("ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, ValueError, OSError):  # Windows
        return None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
