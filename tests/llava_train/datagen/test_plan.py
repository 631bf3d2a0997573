"""Which pictures get which kinds: exact counts, in one pass, by the seed alone."""

from __future__ import annotations

from collections import Counter

import pytest

from llava_cli.errors import UsageError
from llava_train.datagen.contexts import Picture
from llava_train.datagen.plan import LLAVA_MIX, parse_mix, quotas, tasks


def pictures(count: int) -> list[Picture]:
    return [Picture(str(i), f"{i}.jpg", ("x",)) for i in range(count)]


def test_the_mixture_is_llavas_by_default() -> None:
    assert parse_mix("58:23:77") == LLAVA_MIX
    assert quotas(77_000, LLAVA_MIX, None) == {
        "conversation": 58_000,
        "detail": 23_000,
        "reasoning": 77_000,
    }
    assert quotas(80_000, LLAVA_MIX, 158) == {"conversation": 58, "detail": 23, "reasoning": 77}


@pytest.mark.parametrize(("count", "samples"), [(1, None), (7, 10), (100, 1), (13, 20), (5, None)])
def test_counts_add_up_and_no_picture_is_used_twice(count: int, samples: int | None) -> None:
    wanted = quotas(count, LLAVA_MIX, samples)
    if samples is not None:
        assert sum(wanted.values()) == samples
    found = list(tasks(pictures(count), count, wanted, seed=3))
    assert Counter(task.kind for task in found) == Counter(wanted)
    assert len({task.name for task in found}) == len(found)


def test_the_seed_decides_and_nothing_else() -> None:
    wanted = quotas(200, LLAVA_MIX, 100)
    one, again, other = (
        [task.name for task in tasks(pictures(200), 200, wanted, seed)] for seed in (1, 1, 2)
    )
    assert one == again != other


def test_more_than_the_pictures_give_is_refused() -> None:
    with pytest.raises(UsageError, match="at most 2"):
        quotas(1, {"conversation": 1, "detail": 1, "reasoning": 0}, 3)


@pytest.mark.parametrize("text", ["", "1:2", "a:b:c", "detial=1", "0:0:0", "1:-1:1", "nan:1:1"])
def test_a_mixture_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no mixture"):
        parse_mix(text)


def test_a_mixture_may_name_kinds() -> None:
    assert parse_mix("detail=1, reasoning=2") == {"conversation": 0, "detail": 1, "reasoning": 2}
