"""The synthetic world: pictures of coloured shapes in a 3x3 arrangement, and what is true of them.

A scene is a pure function of (seed, index), so any number of workers draws the same world. Not
here: what is said about a scene (`scene_text`), how a data set is written (`scene_files`).
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

RGB = tuple[int, int, int]
Point = tuple[float, float]

SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross")
SIZES = ("small", "large")
CELLS = (
    "top left", "top center", "top right",
    "middle left", "center", "middle right",
    "bottom left", "bottom center", "bottom right",
)  # fmt: skip

# Several shades a colour, the usual CSS and plotting ones among them: other programs draw so.
COLORS: dict[str, tuple[RGB, ...]] = {
    "red": ((255, 0, 0), (220, 20, 40), (200, 25, 25), (214, 39, 40), (235, 60, 55)),
    "orange": ((255, 165, 0), (255, 140, 0), (255, 127, 14), (240, 130, 30)),
    "yellow": ((255, 255, 0), (255, 215, 0), (250, 220, 50), (255, 235, 60)),
    "green": ((0, 128, 0), (0, 170, 60), (44, 160, 44), (34, 139, 34), (0, 255, 0), (50, 205, 50)),
    "blue": (
        (0, 0, 255), (31, 119, 180), (30, 80, 220), (65, 105, 225), (0, 0, 170), (30, 144, 255),
    ),
    "purple": ((128, 0, 128), (148, 103, 189), (155, 40, 235), (110, 40, 170), (138, 43, 226)),
    "pink": ((255, 192, 203), (255, 105, 180), (255, 150, 190), (235, 125, 195), (255, 170, 200)),
    "black": ((0, 0, 0), (20, 20, 20), (40, 40, 45)),
}  # fmt: skip
BACKGROUNDS: dict[str, RGB] = {
    "white": (255, 255, 255),
    "light gray": (224, 224, 224),
    "cream": (252, 244, 220),
    "light blue": (216, 232, 248),
    "light green": (220, 242, 220),
    "lavender": (230, 225, 245),
}
MAX_SIDE_PX = 512
MIN_SIDE_PX = 160


@dataclass(frozen=True)
class SceneObject:
    """One drawn shape."""

    shape: str
    color: str
    size: str
    cell: int
    """Row-major index into CELLS."""
    box: tuple[float, float, float, float]
    """x1, y1, x2, y2 as fractions of the picture's width and height."""

    @property
    def place(self) -> str:
        """The name of its cell."""
        return CELLS[self.cell]


@dataclass(frozen=True)
class Scene:
    """What is drawn; `odd` is an index into objects, or None when nothing stands out."""

    width: int
    height: int
    background: str
    objects: tuple[SceneObject, ...]
    """In reading order of their cells."""
    odd: int | None

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Scene:
        """The scene of one line of `scenes.jsonl`."""
        objects = tuple(
            SceneObject(o["shape"], o["color"], o["size"], CELLS.index(o["cell"]), tuple(o["box"]))
            for o in record["objects"]
        )
        odd = None if record["odd"] is None else int(record["odd"]["index"])
        return cls(record["width"], record["height"], record["background"], objects, odd)

    def record(self) -> dict[str, Any]:
        """The scene as one line of `scenes.jsonl`."""
        rows = [
            {
                "shape": o.shape,
                "color": o.color,
                "size": o.size,
                "cell": o.place,
                "box": [round(v, 4) for v in o.box],
            }
            for o in self.objects
        ]
        odd = None if self.odd is None else {"index": self.odd, **rows[self.odd]}
        return {
            "width": self.width,
            "height": self.height,
            "background": self.background,
            "objects": rows,
            "odd": odd,
        }


Kind = tuple[str, str, str]
"""(shape, color, size) of an object before it has a place."""


def odd_one(kinds: Sequence[Kind]) -> int | None:
    """The object that differs from all others, which agree; None when there is none.

    Colour and shape decide: some object is the only one with its value where all others share
    one. Size counts only where all agree in colour and shape.

    Raises ValueError when two objects could be meant (one odd in colour, another in shape).
    """
    if len(kinds) < 3:
        return None
    found = {i for axis in (0, 1) if (i := _exception([k[axis] for k in kinds])) is not None}
    if len(found) > 1:
        raise ValueError("two objects stand out")
    if found:
        return found.pop()
    if len({k[:2] for k in kinds}) == 1:
        return _exception([k[2] for k in kinds])
    return None


def _exception(values: Sequence[str]) -> int | None:
    """Index of the one value that differs where all others are equal."""
    for i, value in enumerate(values):
        others = set(values[:i]) | set(values[i + 1 :])
        if len(others) == 1 and value not in others:
            return i
    return None


def sample_scene(seed: int, index: int, size: int | None = None) -> tuple[Scene, Image.Image]:
    """Scene `index` of the world `seed` and its picture (RGB).

    size: the longer side in pixels; None varies it between MIN_SIDE_PX and MAX_SIDE_PX.
    """
    rng = np.random.default_rng([seed, index])
    width, height = _canvas(rng, size)
    kinds, cells, background = _sample_content(rng)
    painter = _Painter(rng, width, height, background)
    objects = tuple(painter.add(kind, cell) for kind, cell in zip(kinds, cells, strict=True))
    return Scene(width, height, background, objects, odd_one(kinds)), painter.finish()


def sample_layout(rng: np.random.Generator) -> Scene:
    """A scene in words only: its boxes are empty and no picture is drawn."""
    kinds, cells, background = _sample_content(rng)
    rows = [SceneObject(*kind, cell, (0, 0, 0, 0)) for kind, cell in zip(kinds, cells, strict=True)]
    return Scene(0, 0, background, tuple(rows), odd_one(kinds))


def _sample_content(rng: np.random.Generator) -> tuple[list[Kind], list[int], str]:
    """What is in a picture, in which cells, on which background."""
    kinds = _sample_kinds(rng)
    cells = sorted(rng.choice(9, size=len(kinds), replace=False).tolist())
    return kinds, cells, _pick(rng, list(BACKGROUNDS), p=[0.4, 0.12, 0.12, 0.12, 0.12, 0.12])


def _pick(rng: np.random.Generator, values: Sequence[Any], p: Sequence[float] | None = None) -> Any:
    return values[int(rng.choice(len(values), p=p))]


def _canvas(rng: np.random.Generator, size: int | None) -> tuple[int, int]:
    """Width and height: square, photographic or long, upright or lying."""
    side = size or int(rng.integers(MIN_SIDE_PX, MAX_SIDE_PX + 1))
    ratio = _pick(
        rng,
        (1.0, rng.uniform(1, 1.5), rng.uniform(1.5, 2), rng.uniform(2, 2.5)),
        (0.4, 0.42, 0.15, 0.03),
    )
    short = max(32, round(side / ratio))
    return (side, short) if rng.random() < 0.55 else (short, side)


def _sample_kinds(rng: np.random.Generator) -> list[Kind]:
    """Shape, colour and size of every object, in the order of their places."""
    while True:
        kinds = _pick(
            rng, (_odd_kinds, _uniform_kinds, _free_kinds, _paired_kinds), (0.48, 0.12, 0.28, 0.12)
        )(rng)
        rng.shuffle(kinds)
        try:
            odd_one(kinds)
        except ValueError:
            continue  # ambiguous: nobody could say which one is meant
        return [(str(a), str(b), str(c)) for a, b, c in kinds]


def _odd_kinds(rng: np.random.Generator) -> list[Kind]:
    """Objects that agree, and one that differs in colour, shape, both, or size."""
    n = int(rng.integers(3, 10))
    shape, other_shape = rng.choice(SHAPES, 2, replace=False)
    color, other_color = rng.choice(list(COLORS), 2, replace=False)
    size = _pick(rng, (*SIZES, None))

    def sized() -> str:
        return str(size or _pick(rng, SIZES))

    how = _pick(
        rng,
        ("color", "shape", "both", "color in mix", "shape in mix", "size"),
        (0.25, 0.25, 0.2, 0.12, 0.12, 0.06),
    )
    if how == "size":
        small, large = SIZES if rng.random() < 0.5 else SIZES[::-1]
        return [(shape, color, small)] * (n - 1) + [(shape, color, large)]
    if how == "color in mix":
        return [(_pick(rng, SHAPES), color, sized()) for _ in range(n - 1)] + [
            (_pick(rng, SHAPES), other_color, sized())
        ]
    if how == "shape in mix":
        names = list(COLORS)
        return [(shape, _pick(rng, names), sized()) for _ in range(n - 1)] + [
            (other_shape, _pick(rng, names), sized())
        ]
    odd = (
        other_shape if how != "color" else shape,
        other_color if how != "shape" else color,
        sized(),
    )
    return [(shape, color, sized()) for _ in range(n - 1)] + [odd]


def _uniform_kinds(rng: np.random.Generator) -> list[Kind]:
    """All of one shape, colour and size."""
    kind = (_pick(rng, SHAPES), _pick(rng, list(COLORS)), _pick(rng, SIZES))
    return [kind] * int(rng.integers(1, 10))


def _free_kinds(rng: np.random.Generator) -> list[Kind]:
    """Everything drawn freely."""
    n = int(rng.integers(1, 10))
    return [(_pick(rng, SHAPES), _pick(rng, list(COLORS)), _pick(rng, SIZES)) for _ in range(n)]


def _paired_kinds(rng: np.random.Generator) -> list[Kind]:
    """Two groups of at least two each: varied, but nothing stands out."""
    n = int(rng.integers(4, 10))
    split = int(rng.integers(2, n - 1))
    first, second = ((_pick(rng, SHAPES), _pick(rng, list(COLORS))) for _ in range(2))
    size = _pick(rng, SIZES)
    return [(*first, size)] * split + [(*second, size)] * (n - split)


def outline(shape: str, rng: np.random.Generator) -> list[Point]:
    """Vertices of a shape about (0, 0), at most 1 from it, y downwards, slightly turned."""
    turn = math.radians(float(rng.uniform(-12, 12)) if rng.random() < 0.6 else 0.0)
    points = _OUTLINES[shape](rng)
    cos, sin = math.cos(turn), math.sin(turn)
    return [(x * cos - y * sin, x * sin + y * cos) for x, y in points]


def _ring(n: int, start: float, radii: Sequence[float] = (1.0,)) -> list[Point]:
    """`n` points around the circle from angle `start` (radians), the radii taken in turn."""
    angles = [start + 2 * math.pi * i / n for i in range(n)]
    return [
        (radii[i % len(radii)] * math.cos(a), radii[i % len(radii)] * math.sin(a))
        for i, a in enumerate(angles)
    ]


def _triangle(rng: np.random.Generator) -> list[Point]:
    """Point up; equilateral or isosceles, its box centred."""
    half = float(rng.uniform(0.75, 1.0)) if rng.random() < 0.5 else 0.866
    height = float(rng.uniform(0.7, 0.95)) if rng.random() < 0.5 else 0.75
    return [(0.0, -height), (half, height), (-half, height)]


def _diamond(rng: np.random.Generator) -> list[Point]:
    """A rhombus on its tip, a little narrower or wider than high."""
    a, b = (1.0, float(rng.uniform(0.65, 1.0))) if rng.random() < 0.6 else (1.0, 1.0)
    if rng.random() < 0.3:
        a, b = b, a
    return [(0.0, -a), (b, 0.0), (0.0, a), (-b, 0.0)]


def _star(rng: np.random.Generator) -> list[Point]:
    """Five points up."""
    return _ring(10, -math.pi / 2, (1.0, float(rng.uniform(0.36, 0.52))))


def _cross(rng: np.random.Generator) -> list[Point]:
    """An upright plus sign."""
    arm = float(rng.uniform(0.24, 0.4))
    corner = [(arm, -0.95), (arm, -arm), (0.95, -arm), (0.95, arm), (arm, arm), (arm, 0.95)]
    return corner + [(-x, -y) for x, y in corner]


_OUTLINES = {
    "circle": lambda rng: _ring(48, 0.0),
    "square": lambda rng: _ring(4, math.pi / 4, (1.2,)),
    "triangle": _triangle,
    "diamond": _diamond,
    "star": _star,
    "cross": _cross,
}


class _Painter:
    """Draws one scene: flat shapes, then the softness and noise of a real file."""

    def __init__(self, rng: np.random.Generator, width: int, height: int, background: str) -> None:
        self.rng, self.width, self.height = rng, width, height
        self.scale = 1 if rng.random() < 0.15 else 2  # 1: hard, jagged edges
        fill = _shade(
            rng, BACKGROUNDS[background], 0 if background == "white" and rng.random() < 0.7 else 4
        )
        self.canvas = Image.new("RGB", (width * self.scale, height * self.scale), fill)
        self.draw = ImageDraw.Draw(self.canvas)
        self.edge = _pick(rng, ("none", "dark", "same"), (0.8, 0.1, 0.1))
        self.steady = rng.random() < 0.5  # one shade a colour, one radius a size, or each its own
        self.shades: dict[str, RGB] = {}
        self.radii: dict[str, float] = {}

    def add(self, kind: Kind, cell: int) -> SceneObject:
        """Draw one object somewhere in its cell."""
        shape, color, size = kind
        radius = self._radius(size)
        cell_w, cell_h = self.width / 3, self.height / 3
        row, column = divmod(cell, 3)
        free_x, free_y = cell_w / 2 - radius, cell_h / 2 - radius
        jitter = float(self.rng.uniform(0, 0.9))
        x = (column + 0.5) * cell_w + float(self.rng.uniform(-1, 1)) * jitter * free_x
        y = (row + 0.5) * cell_h + float(self.rng.uniform(-1, 1)) * jitter * free_y
        points = [(x + px * radius, y + py * radius) for px, py in outline(shape, self.rng)]
        self._fill(points, self._color(color))
        xs, ys = [p[0] for p in points], [p[1] for p in points]
        box = (
            min(xs) / self.width,
            min(ys) / self.height,
            max(xs) / self.width,
            max(ys) / self.height,
        )
        return SceneObject(shape, color, size, cell, box)

    def _radius(self, size: str) -> float:
        """Half the extent in pixels: of the cell's shorter side, by the object's size."""
        low, high = (0.3, 0.48) if size == "small" else (0.62, 0.94)
        if size not in self.radii or not self.steady:
            self.radii[size] = float(self.rng.uniform(low, high)) / 2
        return self.radii[size] * min(self.width, self.height) / 3

    def _color(self, color: str) -> RGB:
        if color not in self.shades or not self.steady:
            self.shades[color] = _shade(self.rng, _pick(self.rng, COLORS[color]), 10)
        return self.shades[color]

    def _fill(self, points: list[Point], color: RGB) -> None:
        scaled = [(x * self.scale, y * self.scale) for x, y in points]
        self.draw.polygon(scaled, fill=color)
        if self.edge != "none":
            edge = tuple(int(c * (0.55 if self.edge == "same" else 0.1)) for c in color)
            self.draw.line(
                [*scaled, scaled[0]], fill=edge, width=max(1, round(self.width * self.scale / 200))
            )

    def finish(self) -> Image.Image:
        """The picture at its size, with the blur, grain and compression that files come with."""
        rng = self.rng
        picture = (
            self.canvas.resize((self.width, self.height), Image.Resampling.BOX)
            if self.scale > 1
            else self.canvas
        )
        if rng.random() < 0.25:
            picture = picture.filter(
                ImageFilter.GaussianBlur(float(rng.uniform(0.3, 1.0)) * self.width / 300)
            )
        if rng.random() < 0.2:
            grain = rng.normal(0, float(rng.uniform(1, 6)), (self.height, self.width, 1))
            picture = Image.fromarray(np.clip(np.asarray(picture) + grain, 0, 255).astype(np.uint8))
        if rng.random() < 0.4:
            buffer = io.BytesIO()
            picture.save(buffer, "JPEG", quality=int(rng.integers(50, 96)))
            picture = Image.open(buffer).convert("RGB")
        return picture


def _shade(rng: np.random.Generator, color: RGB, spread: int) -> RGB:
    """A colour near `color`."""
    r, g, b = (int(np.clip(c + rng.integers(-spread, spread + 1), 0, 255)) for c in color)
    return r, g, b
