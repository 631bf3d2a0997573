"""The decoding loop that all engines share, with a scripted model."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from llava_cli.conversation import Conversation
from llava_cli.engines import answer
from llava_cli.engines.base import Sampling, Stats, Token
from llava_cli.errors import LlavaError
from llava_cli.prompts import FORMATS

WORDS = [b"</s>", b" The", b" circle", b"###", b"\xf0\x9f", b"\x99\x82", b"<eot>", b" red"]
VICUNA = FORMATS["vicuna_v1"]


class Words:
    """A vocabulary of the words above; 0 and 6 end a turn."""

    bos: int | None = None

    def encode(self, text: str) -> list[int]:
        return [WORDS.index(text.encode())]

    def special(self, text: str) -> int | None:
        return 0 if text == "</s>" else None

    def piece(self, token: int) -> bytes:
        return b"" if token in (0, 6) else WORDS[token]

    def name(self, token: int) -> str:
        return WORDS[token].decode("utf-8", "replace")

    def is_end(self, token: int) -> bool:
        return token == 6


def run(
    script: list[int], *, context: int = 99, continued: bool = False, **settings: Any
) -> list[Token]:
    """Answer by a model that wants to say exactly these tokens."""

    def logits(place: int) -> npt.NDArray[np.float32]:
        row = np.zeros(len(WORDS), np.float32)
        row[script[place]] = 5.0
        return row

    read: list[int] = []

    def advance(token: int) -> npt.NDArray[np.float32] | None:
        read.append(token)
        return logits(len(read)) if len(read) < context else None

    prompt = answer.Prefilled(logits(0), time.perf_counter(), Stats(prompt_tokens=3))
    sampling = Sampling(**settings)
    return list(answer.answer(prompt, advance, Words(), VICUNA, sampling, continued=continued))


def text_of(tokens: list[Token]) -> str:
    return "".join(token.text for token in tokens)


def test_an_end_token_ends_the_answer_and_is_not_part_of_it() -> None:
    for end in (0, 6):
        tokens = run([1, 2, end])
        assert text_of(tokens) == "The circle"
        assert (tokens[-1].finish_reason, tokens[-1].id) == ("stop", None)
        assert tokens[-1].stats is not None and tokens[-1].stats.completion_tokens == 2


def test_max_tokens_ends_the_answer_with_length() -> None:
    tokens = run([1, 2, 2, 2, 2], max_tokens=3)
    assert [token.id for token in tokens] == [1, 2, 2, None]
    assert tokens[-1].finish_reason == "length"


def test_a_full_context_ends_the_answer_with_length() -> None:
    tokens = run([1, 2, 2, 2], context=2)
    assert (text_of(tokens), tokens[-1].finish_reason) == ("The circle", "length")


def test_a_stop_text_ends_the_answer_without_a_trace() -> None:
    tokens = run([1, 3, 2, 0], stop=("##",))
    assert (text_of(tokens), tokens[-1].finish_reason) == ("The", "stop")


def test_only_the_closing_token_carries_stats() -> None:
    tokens = run([1, 2, 0])
    assert [token.stats is None for token in tokens] == [True, True, False]
    stats = tokens[-1].stats
    assert stats is not None and stats.prompt_tokens == 3 and stats.ttft_s > 0


def test_characters_of_several_tokens_come_out_whole() -> None:
    assert [token.text for token in run([1, 4, 5, 0])] == ["The", "", "🙂", ""]


def test_a_continued_answer_keeps_its_leading_space() -> None:
    assert text_of(run([2, 0], continued=True)) == " circle"


def test_candidates_come_with_the_first_token_only() -> None:
    tokens = run([1, 2, 0], top_logprobs=2)
    assert [len(token.candidates) for token in tokens] == [2, 0, 0]
    best = tokens[0].candidates[0]
    assert (best.id, best.text) == (1, " The") and best.logprob < 0


def test_candidates_of_an_empty_answer_come_with_its_closing_token() -> None:
    tokens = run([0], top_logprobs=1)
    assert len(tokens) == 1 and tokens[0].candidates[0].text == "</s>"


def test_no_tokens_wanted_no_tokens_given() -> None:
    tokens = run([1], max_tokens=0)
    assert [(token.text, token.finish_reason) for token in tokens] == [("", "length")]


def test_a_prompt_beyond_the_model_is_explained() -> None:
    with pytest.raises(LlavaError, match="takes 600 tokens.* reads at most 511") as caught:
        answer.room_for(600, Sampling(), 512, "tiny")
    assert caught.value.hint
    assert answer.room_for(500, Sampling(max_tokens=100), 512, "tiny") == 512
    assert answer.room_for(100, Sampling(max_tokens=100), 512, "tiny") == 200


def test_only_an_unfinished_answer_is_continued() -> None:
    asked = Conversation().add("user", "a question")
    assert not answer.is_continued(asked)
    assert answer.is_continued(asked.add("assistant", "an ans"))
