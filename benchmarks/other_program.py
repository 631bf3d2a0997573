"""Does the bundled model read pictures of another program? Matplotlib draws, the model answers.

    pip install matplotlib
    python benchmarks/other_program.py --n 200

Flat shapes on white, 400 to 1200 pixels a side, saved as PNG, JPEG or WebP, in matplotlib's own
markers and colours. In every picture one shape differs; the answer counts if it names colour,
shape and place. Pictures and answers are kept with --keep DIR.
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path

# Run as a script, gguf.py beside this file would stand in for the package `gguf`.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

import matplotlib

matplotlib.use("Agg")
import numpy as np
import PIL.Image
from matplotlib import pyplot
from matplotlib.patches import Circle, Polygon, Rectangle, RegularPolygon

from llava_train.demo.evaluate import Measure, asker, names_odd, table
from llava_train.scenes import SHAPES, Scene, SceneObject

# Matplotlib's (and CSS's) own names for the colours of the world.
NAMED = {
    "red": ("red", "crimson", "tab:red"),
    "orange": ("orange", "darkorange", "tab:orange"),
    "yellow": ("yellow", "gold"),
    "green": ("green", "limegreen", "tab:green", "forestgreen"),
    "blue": ("blue", "royalblue", "tab:blue", "dodgerblue"),
    "purple": ("purple", "darkviolet", "blueviolet"),
    "pink": ("pink", "hotpink", "lightpink"),
    "black": ("black",),
}
QUESTION = "what is unusual here?"


def patch(shape: str, x: float, y: float, r: float, color: str) -> matplotlib.patches.Patch:
    """One shape of radius `r` about (x, y); y points upwards."""
    if shape == "circle":
        return Circle((x, y), r, color=color, lw=0)
    if shape == "square":
        return Rectangle((x - r * 0.85, y - r * 0.85), 1.7 * r, 1.7 * r, color=color, lw=0)
    if shape == "triangle":
        return RegularPolygon((x, y - r / 8), 3, radius=r, color=color, lw=0)
    if shape == "diamond":
        return RegularPolygon((x, y), 4, radius=r, orientation=0, color=color, lw=0)
    if shape == "star":
        angles = np.pi / 2 + np.arange(10) * np.pi / 5
        radii = np.where(np.arange(10) % 2, 0.42 * r, r)
        points = np.stack([x + radii * np.cos(angles), y + radii * np.sin(angles)], 1)
        return Polygon(points, closed=True, color=color, lw=0)
    a, b = 0.3 * r, 0.95 * r
    plus = [(a, b), (a, a), (b, a), (b, -a), (a, -a), (a, -b)]
    points = np.array([*plus, *((-p, -q) for p, q in plus)]) + (x, y)
    return Polygon(points, closed=True, color=color, lw=0)


def draw(rng: np.random.Generator) -> tuple[Scene, bytes]:
    """A scene with an odd one, and the file that matplotlib and Pillow make of it."""
    width, height = (int(v) for v in rng.integers(400, 1201, 2))
    if rng.random() < 0.4:
        height = width
    long = 2.0 * min(width, height)
    width, height = min(width, int(long)), min(height, int(long))
    n = int(rng.integers(4, 10))
    cells = sorted(rng.choice(9, n, replace=False).tolist())
    shape, other_shape = rng.choice(SHAPES, 2, replace=False)
    color, other_color = rng.choice(list(NAMED), 2, replace=False)
    how = int(rng.integers(3))
    odd = int(rng.integers(n))
    kinds = [(shape, color)] * n
    kinds[odd] = (other_shape if how else shape, other_color if how != 1 else color)
    figure = pyplot.figure(figsize=(width / 100, height / 100), dpi=100, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.axis("off")
    axes.invert_yaxis()
    shades = {name: str(rng.choice(values)) for name, values in NAMED.items()}
    radius = min(width, height) / 6 * float(rng.uniform(0.35, 0.9))
    objects = []
    for (s, c), cell in zip(kinds, cells, strict=True):
        row, column = divmod(cell, 3)
        room_x, room_y = width / 6 - radius, height / 6 - radius
        x = (column + 0.5) * width / 3 + float(rng.uniform(-0.7, 0.7)) * room_x
        y = (row + 0.5) * height / 3 + float(rng.uniform(-0.7, 0.7)) * room_y
        axes.add_patch(patch(s, x, height - y, radius, shades[c]))
        objects.append(SceneObject(str(s), str(c), "large", cell, (0, 0, 0, 0)))
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100)
    pyplot.close(figure)
    out = io.BytesIO()
    kind = str(rng.choice(["PNG", "JPEG", "WEBP"]))
    PIL.Image.open(buffer).convert("RGB").save(out, kind, quality=85)
    return Scene(width, height, "white", tuple(objects), odd), out.getvalue()


def main() -> int:
    """Draw, ask, count."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args()
    ask = asker(options.model, options.engine, None)
    right = 0
    for index in range(options.n):
        scene, data = draw(np.random.default_rng([options.seed, index]))
        picture = PIL.Image.open(io.BytesIO(data)).convert("RGB")
        answer = ask(picture, QUESTION)
        good = names_odd(answer, scene)
        right += good
        if options.keep:
            options.keep.mkdir(parents=True, exist_ok=True)
            (options.keep / f"{index:04d}.bin").write_bytes(data)
            truth = scene.objects[scene.odd or 0]
            with (options.keep / "answers.txt").open("a") as file:
                file.write(f"{index} {good} {truth.color} {truth.shape} {truth.place} | {answer}\n")
    sys.stdout.write(table([Measure("odd one out, drawn by matplotlib", right, options.n)]) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
