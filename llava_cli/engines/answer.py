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
from llava_cli.engines.sampling import Logits, Sampler, top_logprobs
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
    lead = "" if continued else prompt_format.answer_open
    text = TextStream((*prompt_format.stop, *sampling.stop), lead)
    ends = end_ids(prompt_format, vocabulary)
    sampler = Sampler(sampling)
    began = time.perf_counter()
    logits: Logits | None = prompt.logits
    candidates = _candidates(prompt.logits, sampling, vocabulary)
    reason: FinishReason = "length"
    ttft = began - prompt.started
    count = 0
    while logits is not None and count < sampling.max_tokens:
        token = sampler.choose(logits)
        if count == 0:
            ttft = time.perf_counter() - prompt.started
        if token in ends or vocabulary.is_end(token):
            reason = "stop"
            break
        count += 1
        yield Token(text.add(vocabulary.piece(token)), token, candidates)
        candidates = ()
        if text.stopped:
            reason = "stop"
            break
        logits = advance(token) if count < sampling.max_tokens else None
    tail = text.close()
    if text.stopped:  # the last bytes completed a stop text
        reason = "stop"
    decode_s = time.perf_counter() - began
    stats = replace(prompt.stats, completion_tokens=count, ttft_s=ttft, decode_s=decode_s)
    yield Token(tail, None, candidates, reason, stats)


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


def _candidates(
    logits: Logits, sampling: Sampling, vocabulary: Vocabulary
) -> tuple[Candidate, ...]:
    if sampling.top_logprobs <= 0:
        return ()
    return tuple(
        Candidate(token, vocabulary.name(token), logprob)
        for token, logprob in top_logprobs(logits, sampling.top_logprobs)
    )
