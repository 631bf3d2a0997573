"""Sampling: greedy is the maximum, every limit limits, a seed repeats."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from llava_cli.engines.base import Sampling
from llava_cli.engines.sampling import Sampler, softmax, top_logprobs
from llava_cli.errors import LlavaError

LOGITS = np.log(np.array([0.02, 0.5, 0.25, 0.13, 0.1], np.float32))


def drawn(count: int = 400, **settings: Any) -> list[int]:
    sampler = Sampler(Sampling(**{"temperature": 1.0, "seed": 7, **settings}))
    return [sampler.choose(LOGITS) for _ in range(count)]


def test_greedy_takes_the_maximum_and_of_equals_the_first() -> None:
    sampler = Sampler(Sampling())
    assert sampler.choose(LOGITS) == 1
    assert sampler.choose(np.array([0.0, 3.0, 3.0], np.float32)) == 1


def test_a_seed_repeats_and_another_does_not() -> None:
    assert drawn(seed=3) == drawn(seed=3)
    assert drawn(seed=3) != drawn(seed=4)


def test_draws_follow_the_probabilities() -> None:
    counts = np.bincount(drawn(4000), minlength=5) / 4000
    assert np.abs(counts - softmax(LOGITS)).max() < 0.03


def test_low_temperature_sharpens_high_temperature_flattens() -> None:
    assert drawn(temperature=0.3).count(1) > drawn(temperature=1.0).count(1)
    assert drawn(temperature=3.0).count(1) < drawn(temperature=1.0).count(1)


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [
        ({"top_k": 1}, {1}),
        ({"top_k": 2}, {1, 2}),
        ({"top_p": 0.5}, {1}),
        ({"top_p": 0.74}, {1, 2}),
        ({"top_p": 0.0}, {1}),
        ({"min_p": 0.45}, {1, 2}),
        ({"min_p": 0.9}, {1}),
        ({"top_k": 3, "top_p": 0.9, "min_p": 0.4}, {1, 2}),
    ],
)
def test_limits_keep_exactly_what_they_should(settings: dict[str, Any], allowed: set[int]) -> None:
    assert set(drawn(**settings)) == allowed


def test_repeat_penalty_turns_to_another_token() -> None:
    sampler = Sampler(Sampling(repeat_penalty=2.0))
    logits = np.array([1.0, 3.0, 2.0, -1.0], np.float32)
    before = logits.copy()
    assert [sampler.choose(logits) for _ in range(3)] == [1, 2, 1]
    assert np.array_equal(logits, before)


def test_repeat_penalty_lowers_negative_logits_too() -> None:
    sampler = Sampler(Sampling(repeat_penalty=1.5))
    logits = np.array([-1.0, -1.2], np.float32)
    assert [sampler.choose(logits), sampler.choose(logits)] == [0, 1]


def test_logits_that_are_not_numbers_are_an_error() -> None:
    with pytest.raises(LlavaError, match="not numbers"):
        Sampler(Sampling()).choose(np.array([1.0, np.nan], np.float32))


def test_top_logprobs_are_those_of_the_whole_vocabulary() -> None:
    found = top_logprobs(LOGITS + 100, 3)
    assert [token for token, _ in found] == [1, 2, 3]
    assert np.allclose(np.exp([p for _, p in found]), [0.5, 0.25, 0.13], atol=1e-6)
