"""Statements about a scene: names, captions, descriptions, and which shape is unusual and why.

Each statement has one wording: what is asked varies with people (`scene_questions`), what is true
does not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from llava_train.scenes import Scene

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def a(noun: str) -> str:
    """The noun with its article."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def plural(shape: str) -> str:
    """More than one of a shape."""
    return shape + ("es" if shape.endswith("s") else "s")


def joined(parts: Sequence[str]) -> str:
    """`a, b and c`."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def counted(n: int, adjective: str, noun: str) -> str:
    """`There are 3 red shapes.` and its forms for one and none."""
    words = f"{adjective} {noun}".strip()
    if n == 0:
        return f"There are no {adjective} {plural(noun)}.".replace("  ", " ")
    if n == 1:
        return f"There is 1 {words}."
    return f"There are {n} {adjective} {plural(noun)}.".replace("  ", " ")


def unusual_reason(scene: Scene) -> str:
    """What the other objects agree in, as far as the odd one does not."""
    if scene.odd is None:
        return (
            "there is only one shape"
            if len(scene.objects) == 1
            else "no shape stands out from the others"
        )
    others = [o for i, o in enumerate(scene.objects) if i != scene.odd]
    odd = scene.objects[scene.odd]
    shapes, colors = {o.shape for o in others}, {o.color for o in others}
    if shapes == {odd.shape} and colors == {odd.color}:
        return f"all the others are {others[0].size}"
    if len(shapes) == len(colors) == 1:
        return f"all the others are {others[0].color} {plural(others[0].shape)}"
    if len(colors) == 1 and odd.color not in colors:
        return f"all the others are {others[0].color}"
    return f"all the others are {plural(others[0].shape)}"


def odd_name(scene: Scene) -> str:
    """The odd one with colour, shape and place (and size, where that is what differs)."""
    if scene.odd is None:
        raise ValueError("nothing is odd in this scene")
    odd = scene.objects[scene.odd]
    by_size = len({(o.shape, o.color) for o in scene.objects}) == 1
    return f"the {odd.size + ' ' if by_size else ''}{odd.color} {odd.shape} in the {odd.place}"


def unusual_answer(scene: Scene) -> str:
    """The odd one out and why, or that nothing is unusual and why."""
    if scene.odd is None:
        return f"Nothing is unusual here: {unusual_reason(scene)}."
    return f"{capital(odd_name(scene))} is unusual: {unusual_reason(scene)}."


def detail_answer(scene: Scene) -> str:
    """Every object with its place, in reading order."""
    n = len(scene.objects)
    first = f"The picture shows {n} shape{'s' if n > 1 else ''} on a {scene.background} background."
    return " ".join(
        [
            first,
            *(f"{capital(o.place)}: {a(f'{o.size} {o.color} {o.shape}')}." for o in scene.objects),
        ]
    )


def group_caption(scene: Scene) -> str:
    """The kinds of shapes with their numbers: `a red circle and two blue stars`."""
    groups = Counter((o.color, o.shape) for o in scene.objects)
    return joined(
        [
            a(f"{c} {s}") if n == 1 else f"{NUMBERS[n]} {c} {plural(s)}"
            for (c, s), n in groups.items()
        ]
    )


def captions(scene: Scene) -> list[str]:
    """Five captions, from general to exact."""
    n = len(scene.objects)
    groups = group_caption(scene)
    number = f"{NUMBERS[n]} shape{'s' if n > 1 else ''}"
    places = joined([f"{a(f'{o.color} {o.shape}')} in the {o.place}" for o in scene.objects])
    odd = f"{groups} on a {scene.background} background"
    if scene.odd is not None:
        odd = f"{number} and {odd_name(scene)} stands out".replace(" and the", ", and the")
    return [
        f"{number} on a {scene.background} background",
        groups,
        f"a picture of {groups}",
        places,
        odd,
    ]


def capital(text: str) -> str:
    """The text with its first letter upper case."""
    return text[0].upper() + text[1:]
