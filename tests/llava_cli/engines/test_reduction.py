"""Fewer picture tokens: what is merged is alike, what is not asked for is exact."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llava_cli import engines, models
from llava_cli.conversation import Conversation
from llava_cli.engines.base import Sampling
from llava_cli.engines.reduction import chosen, merged
from llava_cli.errors import UsageError
from llava_cli.images import Image
from llava_cli.models.files import ModelFiles
from tests import tiny

ROWS = np.random.default_rng(0).normal(size=(37, 8)).astype(np.float32)


@pytest.mark.parametrize("reduce", [merged, chosen])
@pytest.mark.parametrize("count", [1, 2, 5, 18, 36, 37, 99])
def test_exactly_so_many_are_left(reduce: Callable[..., Any], count: int) -> None:
    found = reduce(ROWS, count)
    assert found.shape == (min(count, 37), 8) and found.dtype == np.float32
    if count >= 37:
        assert np.array_equal(found, ROWS)


def test_merging_keeps_the_mean_and_the_order() -> None:
    """Every token counts once, however often it was merged."""
    assert np.allclose(merged(ROWS, 1)[0], ROWS.mean(axis=0), atol=1e-5)
    apart = np.eye(8, dtype=np.float32)
    doubled = np.repeat(apart, 2, axis=0)
    assert np.allclose(merged(doubled, 8), apart)


def test_the_most_different_are_chosen() -> None:
    apart = np.eye(8, dtype=np.float32)
    doubled = np.repeat(apart, 3, axis=0)
    found = chosen(doubled, 8)
    assert np.array_equal(np.unique(found, axis=0), np.unique(apart, axis=0))


def test_an_engine_reads_as_many_as_asked(bpe_gguf_folder: Path) -> None:
    pytest.importorskip("llama_cpp")
    files = models.resolve(str(bpe_gguf_folder))
    conversation = Conversation().add("user", Image.from_pil(tiny.picture()), "what is odd?")
    found = {}
    for count in (None, 16, 99, 6):
        engine = engines.load(files, threads=1, image_tokens=count)
        stats = list(engine.generate(conversation, Sampling(max_tokens=2)))[-1].stats
        assert stats is not None
        logits = engine.first_logits(conversation)  # type: ignore[attr-defined]
        found[count] = (stats.image_tokens, logits)
        engine.close()
    assert [found[count][0] for count in (None, 16, 99, 6)] == [16, 16, 16, 6]
    assert np.array_equal(found[None][1], found[16][1])
    assert np.array_equal(found[None][1], found[99][1])
    assert np.abs(found[None][1] - found[6][1]).max() > 0.01


def test_torch_says_that_it_cannot() -> None:
    files = ModelFiles("some", "hf", Path("some"))
    with pytest.raises(UsageError, match="merges no image tokens"):
        engines.load(files, image_tokens=64)
