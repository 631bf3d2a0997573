"""What was read up to a picture, kept on disk, so that another run need not read it again.

The state of a sequence behind a picture holds the keys and values of the picture and of all in
front of it. It depends on the text model, on how its context computes and on every cell: these are
the key. Not here: the pictures' features, which are smaller (`pictures.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from llava_cli.cache import DiskCache
from llava_cli.engines.gguf.context import Context
from llava_cli.engines.gguf.layout import Cell
from llava_cli.engines.gguf.prompt import Prompt

KIND = "state"
_LEAST = 16
"""Fewer positions than this are read faster than looked for."""
_SNAPSHOT = 1
"""The sequence of a context that is only used for writing states."""


class States:
    """States of one model in one kind of context."""

    def __init__(self, cache: DiskCache, identity: Mapping[str, Any]) -> None:
        self._cache = cache
        self._identity = dict(identity)

    def restore(self, context: Context, prompt: Prompt, known: int) -> int:
        """Put a kept beginning of a prompt into sequence 0 where it beats the `known` positions.

        The number of positions that stand there now.
        """
        cells = prompt.cells[:-1]
        for end in reversed(prompt.picture_ends):
            if end < known + _LEAST:
                break
            if end > len(cells):
                continue
            found = self._cache.get(KIND, self._key(cells[:end]))
            if found is None:
                continue
            if context.restore(0, found.payload, cells[:end]):
                return end
            return 0
        return known

    def keep(self, context: Context, end: int, seconds_a_position: float) -> None:
        """Write the first `end` cells of sequence 0, if reading them back is worth it."""
        cells = context.cells[0][:end]
        size = context.state_bytes(0) * end // max(len(context.cells[0]), 1)
        key = self._key(cells)
        if not self._cache.worth_keeping(seconds_a_position * end, size):
            return
        if self._cache.has(KIND, key):
            return
        context.copy(0, _SNAPSHOT, end)
        try:
            self._cache.put(KIND, key, {"positions": end}, context.state(_SNAPSHOT))
        except MemoryError:  # the answer is given; nothing needs this
            return
        finally:
            context.forget(_SNAPSHOT)

    def _key(self, cells: Sequence[Cell]) -> dict[str, Any]:
        digest = hashlib.sha256()
        for cell in cells:
            digest.update(f"{cell} ".encode())
        return {**self._identity, "cells": digest.hexdigest()}
