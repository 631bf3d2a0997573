"""LLaVA-1.6's tiles: a large picture seen as a whole and in pieces ("anyres").

A picture is resized, keeping its shape, into the grid of tower-sized squares that suits it best;
the whole picture, stretched to one square, stands in front. What the tower makes of the squares is
packed as transformers packs it: the grid's features laid out as one map, the padding's cut off, one
learned vector behind every row (liuhaotian's `spatial_unpad`).

Legend: S side of a square in pixels, G side of a square's feature map, D width of a feature.
Not here: the preparation of a single square (`pixels.py`), the tower.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from llava_cli.errors import ModelInvalid
from llava_cli.pixels import PixelConfig, Pixels

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

Rows = npt.NDArray[np.float32]
_MOST_PINPOINTS = 256


@dataclass(frozen=True)
class Grid:
    """The grids that a model knows, and the side of its squares."""

    pinpoints: tuple[tuple[int, int], ...]
    """(height, width) in pixels, multiples of S."""
    size: int
    """S"""
    map: int
    """G"""

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> Grid | None:
        """The grids of a mmproj GGUF; None where it knows none.

        llama.cpp's own key holds (width, height), ours (height, width) as transformers has it.
        """
        flat = metadata.get("llava.image_grid_pinpoints")
        values = metadata.get("clip.vision.image_grid_pinpoints") if flat is None else flat
        if values is None:
            return None
        size, patch = metadata["clip.vision.image_size"], metadata["clip.vision.patch_size"]
        ratio = metadata.get("llava.vision_aspect_ratio", "anyres")
        merge = metadata.get("clip.vision.mm_patch_merge_type", "spatial_unpad")
        if ratio != "anyres" or merge != "spatial_unpad":
            raise ModelInvalid(
                f"tiles of the kind {ratio} with {merge} are not supported",
                "use a LLaVA-1.5 or LLaVA-1.6 model",
            )
        pairs = list(zip(values[::2], values[1::2], strict=False))
        if flat is None:
            pairs = [(height, width) for width, height in pairs]
        good = all(a > 0 and b > 0 and not a % size and not b % size for a, b in pairs)
        if len(values) % 2 or not 0 < len(pairs) <= _MOST_PINPOINTS or not good:
            raise ModelInvalid("the mmproj's image_grid_pinpoints are no sizes of grids")
        return cls(tuple(pairs), size, size // patch)

    def best(self, width: int, height: int) -> tuple[int, int]:
        """(height, width) of the grid that keeps most of a picture and wastes least."""

        def merit(pinpoint: tuple[int, int]) -> tuple[int, int]:
            high, wide = pinpoint
            scale = min(wide / width, high / height)
            kept = min(int(width * scale) * int(height * scale), width * height)
            return kept, kept - high * wide

        return max(self.pinpoints, key=merit)  # the first one of several that are as good

    def squares(self, image: PILImage, config: PixelConfig) -> list[Pixels]:
        """uint8 (S, S, 3): the whole picture, then the grid's squares, row by row."""
        from PIL import Image as PIL

        method = PIL.Resampling(config.resample)
        high, wide = self.best(*image.size)
        width, height = _fitted(image.size, high, wide)
        canvas = PIL.new("RGB", (wide, high))
        place = ((wide - width) // 2, (high - height) // 2)
        canvas.paste(image.resize((width, height), method), place)
        whole = np.array(image.resize((self.size, self.size), method), np.uint8)
        grid = np.array(canvas, np.uint8)
        size = self.size
        return [whole] + [
            grid[top : top + size, left : left + size]
            for top in range(0, high, size)
            for left in range(0, wide, size)
        ]

    def tiles(self, shape: tuple[int, int]) -> int:
        """Squares of a picture (width, height), the whole one included."""
        high, wide = self.best(*shape)
        return 1 + (high // self.size) * (wide // self.size)

    def count(self, width: int, height: int) -> int:
        """Positions that a picture of this size takes."""
        rows, columns = self._kept(width, height)
        return self.map**2 + len(range(*rows)) * (len(range(*columns)) + 1)

    def pack(self, features: Sequence[Rows], newline: Rows, width: int, height: int) -> Rows:
        """The squares' features, each (G*G, D), and the vector (D,) that ends a row, as (N, D)."""
        high, wide = self.best(width, height)
        down, across, side = high // self.size, wide // self.size, self.map
        depth = features[0].shape[-1]
        tiles = np.stack(features[1:]).reshape(down, across, side, side, depth)
        laid = tiles.transpose(0, 2, 1, 3, 4).reshape(down * side, across * side, depth)
        rows, columns = self._kept(width, height)
        kept = laid[slice(*rows), slice(*columns)]
        ends = np.broadcast_to(newline, (len(kept), 1, depth))
        packed = np.concatenate([kept, ends], axis=1).reshape(-1, depth)
        return np.ascontiguousarray(np.concatenate([features[0], packed]), np.float32)

    def _kept(self, width: int, height: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Rows and columns of the map that show the picture and not its padding."""
        high, wide = self.best(width, height)
        rows, columns = high // self.size * self.map, wide // self.size * self.map
        if width / height > columns / rows:
            cut = (rows - int(round(height * (columns / width), 7))) // 2
            return (cut, rows - cut), (0, columns)
        cut = (columns - int(round(width * (rows / height), 7))) // 2
        return (0, rows), (cut, columns - cut)


def square_config(settings: Mapping[str, Any]) -> PixelConfig:
    """How one square is prepared, from the preprocessor of a model that cuts tiles.

    Every square that the tower sees has its size already: one view of the whole, and the tiles.
    """
    inner = dict(settings.get("image_processor") or settings)
    inner.pop("image_grid_pinpoints", None)
    size = inner.get("size") or {}
    edge = size.get("shortest_edge") or size.get("height") if isinstance(size, Mapping) else size
    inner.update(do_pad=False, do_center_crop=True, size={"shortest_edge": edge},
                 crop_size={"height": edge, "width": edge})  # fmt: skip
    return replace(PixelConfig.from_preprocessor(inner), aspect="stretch")


def _fitted(size: tuple[int, int], high: int, wide: int) -> tuple[int, int]:
    """Width and height of a picture that was resized to fit, its shape kept."""
    width, height = size
    across, down = wide / width, high / height
    if across < down:
        return wide, min(math.ceil(height * across), high)
    return min(math.ceil(width * down), wide), high
