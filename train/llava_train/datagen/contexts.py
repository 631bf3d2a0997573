"""How a picture looks to a language model that cannot see: captions, and boxes as text.

The conversation kind is shown the captions alone; detail and reasoning are shown the captions, a
blank line, and one line an object, `category: [x1, y1, x2, y2]`: top-left and bottom-right corner
in fractions of width and height, three decimals (LLaVA, section 3; appendix "Data").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

KINDS = ("conversation", "detail", "reasoning")
SEES_BOXES = frozenset({"detail", "reasoning"})


@dataclass(frozen=True)
class Box:
    """One object: corners (x1, y1), (x2, y2) in fractions of the picture."""

    category: str
    corners: tuple[float, float, float, float]
    crowd: bool = False
    """A region full of such objects, not one object."""

    def line(self) -> str:
        """As the language model reads it."""
        return f"{self.category}: [{', '.join(f'{value:.3f}' for value in self.corners)}]"


@dataclass(frozen=True)
class Picture:
    """What is known about a picture."""

    id: str
    file_name: str
    captions: tuple[str, ...]
    boxes: tuple[Box, ...] = ()


def corners(
    xywh: Sequence[float], width: float, height: float
) -> tuple[float, float, float, float] | None:
    """COCO's box (left, top, width, height in pixels) as fractions, cut to the picture.

    None for a box that has no area inside the picture, or whose numbers are none.
    """
    if len(xywh) != 4 or not all(_number(value) for value in (*xywh, width, height)):
        return None
    if width <= 0 or height <= 0 or xywh[2] <= 0 or xywh[3] <= 0:
        return None
    x, y, w, h = xywh
    found = (_cut(x / width), _cut(y / height), _cut((x + w) / width), _cut((y + h) / height))
    return found if found[0] < found[2] and found[1] < found[3] else None


def context(picture: Picture, kind: str) -> str:
    """The text that stands for the picture in a request of this kind."""
    text = "\n".join(picture.captions)
    if kind in SEES_BOXES and picture.boxes:
        text += "\n\n" + "\n".join(box.line() for box in picture.boxes)
    return text


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _cut(value: float) -> float:
    return min(max(value, 0.0), 1.0)
