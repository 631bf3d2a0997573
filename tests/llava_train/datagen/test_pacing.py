"""Limits a minute hold, and every form of Retry-After is understood."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from llava_train.datagen.pacing import LONGEST_NAMED_S, LONGEST_PAUSE_S, Pace, retry_after

NOW = 784_111_777.0  # Sun, 06 Nov 1994 08:49:37 GMT, the example of the HTTP standard


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7),
        ({"retry-after": " 0.5 "}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "Sun, 06 Nov 1994 08:49:47 GMT"}, 10),
        ({"retry-after": "Sun, 06 Nov 1994 08:00:00 GMT"}, 0),
        ({"retry-after": "-5"}, 0),
        ({"retry-after": "1e12"}, LONGEST_NAMED_S),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "\x00"}, None),
    ],
)
def test_a_named_pause(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers, lambda: NOW) == seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Time that passes only while somebody sleeps."""
    now = [100.0]
    real = asyncio.sleep

    async def sleep(seconds: float) -> None:
        now[0] += seconds
        await real(0)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    yield now


def departures(pace: Pace, clock: list[float], tokens: list[int]) -> list[float]:
    async def go() -> list[float]:
        times = []
        for n in tokens:
            await pace.turn(n)
            times.append(clock[0] - 100)
        return times

    return asyncio.run(go())


def test_requests_a_minute(clock: list[float]) -> None:
    pace = Pace(requests_per_minute=30, clock=lambda: clock[0])
    assert departures(pace, clock, [1] * 4) == pytest.approx([0, 2, 4, 6])


def test_tokens_a_minute(clock: list[float]) -> None:
    pace = Pace(tokens_per_minute=6000, clock=lambda: clock[0])
    assert departures(pace, clock, [100, 300, 1]) == pytest.approx([0, 1, 4])


def test_no_limit_waits_for_nothing_but_a_pause(clock: list[float]) -> None:
    pace = Pace(clock=lambda: clock[0])
    assert departures(pace, clock, [1, 1]) == [0, 0]
    pace.pause(5)
    assert departures(pace, clock, [1, 1]) == [5, 5]


def test_backoff_doubles_to_a_limit() -> None:
    pace = Pace(first_pause_s=1)
    for attempt in range(12):
        longest = min(2.0**attempt, LONGEST_PAUSE_S)
        assert longest / 2 <= pace.backoff(attempt) <= longest
