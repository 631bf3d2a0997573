"""Scoring a model on scenes it has never seen: exact answers, with 95 % intervals.

Works through any engine, greedy, one question at a time, as a person would ask.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from typing import Any

import numpy as np
import PIL.Image

from llava_train.scene_phrases import COUNT, DETAIL, UNUSUAL
from llava_train.scene_questions import color_question, position_question, presence_question
from llava_train.scene_wording import as_typed
from llava_train.scenes import CELLS, COLORS, SHAPES, SIZES, Scene, sample_scene

SEED = 999_000
"""The world of evaluation: no training step draws from it."""
Row = tuple[str, int, int]
"""Measure, right, out of."""
_PLACES = "|".join(sorted(CELLS, key=len, reverse=True))
_OBJECT = re.compile(
    rf"({_PLACES}): an? ({'|'.join(SIZES)}) ({'|'.join(COLORS)}) ({'|'.join(SHAPES)})\b", re.I
)


@dataclass(frozen=True)
class Measure:
    """A share with its 95 % Wilson interval, in percent."""

    name: str
    right: int
    total: int

    @property
    def percent(self) -> float:
        return 100 * self.right / self.total if self.total else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson, E. B. (1927), Journal of the American Statistical Association 22:209."""
        n, p, z = max(1, self.total), self.right / max(1, self.total), 1.959964
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return 100 * (centre - half), 100 * (centre + half)


Ask = Callable[[PIL.Image.Image, str], str]


def evaluate(
    model: str | None, engine: str, n: int, seed: int = SEED, workers: int = 1
) -> list[Measure]:
    """Ask about `n` scenes of the world `seed`; one measure a kind of question."""
    totals: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for name, right, total in _rows(model, engine, n, seed, workers):
        totals[name][0] += right
        totals[name][1] += total
    return [Measure(name, *counts) for name, counts in sorted(totals.items())]


def _rows(model: str | None, engine: str, n: int, seed: int, workers: int) -> Iterator[Row]:
    if workers <= 1:
        yield from _score_range(model, engine, seed, None, (0, n))
        return
    cut = [n * i // workers for i in range(workers + 1)]
    run = partial(_score_range, model, engine, seed, 1)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for rows in pool.map(run, zip(cut[:-1], cut[1:], strict=True)):
            yield from rows


def _score_range(
    model: str | None, engine: str, seed: int, threads: int | None, bounds: tuple[int, int]
) -> list[Row]:
    ask = asker(model, engine, threads)
    rows: list[Row] = []
    for index in range(*bounds):
        scene, picture = sample_scene(seed, index)
        rows += score_scene(ask, scene, picture, np.random.default_rng([seed, index, 2]))
    return rows


def asker(model: str | None, engine: str, threads: int | None) -> Ask:
    """A function that asks the loaded model about a picture."""
    from llava_cli.conversation import Conversation
    from llava_cli.engines import load
    from llava_cli.engines.base import Sampling
    from llava_cli.images import Image
    from llava_cli.models import resolve

    loaded: Any = load(resolve(model, engine=engine), engine=engine, threads=threads)

    def ask(picture: PIL.Image.Image, question: str) -> str:
        turns = Conversation().add("user", Image.from_pil(picture), question)
        return "".join(token.text for token in loaded.generate(turns, Sampling())).strip()

    return ask


def score_scene(
    ask: Ask, scene: Scene, picture: PIL.Image.Image, rng: np.random.Generator
) -> Iterator[Row]:
    """The rows of one scene: one question of each kind."""

    def pick(texts: tuple[str, ...]) -> str:
        return as_typed(texts[int(rng.integers(len(texts)))], rng)

    answer = ask(picture, pick(UNUSUAL))
    if scene.odd is None:
        yield ("nothing unusual", int(says_nothing(answer)), 1)
    else:
        yield ("odd one out", int(names_odd(answer, scene)), 1)
    count = re.search(r"\d", ask(picture, pick(COUNT)))
    yield ("count", int(count is not None and int(count[0]) == len(scene.objects)), 1)
    for name, make in (
        ("color", color_question),
        ("position", position_question),
        ("presence", presence_question),
    ):
        turn = make(scene, rng)
        if turn is not None:
            said = ask(picture, as_typed(turn.question, rng))
            yield (name, int(same_fact(name, said, turn.answer)), 1)
    yield from score_detail(ask(picture, pick(DETAIL)), scene)


def says_nothing(answer: str) -> bool:
    """Whether the answer is that nothing is unusual."""
    return re.search(r"\bnothing is unusual\b", answer, re.I) is not None


def names_odd(answer: str, scene: Scene) -> bool:
    """Whether the odd one is named with its colour, shape and place, and no other object."""
    if scene.odd is None or says_nothing(answer):
        return False
    odd = scene.objects[scene.odd]
    named = re.search(rf"(\w+) (\w+) in the ({_PLACES}) is unusual", answer)
    return named is not None and named.groups() == (odd.color, odd.shape, odd.place)


def same_fact(name: str, said: str, true: str) -> bool:
    """Whether two answers state the same colour, place, or yes or no."""
    words = {
        "color": rf"\b({'|'.join(COLORS)})\.?$",
        "position": rf"\bin the ({_PLACES})\.?$",
        "presence": r"^(yes|no)\b",
    }[name]
    found = [re.search(words, text.strip(), re.I) for text in (said, true)]
    return all(found) and found[0][1].lower() == found[1][1].lower()  # type: ignore[index]


def score_detail(answer: str, scene: Scene) -> Iterator[Row]:
    """Objects described rightly (colour, shape, place; size apart), and objects invented."""
    said = [(p.lower(), z, c, s) for p, z, c, s in _OBJECT.findall(answer)]
    true = [(o.place, o.size, o.color, o.shape) for o in scene.objects]
    bare = {(p, c, s) for p, _, c, s in said}
    yield ("detail: objects right", sum((p, c, s) in bare for p, _, c, s in true), len(true))
    yield ("detail: sizes right", sum(t in said for t in true), len(true))
    places = {p for p, *_ in true}
    yield ("detail: objects invented", sum(p not in places for p, *_ in said), max(1, len(said)))


def table(measures: list[Measure]) -> str:
    """Markdown, for people."""
    rows = ["| measure | % | 95 % interval | n |", "|---|---|---|---|"]
    for m in measures:
        low, high = m.interval
        rows.append(f"| {m.name} | {m.percent:.1f} | {low:.1f}-{high:.1f} | {m.total} |")
    return "\n".join(rows)
