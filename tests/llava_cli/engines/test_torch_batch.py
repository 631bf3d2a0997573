"""Many conversations at once in PyTorch say, token for token, what each says alone."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch

from llava_cli.conversation import Conversation
from llava_cli.engines.base import Sampling
from llava_cli.engines.pytorch import TorchEngine
from llava_cli.engines.pytorch_batch import Batch
from llava_cli.errors import LlavaError, OutOfMemory
from llava_cli.images import Image
from tests import tiny
from tests.llava_cli.engines.guests import Guests

GREEDY = Sampling(max_tokens=8)
PICTURES = [Image.from_pil(tiny.picture(60 + seed, 70, seed=seed)) for seed in range(3)]


def conversations() -> list[Conversation]:
    """Of all lengths: no picture, one, two, earlier turns, a prefill."""
    short = Conversation().add("user", PICTURES[0], "why?")
    return [
        short,
        Conversation().add("user", "no picture at all, only words, and a good many of them"),
        Conversation().add("user", PICTURES[1], PICTURES[2], "what is the difference?"),
        short.add("assistant", "because.").add("user", "and what else is there?"),
        Conversation().add("user", PICTURES[2], "go on").add("assistant", "the red circle"),
    ]


def ids_of(engine: TorchEngine, asked: Conversation, sampling: Sampling) -> list[int | None]:
    return [token.id for token in engine.generate(asked, sampling)]


def batched(
    engine: TorchEngine, asked: list[Conversation], sampling: Sampling, most: int
) -> dict[int, list[int | None]]:
    found: dict[int, list[int | None]] = {}
    for index, token in Batch(engine, sampling, most).run(asked):
        found.setdefault(index, []).append(token.id)
    return found


@pytest.fixture
def engine(bpe_torch: Any) -> TorchEngine:
    assert isinstance(bpe_torch, TorchEngine)
    return bpe_torch


@pytest.mark.parametrize("most", [1, 2, 8])
def test_greedy_tokens_are_those_of_one_by_one(engine: TorchEngine, most: int) -> None:
    alone = [ids_of(engine, asked, GREEDY) for asked in conversations()]
    together = batched(engine, conversations(), GREEDY, most)
    assert [together[index] for index in range(len(alone))] == alone


def test_who_leaves_ends_no_other(engine: TorchEngine) -> None:
    alone = [ids_of(engine, asked, GREEDY) for asked in conversations()]
    found = Guests(patience={1: 2}).listen(engine, conversations(), GREEDY)
    heard = [[token[0] for token in tokens] for tokens in found]
    assert heard[1] == alone[1][:2] != alone[1]
    assert heard[0] == alone[0] and heard[2:] == alone[2:]


def test_seeds_are_kept_per_answer(engine: TorchEngine) -> None:
    sampling = Sampling(max_tokens=6, temperature=1.0, seed=5)
    alone = [ids_of(engine, asked, sampling) for asked in conversations()[:3]]
    together = batched(engine, conversations()[:3], sampling, 3)
    assert [together[index] for index in range(3)] == alone


def test_every_answer_closes_with_its_own_counts(engine: TorchEngine) -> None:
    closing = {
        index: token
        for index, token in engine.generate_batch(conversations(), GREEDY)
        if token.finish_reason is not None
    }
    assert set(closing) == set(range(5))
    counts = [closing[index].stats for index in range(5)]
    assert [stats.image_tokens if stats else None for stats in counts] == [16, 0, 32, 16, 16]
    assert all(stats and stats.prefill_s > 0 for stats in counts)


def test_an_impossible_prompt_fails_after_those_before_it(engine: TorchEngine) -> None:
    asked = [conversations()[0], Conversation().add("user", "word " * 3000), conversations()[1]]
    seen: set[int] = set()
    with pytest.raises(LlavaError, match="reads at most"):
        for index, token in engine.generate_batch(asked, GREEDY):
            if token.finish_reason is not None:
                seen.add(index)
    assert seen == {0}


def test_a_full_memory_makes_the_groups_smaller(
    engine: TorchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = [ids_of(engine, asked, GREEDY) for asked in conversations()]
    widest: list[int] = []
    forward = Batch._forward

    def narrow(batch: Batch, embeds: torch.Tensor, *rest: Any) -> torch.Tensor:
        widest.append(len(embeds))
        if len(embeds) > 2:
            raise OutOfMemory("too wide", "")
        return forward(batch, embeds, *rest)

    monkeypatch.setattr(Batch, "_forward", narrow)
    together = batched(engine, conversations(), GREEDY, 5)
    assert [together[index] for index in range(5)] == alone
    assert widest[0] == 5 and max(widest[1:]) == 2
