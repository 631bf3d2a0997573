"""Which pictures get which kinds of samples: a pure function of the data, the mixture and the seed.

LLaVA made 58K conversations, 23K descriptions and 77K reasoning samples over about 80K pictures; by
default the same proportions come out, with as many samples as the pictures allow.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from llava_cli.errors import UsageError
from llava_train.datagen.contexts import KINDS, Picture

LLAVA_MIX = {"conversation": 58.0, "detail": 23.0, "reasoning": 77.0}


@dataclass(frozen=True)
class Task:
    """One sample to be made."""

    picture: Picture
    kind: str

    @property
    def name(self) -> str:
        """The sample's id."""
        return f"{self.picture.id}-{self.kind}"


def parse_mix(text: str) -> dict[str, float]:
    """`58:23:77`, or `conversation=58,detail=23,reasoning=77` with some left out."""
    try:
        if "=" in text:
            pairs = (part.partition("=") for part in text.split(","))
            found = {key.strip(): float(value) for key, _, value in pairs}
        else:
            found = dict(zip(KINDS, map(float, text.split(":")), strict=True))
    except ValueError as error:
        raise _bad_mix(text) from error
    if set(found) - set(KINDS) or not all(0 <= share < 1e9 for share in found.values()):
        raise _bad_mix(text)
    if not any(found.values()):
        raise _bad_mix(text)
    return {kind: found.get(kind, 0.0) for kind in KINDS}


def quotas(pictures: int, mix: Mapping[str, float], samples: int | None) -> dict[str, int]:
    """How many samples of each kind; a picture is used at most once for a kind."""
    largest, total = max(mix.values()), sum(mix.values())
    most = round(pictures * total / largest)
    if samples is not None and samples > most:
        raise UsageError(
            f"{pictures} pictures give at most {most} samples in this mixture, not {samples}",
            "ask for fewer, change --mix, or add pictures",
        )
    wanted = most if samples is None else samples
    exact = {kind: wanted * share / total for kind, share in mix.items()}
    found = {kind: int(number) for kind, number in exact.items()}
    # What rounding took goes to those who lost most by it.
    by_loss = sorted(found, key=lambda kind: (found[kind] - exact[kind], KINDS.index(kind)))
    for kind in by_loss[: wanted - sum(found.values())]:
        found[kind] += 1
    return {kind: min(number, pictures) for kind, number in found.items()}


def tasks(
    pictures: Iterable[Picture], count: int, wanted: Mapping[str, int], seed: int
) -> Iterator[Task]:
    """Exactly `wanted` of each kind, drawn from `count` pictures in one pass over them.

    Knuth's Algorithm S (TAOCP 3.4.2): with m to be chosen from n that remain, the next is chosen
    with probability m/n.
    """
    remaining = dict(wanted)
    draws = {kind: random.Random(f"{seed}/{kind}") for kind in KINDS}
    for position, picture in enumerate(pictures):
        for kind in KINDS:
            if draws[kind].random() * (count - position) < remaining.get(kind, 0):
                remaining[kind] -= 1
                yield Task(picture, kind)


def _bad_mix(text: str) -> UsageError:
    return UsageError(
        f"--mix {text!r} is no mixture",
        "write conversation:detail:reasoning, for example 58:23:77, or detail=1,reasoning=2",
    )
