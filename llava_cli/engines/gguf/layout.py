"""What stands where in a language model's context: cells, and the tiles that a picture is read as.

Most models give every cell a position of its own. Two kinds of models do not read a picture row by
row: those with M-RoPE give its rows places in a plane and go on behind its longer side, and some
let all rows see each other. Such a tile is read as a whole, and a context is never cut inside it.
Legend: N rows of features.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Cell = int | tuple[str, int] | tuple[str, int, int]
"""A token id, or a row of a picture's features; the row of a tile that is read as a whole says also
by how much the position behind it is further on."""

Places = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Tile:
    """Rows of features that stand one behind the other."""

    count: int
    """N"""
    advance: int
    """Positions that they take."""
    places: Places | None = None
    """(4, N): where M-RoPE has each row of a tile that begins at position 0."""
    moves: Places | None = None
    """(4, N): by how much each place is further on where the tile begins one position later."""
    causal: bool = True
    """False: every row sees all others."""

    @classmethod
    def plain(cls, count: int) -> Tile:
        """Rows that are read like words."""
        return cls(count, count)

    @property
    def whole(self) -> bool:
        """Whether the rows are read in one go or not at all."""
        return self.places is not None or not self.causal

    def places_from(self, start: int) -> Places | None:
        """The rows' places (4, N) where the tile begins at this position."""
        if self.places is None or self.moves is None:
            return None
        return np.ascontiguousarray(self.places + start * self.moves, np.int32)

    def cells(self, key: str) -> list[Cell]:
        """The cells of the rows; `key` names them."""
        if not self.whole:
            return [(key, row) for row in range(self.count)]
        each = 0 if self.places is not None else 1
        last = self.advance - each * (self.count - 1)
        return [(key, row, last if row == self.count - 1 else each) for row in range(self.count)]


Part = tuple[int, ...] | Tile
"""A picture in a prompt is tiles, and token ids around them."""


def advance(cell: Cell) -> int:
    """By how much the position behind a cell is further on than its own."""
    return cell[2] if isinstance(cell, tuple) and len(cell) == 3 else 1


def position(cells: Iterable[Cell]) -> int:
    """The position behind cells."""
    return sum(map(advance, cells))


def is_inside(cells: Sequence[Cell], place: int) -> bool:
    """Whether a cut in front of the cell at `place` would go through a tile."""
    cell = cells[place] if place < len(cells) else 0
    return isinstance(cell, tuple) and len(cell) == 3 and cell[1] > 0
