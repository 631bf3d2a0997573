"""Changing a tokenizer's files, and asking the tokenizers library itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}


def split_by(expression: str) -> dict[str, Any]:
    split = {**SPLIT, "pattern": {"Regex": expression}}
    level = {**BYTE_LEVEL, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [split, level]}


def change_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def source_ids(folder: Path, text: str) -> list[int]:
    """By the tokenizers library itself, without special tokens and without looking for them."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    return list(tokenizer.encode(text, add_special_tokens=False).ids)
