"""Sequences moved from a context with flash attention to one without.

llama.cpp reads a prompt quicker with flash attention and many single tokens quicker without. It
keeps values row by row for the one and transposed for the other, and refuses the other's states.
So they are rewritten. Their layout is llama.cpp's own affair (`llama_kv_cache::state_write` in
llama-kv-cache.cpp) and may change: what is not exactly as known is left alone, and what is written
here llama.cpp checks field for field when it reads it.
"""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt

from llava_cli.engines.gguf.context import Context

_HEAD = struct.Struct("<IiI")
"""Magic number, sequence, how many streams of cells follow."""
_CELL = struct.Struct("<iIi")
"""Position, 1 sequence, which."""
_KIND = struct.Struct("<II")
"""Whether values are transposed, how many layers."""
_ROWS = struct.Struct("<iQ")
"""Type, bytes of a row; a row for each cell follows."""
_COLUMNS = struct.Struct("<iII")
"""Type, bytes of an element, elements of a row; what all cells have in each follows."""
_COUNT = struct.Struct("<I")
_BYTES = {0: 4, 1: 2, 30: 2}
"""Of one value: F32, F16, BF16."""


class Mover:
    """Moves sequences through memory that it keeps: new pages cost more than the rewriting."""

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint8)

    def move(self, source: Context, target: Context, slot: int) -> bool:
        """Put sequence 0 of `source` in place of a slot of `target`, whose slots have their own
        room; False, and the slot is empty, where this llama.cpp does it otherwise."""
        target.forget(slot)
        others = _COUNT.size * (len(target.cells) - 1)
        size = source.state_bytes(0)
        if self._memory.size < size + others:
            self._memory = np.empty((size + others) * 9 // 8, np.uint8)
        written = source.write_state(0, self._memory)
        if written != size:
            return False
        state = memoryview(self._memory.data)[: size + others]
        if not transpose(state, len(target.cells)):
            return False
        return target.restore(slot, state, source.cells[0])


def transpose(state: memoryview, streams: int) -> bool:
    """Rewrite the state of a context with one stream for one of so many, its values transposed.

    `state`: bytes, at the end 4 unused ones for every stream but one. False, and it is good for
    nothing, where this is not a state as it is known here.
    """
    try:
        _transpose(state, streams)
    except (struct.error, KeyError, ValueError):
        return False
    return True


def _transpose(state: memoryview, streams: int) -> None:
    magic, sequence, own = _HEAD.unpack_from(state)
    (cells,) = _COUNT.unpack_from(state, _HEAD.size)
    place = _HEAD.size + _COUNT.size + cells * _CELL.size
    is_transposed, layers = _KIND.unpack_from(state, place)
    if own != 1 or is_transposed or not cells:
        raise ValueError("another kind of state")
    _HEAD.pack_into(state, 0, magic, sequence, streams)
    _KIND.pack_into(state, place, 1, layers)
    place += _KIND.size
    for _ in range(layers):  # keys stay as they are
        _, row = _ROWS.unpack_from(state, place)
        place += _ROWS.size + row * cells
    for _ in range(layers):
        type_, row = _ROWS.unpack_from(state, place)
        size = _BYTES[type_]
        _COLUMNS.pack_into(state, place, type_, size, row // size)
        place += _ROWS.size
        values: npt.NDArray[np.uint8] = np.frombuffer(state[place:][: row * cells], f"u{size}")
        values[:] = values.reshape(cells, -1).T.copy().reshape(-1)
        place += row * cells
    rest = state[place:]
    if len(rest) != _COUNT.size * (streams - 1):
        raise ValueError("more or less than was expected")
    rest[:] = bytes(len(rest))  # no cells in the other streams
