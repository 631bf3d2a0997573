"""What was read up to a picture, kept on disk, so that another run need not read it again.

The state of a sequence behind a picture holds the keys and values of the picture and of all in
front of it. It depends on the text model, on how its context computes and on every cell: these are
the key. Not here: the pictures' features, which are smaller (`pictures.py`).
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from llava_cli.cache import DiskCache, Draft
from llava_cli.engines.base import Token
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

    def beside(
        self,
        tokens: Iterator[Token],
        context: Context,
        end: int,
        seconds_a_position: float,
    ) -> Iterator[Token]:
        """Pass an answer on; write the first `end` cells of sequence 0 while it is computed.

        Begins when the person has the first token, and is done when the answer is. An answer that
        is broken off leaves nothing.
        """
        over = threading.Event()
        writing: threading.Thread | None = None
        begun = False
        try:
            for token in tokens:
                yield token
                if not begun:
                    writing, begun = self._keep(context, end, seconds_a_position, over), True
            if not begun:
                writing = self._keep(context, end, seconds_a_position, over)
        except BaseException:
            over.set()
            raise
        finally:
            if writing is not None:
                writing.join()

    def _keep(
        self, context: Context, end: int, seconds_a_position: float, over: threading.Event
    ) -> threading.Thread | None:
        """Begin to write the cells, if reading them back is worth it."""
        cells = context.cells[0][:end]
        size = context.state_bytes(0) * end // max(len(context.cells[0]), 1)
        key = self._key(cells)
        if not self._cache.worth_keeping(seconds_a_position * end, size):
            return None
        if self._cache.has(KIND, key):
            return None
        context.copy(0, _SNAPSHOT, end)
        try:
            entry = self._draft(context, key, end)
        finally:
            context.forget(_SNAPSHOT)
        if entry is None:  # the answer does not need it
            return None
        writing = threading.Thread(target=entry.keep, args=(over.is_set,), name="llava-state")
        writing.start()
        return writing

    def _draft(self, context: Context, key: Mapping[str, Any], end: int) -> Draft | None:
        """An entry with the snapshot's state in it, not yet kept."""
        size = context.state_bytes(_SNAPSHOT)
        entry = self._cache.draft(KIND, key, {"positions": end}, size)
        if entry is None:
            return None
        written = 0
        try:
            written = context.write_state(_SNAPSHOT, np.frombuffer(entry.payload, np.uint8))
        finally:
            if written != size:
                entry.drop()
        return entry if written == size else None

    def _key(self, cells: Sequence[Cell]) -> dict[str, Any]:
        digest = hashlib.sha256()
        for cell in cells:
            digest.update(f"{cell} ".encode())
        return {**self._identity, "cells": digest.hexdigest()}
