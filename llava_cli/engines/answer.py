"""From the first logits to a finished answer: the decoding loop that all engines share.

An engine reads the prompt and gives a function that reads one more token; the loop samples, turns
tokens into text, and knows when an answer ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from llava_cli.conversation import Conversation
from llava_cli.engines.base import Candidate, FinishReason, Sampling, Stats, Token
from llava_cli.engines.sampling import Constraint, Logits, Sampler, top_logprobs
from llava_cli.engines.text_stream import TextStream
from llava_cli.engines.tokenise import Vocabulary, end_ids
from llava_cli.errors import LlavaError
from llava_cli.prompts import PromptFormat

Advance = Callable[[int], Logits | None]
"""Reads one more token and gives the logits (V,) of the next; None where the context is full."""


@dataclass(frozen=True)
class Prefilled:
    """A prompt that was read."""

    logits: Logits
    """(V,), of the first token."""
    started: float
    """When the answer was asked for, on `time.perf_counter`."""
    stats: Stats
    """All but what the answer adds."""


class Writer:
    """One answer while it grows: takes logits, gives tokens, knows the token to read next."""

    def __init__(
        self,
        prompt: Prefilled,
        vocabulary: Vocabulary,
        prompt_format: PromptFormat,
        sampling: Sampling,
        *,
        continued: bool,
        constraint: Constraint | None = None,
    ) -> None:
        """`continued`: the answer goes on from a prefill."""
        lead = "" if continued else prompt_format.answer_open
        self._text = TextStream((*prompt_format.stop, *sampling.stop), lead)
        self._ends = end_ids(prompt_format, vocabulary)
        self._sampler = Sampler(sampling)
        self._vocabulary = vocabulary
        self._sampling = sampling
        self._prompt = prompt
        self._constraint = constraint
        self._began = time.perf_counter()
        self._ttft = self._began - prompt.started
        self._candidates = first_candidates(prompt.logits, sampling, vocabulary)
        self.count = 0
        self.token: int | None = None
        """What is to be read before the next `take`; None where the answer has ended."""
        self.reason: FinishReason = "length"

    def take(self, logits: Logits) -> Token | None:
        """Choose one token; None where the answer has ended before it."""
        self.token = None
        if self.count >= self._sampling.max_tokens:
            return None
        token = self._sampler.choose(logits, self._constraint)
        if self.count == 0:
            self._ttft = time.perf_counter() - self._prompt.started
        if token in self._ends or self._vocabulary.is_end(token):
            self.reason = "stop"
            return None
        self.count += 1
        if self._constraint is not None:
            self._constraint.accept(token)
        shown = Token(self._text.add(self._vocabulary.piece(token)), token, self._candidates)
        self._candidates = ()
        if self._text.stopped:
            self.reason = "stop"
        elif self.count < self._sampling.max_tokens:
            self.token = token
        return shown

    def close(self) -> Token:
        """The closing token."""
        if self._constraint is not None:
            self._constraint.close()
        tail = self._text.close()
        if self._text.stopped:  # the last bytes completed a stop text
            self.reason = "stop"
        stats = replace(
            self._prompt.stats,
            completion_tokens=self.count,
            ttft_s=self._ttft,
            decode_s=time.perf_counter() - self._began,
        )
        return Token(tail, None, self._candidates, self.reason, stats)


def answer(
    prompt: Prefilled,
    advance: Advance,
    vocabulary: Vocabulary,
    prompt_format: PromptFormat,
    sampling: Sampling,
    *,
    continued: bool,
) -> Iterator[Token]:
    """Stream one answer; `continued` is one that goes on from a prefill."""
    writer = Writer(prompt, vocabulary, prompt_format, sampling, continued=continued)
    yield from written(writer, prompt.logits, advance)


def written(writer: Writer, logits: Logits | None, advance: Advance) -> Iterator[Token]:
    """Run one answer to its end."""
    while logits is not None:
        token = writer.take(logits)
        if token is not None:
            yield token
        if writer.token is None:
            break
        logits = advance(writer.token)
    yield writer.close()


def room_for(prompt: int, sampling: Sampling, limit: int, reference: str) -> int:
    """Positions to keep for a prompt and its answer, within what the model can read."""
    if prompt >= limit:
        raise LlavaError(
            f"the prompt takes {prompt} tokens, but {reference} reads at most {limit - 1}",
            "ask with a shorter text, fewer pictures or fewer earlier turns",
        )
    return min(prompt + max(sampling.max_tokens, 1), limit)


def is_continued(conversation: Conversation) -> bool:
    """Whether the last turn is the assistant's, to be continued."""
    messages = conversation.messages
    return bool(messages) and messages[-1].role == "assistant"


def first_candidates(
    logits: Logits, sampling: Sampling, vocabulary: Vocabulary
) -> tuple[Candidate, ...]:
    """What `Sampling.top_logprobs` asks for."""
    if sampling.top_logprobs <= 0:
        return ()
    return tuple(
        Candidate(token, vocabulary.name(token), logprob)
        for token, logprob in top_logprobs(logits, sampling.top_logprobs)
    )
