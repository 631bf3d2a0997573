"""Questions about a scene in many phrasings, each with its exact answer.

LLaVA's three kinds of instruction data are made of these: conversation (count, colour, shape,
position, presence), detailed description, complex reasoning. Every answer is exact, so
`demo.evaluate` can score a model without a judge.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from llava_train.scene_phrases import ANYTHING, BRIEF, COUNT, DETAIL, SHORT, UNUSUAL, WHY
from llava_train.scene_text import (
    a,
    capital,
    counted,
    detail_answer,
    group_caption,
    joined,
    odd_name,
    plural,
    unusual_answer,
    unusual_reason,
)
from llava_train.scene_wording import Turn, pick, shortened
from llava_train.scenes import CELLS, COLORS, SHAPES, Scene, SceneObject


def _count(scene: Scene, rng: np.random.Generator) -> Turn:
    return Turn("count", pick(rng, COUNT), counted(len(scene.objects), "", "shape"))


def _count_some(scene: Scene, rng: np.random.Generator) -> Turn:
    """Count by colour or by shape, sometimes one that is not there."""
    by_color = rng.random() < 0.5
    values = [o.color if by_color else o.shape for o in scene.objects]
    every = list(COLORS) if by_color else list(SHAPES)
    value = pick(rng, values) if rng.random() < 0.75 else pick(rng, every)
    adjective, noun = (value, "shape") if by_color else ("", value)
    ask = (
        "How many {} are there?",
        "How many {} do you see?",
        "How many {} are in the picture?",
        "Count the {}.",
    )
    things = f"{adjective} {plural(noun)}".strip()
    if by_color and rng.random() < 0.3:
        things = things.replace("shapes", "objects")
    return Turn(
        "count of a kind",
        pick(rng, ask).format(things),
        counted(values.count(value), adjective, noun),
    )


def _unique_name(
    scene: Scene, o: SceneObject, *, color: bool, rng: np.random.Generator
) -> str | None:
    """A way to name this object alone; `color` tells whether its colour may be said."""
    ways = [("color", "shape"), ("size", "color", "shape"), ("shape",)]
    if not color:
        ways = [("shape",), ("size", "shape")]

    def said(x: SceneObject, way: tuple[str, ...]) -> str:
        return " ".join(getattr(x, word) for word in way)

    names = [
        said(o, way)
        for way in ways
        if [said(x, way) for x in scene.objects].count(said(o, way)) == 1
    ]
    return pick(rng, names) if names else None


def _color(scene: Scene, rng: np.random.Generator) -> Turn:
    """The colour of an object named by its shape or by its place."""
    o = scene.objects[int(rng.integers(len(scene.objects)))]
    name = _unique_name(scene, o, color=False, rng=rng)
    word = pick(rng, ("color", "color", "colour"))
    if name and rng.random() < 0.6:
        ask = pick(
            rng,
            (
                "What {} is the {}?",
                "Which {} is the {}?",
                "What is the {} of the {}?",
                "Tell me the {} of the {}.",
            ),
        )
        return Turn("color", ask.format(word, name), f"The {name} is {o.color}.")
    ask = pick(
        rng,
        (
            "What {} is the shape in the {}?",
            "What is the {} of the shape in the {}?",
            "What {} is the object in the {}?",
        ),
    )
    return Turn("color", ask.format(word, o.place), f"The shape in the {o.place} is {o.color}.")


def _shape(scene: Scene, rng: np.random.Generator) -> Turn:
    """The shape at a place, or of a colour that occurs once."""
    o = scene.objects[int(rng.integers(len(scene.objects)))]
    if [x.color for x in scene.objects].count(o.color) == 1 and rng.random() < 0.4:
        ask = pick(
            rng,
            (
                "What shape is the {} object?",
                "What is the shape of the {} object?",
                "Which shape is {}?",
            ),
        )
        return Turn("shape", ask.format(o.color), f"The {o.color} shape is {a(o.shape)}.")
    ask = pick(
        rng,
        (
            "What shape is in the {}?",
            "Which shape is in the {}?",
            "What kind of shape is in the {}?",
            "What is the shape in the {}?",
        ),
    )
    return Turn("shape", ask.format(o.place), f"The shape in the {o.place} is {a(o.shape)}.")


def _place_content(scene: Scene, rng: np.random.Generator) -> Turn:
    """What is at a place, empty ones too."""
    taken = {o.place: o for o in scene.objects}
    place = pick(rng, list(taken)) if rng.random() < 0.65 else pick(rng, CELLS)
    ask = pick(
        rng,
        (
            "What is in the {}?",
            "What's in the {}?",
            "What do you see in the {}?",
            "What can be seen in the {} of the picture?",
        ),
    )
    if place not in taken:
        return Turn("content of a place", ask.format(place), f"The {place} is empty.")
    o = taken[place]
    return Turn(
        "content of a place",
        ask.format(place),
        f"There is {a(f'{o.size} {o.color} {o.shape}')} in the {place}.",
    )


def _position(scene: Scene, rng: np.random.Generator) -> Turn:
    """Where the objects of a kind are; sometimes there are none."""
    ask = (
        "Where is the {}?",
        "Where is the {} in the picture?",
        "Where can I find the {}?",
        "In which part of the image is the {}?",
        "What is the position of the {}?",
    )
    named = [
        (o, name) for o in scene.objects if (name := _unique_name(scene, o, color=True, rng=rng))
    ]
    if named and rng.random() < 0.85:
        o, name = named[int(rng.integers(len(named)))]
        return Turn("position", pick(rng, ask).format(name), f"The {name} is in the {o.place}.")
    o = scene.objects[int(rng.integers(len(scene.objects)))]
    same = [x for x in scene.objects if (x.color, x.shape) == (o.color, o.shape)]
    if len(same) > 1 and rng.random() < 0.7:
        kind = f"{o.color} {plural(o.shape)}"
        question = pick(rng, ("Where are the {}?", "Where are the {} in the picture?")).format(kind)
        return Turn(
            "positions", question, f"The {kind} are in the {joined([x.place for x in same])}."
        )
    color, shape = _absent(scene, rng)
    return Turn(
        "absent position",
        pick(rng, ask).format(f"{color} {shape}"),
        f"There is no {color} {shape}.",
    )


def _position_by_one(scene: Scene, rng: np.random.Generator) -> Turn:
    """Where the object is that has a colour, a shape or a size to itself; a place, if none has."""
    ways = {
        "{} shape": [o.color for o in scene.objects],
        "{}": [o.shape for o in scene.objects],
        "{} one": [o.size for o in scene.objects],
    }
    named = [
        (way.format(value), o)
        for way, values in ways.items()
        for value, o in zip(values, scene.objects, strict=True)
        if values.count(value) == 1
    ]
    if not named:
        return _place_content(scene, rng)
    name, o = named[int(rng.integers(len(named)))]
    ask = pick(rng, ("Where is the {}?", "In which part of the image is the {}?"))
    return Turn("position", ask.format(name), f"The {name} is in the {o.place}.")


def _absent(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    """A colour and a shape that do not occur together, each often there by itself."""
    there = {(o.color, o.shape) for o in scene.objects}
    near = [
        (x.color, y.shape)
        for x in scene.objects
        for y in scene.objects
        if (x.color, y.shape) not in there
    ]
    if near and rng.random() < 0.6:
        return near[int(rng.integers(len(near)))]
    while True:
        color, shape = pick(rng, list(COLORS)), pick(rng, SHAPES)
        if (color, shape) not in there:
            return color, shape


def _presence(scene: Scene, rng: np.random.Generator) -> Turn:
    """Yes or no, evenly, about a colour with a shape, a shape, or a colour."""
    ask = (
        "Is there {}?",
        "Is there {} in the picture?",
        "Do you see {}?",
        "Can you see {} in the image?",
        "Does the picture show {}?",
    )
    o = scene.objects[int(rng.integers(len(scene.objects)))]
    yes, how = rng.random() < 0.5, rng.random()
    if how < 0.6:
        color, shape = (o.color, o.shape) if yes else _absent(scene, rng)
        thing = f"{color} {shape}"
    elif how < 0.8:
        missing = [s for s in SHAPES if s not in {x.shape for x in scene.objects}]
        yes = yes or not missing
        thing = o.shape if yes else pick(rng, missing)
    else:
        missing = [c for c in COLORS if c not in {x.color for x in scene.objects}]
        yes = yes or not missing
        thing = f"{o.color if yes else pick(rng, missing)} shape"
    answer = f"Yes, there is {a(thing)}." if yes else f"No, there is no {thing}."
    return Turn("presence", pick(rng, ask).format(a(thing)), answer)


def _size(scene: Scene, rng: np.random.Generator) -> Turn:
    o = scene.objects[int(rng.integers(len(scene.objects)))]
    ask = pick(
        rng,
        (
            "How big is the shape in the {}?",
            "Is the shape in the {} small or large?",
            "What size is the shape in the {}?",
        ),
    )
    return Turn("size", ask.format(o.place), f"The shape in the {o.place} is {o.size}.")


def _background(scene: Scene, rng: np.random.Generator) -> Turn:
    ask = pick(
        rng,
        (
            "What color is the background?",
            "What colour is the background?",
            "What is the background like?",
        ),
    )
    return Turn("background", ask, f"The background is {scene.background}.")


def _colors(scene: Scene, rng: np.random.Generator) -> Turn:
    there = [c for c in COLORS if c in {o.color for o in scene.objects}]
    ask = pick(
        rng,
        (
            "Which colors are there?",
            "What colors do you see?",
            "What colours do the shapes have?",
            "List the colors of the shapes.",
        ),
    )
    return Turn("colors", ask, f"The shapes are {joined(there)}.")


def brief(scene: Scene, rng: np.random.Generator) -> Turn:
    """A brief description."""
    return Turn("brief", pick(rng, BRIEF), f"{capital(group_caption(scene))}.")


Rates = dict[str, float]
"""How often each question of `conversation` is asked about a scene, by its name."""
_QUESTIONS: dict[str, Callable[[Scene, np.random.Generator], Turn]] = {
    "count": _count,
    "count of a kind": _count_some,
    "color": _color,
    "shape": _shape,
    "content of a place": _place_content,
    "position": _position,
    "position by one": _position_by_one,
    "presence": _presence,
    "size": _size,
    "background": _background,
    "colors": _colors,
    "brief": brief,
}
RATES: Rates = {
    "count": 1.0,
    "count of a kind": 1.0,
    "color": 1.8,
    "shape": 1.2,
    "content of a place": 1.5,
    "position": 2.5,
    "position by one": 1.0,
    "presence": 2.5,
    "size": 0.5,
    "background": 0.3,
    "colors": 0.5,
    "brief": 0.3,
}


def conversation(scene: Scene, rng: np.random.Generator, rates: Rates = RATES) -> list[Turn]:
    """Turns about count, colour, shape, place and presence, in random order, none asked twice."""
    turns = []
    for name, rate in rates.items():
        make = _QUESTIONS[name]
        turns += [make(scene, rng) for _ in range(int(rate + rng.random()))]
    unique = {t.question: t for t in (turns[i] for i in rng.permutation(len(turns)))}
    return [shortened(t, rng) if rng.random() < 0.1 else t for t in unique.values()]


SHORT_TOPICS = ("count", "color", "shape", "position", "presence", "size")


def short_questions(scene: Scene, rng: np.random.Generator) -> list[Turn]:
    """A question of each topic whose answer is a word or two, with that answer in lower case."""
    turns = [shortened(_QUESTIONS[topic](scene, rng), rng) for topic in SHORT_TOPICS]
    return [
        Turn(
            turn.topic.removeprefix("short "),
            turn.question.removesuffix(SHORT).strip(),
            turn.answer.lower(),
        )
        for turn in turns
        if turn.topic.startswith("short ")
    ]


def detail(scene: Scene, rng: np.random.Generator) -> Turn:
    """A detailed description."""
    return Turn("detail", pick(rng, DETAIL), detail_answer(scene))


def reasoning(scene: Scene, rng: np.random.Generator) -> list[Turn]:
    """The odd one out and why, asked openly or as yes or no; sometimes with a second turn."""
    if rng.random() < 0.8:
        turns = [Turn("unusual", pick(rng, UNUSUAL), unusual_answer(scene))]
    elif scene.odd is None:
        turns = [
            Turn(
                "unusual",
                pick(rng, ANYTHING),
                f"No, nothing is unusual here: {unusual_reason(scene)}.",
            )
        ]
    else:
        turns = [
            Turn(
                "unusual",
                pick(rng, ANYTHING),
                f"Yes, {odd_name(scene)} is unusual: {unusual_reason(scene)}.",
            )
        ]
    if rng.random() < 0.15:
        turns.append(Turn("why", pick(rng, WHY), f"Because {unusual_reason(scene)}."))
    return turns


def color_question(scene: Scene, rng: np.random.Generator) -> Turn:
    """A question for the colour of one object."""
    return _color(scene, rng)


def presence_question(scene: Scene, rng: np.random.Generator) -> Turn:
    """A yes-or-no question, evenly true and false."""
    return _presence(scene, rng)


def position_question(scene: Scene, rng: np.random.Generator) -> Turn | None:
    """A question for the place of one object; None where none can be named alone."""
    for _ in range(20):
        turn = _position(scene, rng)
        if turn.topic == "position":
            return turn
    return None
