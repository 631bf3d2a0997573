"""Prompts are read with flash attention, many answers written without, and nobody can tell."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("llama_cpp")

from llava_cli import models
from llava_cli.conversation import Conversation
from llava_cli.engines.base import Sampling
from llava_cli.engines.gguf import transposed
from llava_cli.engines.gguf.context import FLASH_OFF, Context, ContextSettings
from llava_cli.engines.gguf.engine import GgufEngine
from llava_cli.engines.gguf.setup import Setup
from llava_cli.images import Image
from tests import tiny

SLOTS = 10
IDS = [5, 9, 17, 33, 65, 129, 3, 77]
CLOSE = 0.01
"""Logits span 14; flash attention rounds queries to float16."""


@pytest.fixture
def gguf(bpe_gguf_folder: Path) -> Iterator[GgufEngine]:
    files = models.resolve(str(bpe_gguf_folder))
    loaded = GgufEngine(files, threads=1, flash_attention=True, kv_type="f32")
    yield loaded
    loaded.close()


def context(gguf: GgufEngine, settings: ContextSettings, slots: int = 0) -> Context:
    made = Context(gguf._text, settings, gguf._interrupt, sequences=slots or 1, unified=not slots)
    made.reserve(64)
    return made


@pytest.fixture
def source(gguf: GgufEngine) -> Iterator[Context]:
    made = context(gguf, gguf.setup.context)
    made.read_tokens(IDS)
    yield made
    made.close()


@pytest.fixture
def target(gguf: GgufEngine) -> Iterator[Context]:
    made = context(gguf, replace(gguf.setup.context, flash_attention=FLASH_OFF), SLOTS)
    yield made
    made.close()


@pytest.mark.parametrize("slot", [0, 4, SLOTS - 1])
def test_a_moved_sequence_goes_on_as_if_it_had_been_read_there(
    source: Context, target: Context, slot: int
) -> None:
    mover, other = transposed.Mover(), (slot + 1) % SLOTS
    target.read_tokens([1, 2, 3], slot)  # in the way
    assert mover.move(source, target, slot)
    target.read_tokens(IDS, other)
    moved, read = target.read_many([(slot, (7,)), (other, (7,))])
    assert target.cells[slot] == [*IDS, 7]
    assert np.abs(moved - read).max() < CLOSE
    swapped = target.read_many([((slot + 2) % SLOTS, (*IDS[::-1], 7))])[0]
    assert np.abs(moved - swapped).max() > 10 * CLOSE  # what was read matters
    source.read_tokens([8, 8, 8])  # longer: the mover's memory grows
    assert mover.move(source, target, slot)
    assert np.abs(target.read_tokens((6,), slot) - source.read_tokens((6,))).max() < CLOSE


def test_a_state_that_is_not_as_known_is_left_alone(source: Context) -> None:
    room = 4 * (SLOTS - 1)
    good = bytes(source.state(0)) + bytes(room)
    assert transposed.transpose(memoryview(bytearray(good)), SLOTS)
    for length in {*range(0, len(good), 7), len(good) - 1}:
        assert not transposed.transpose(memoryview(bytearray(good[:length])), SLOTS)
    assert not transposed.transpose(memoryview(bytearray(good + bytes(4))), SLOTS)
    twice = memoryview(bytearray(good))
    transposed.transpose(twice, SLOTS)
    assert not transposed.transpose(twice, SLOTS)


def asked() -> list[Conversation]:
    pictures = [Image.from_pil(tiny.picture(60 + seed, 70, seed=seed)) for seed in range(8)]
    found = [Conversation().add("user", picture, "what is odd?") for picture in pictures]
    found.append(Conversation().add("user", pictures[0], "what is odd in this?"))
    found += [Conversation().add("user", "in words alone"), Conversation().add("user", "?")]
    return [*found, Conversation().add("user", pictures[1], "a", pictures[2], "b")]


@pytest.mark.parametrize("moved", ["always", "not by this llama.cpp", "no memory"])
def test_answers_are_those_that_each_would_get_alone(
    gguf: GgufEngine, monkeypatch: pytest.MonkeyPatch, moved: str
) -> None:
    moves: list[bool] = []
    real = transposed.Mover.move

    def move(mover: transposed.Mover, *arguments: Any) -> bool:
        moves.append(moved == "always" and real(mover, *arguments))
        if moved == "no memory":
            raise MemoryError
        return moves[-1]

    monkeypatch.setattr(transposed.Mover, "move", move)
    monkeypatch.setattr(
        Setup, "context_for", lambda setup, _: replace(setup.context, flash_attention=FLASH_OFF)
    )
    sampling = Sampling(max_tokens=12)
    together: list[list[int | None]] = [[] for _ in asked()]
    for index, token in gguf.generate_batch(asked(), sampling):
        together[index].append(token.id)
    assert together == [[t.id for t in gguf.generate(c, sampling)] for c in asked()]
    assert moves == ([True] * len(moves) if moved == "always" else [False])
    assert len(moves) >= (8 if moved == "always" else 1)
