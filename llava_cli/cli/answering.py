"""An engine's tokens, brought to stdout and into the documents that cli.md promises."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llava_cli.engines.base import Candidate, Engine, FinishReason, Sampling, Stats, Token
from llava_cli.errors import LlavaError
from llava_cli.terminal.safe import one_line
from llava_cli.terminal.streams import dim

if TYPE_CHECKING:
    from llava_cli.conversation import Conversation
    from llava_cli.terminal.answers import AnswerStream


@dataclass(frozen=True)
class Answer:
    """A whole answer and what is known about it."""

    text: str
    finish_reason: FinishReason
    stats: Stats
    candidates: tuple[Candidate, ...]
    probabilities: tuple[tuple[str, float], ...] = ()


class Collector:
    """Adds up the tokens of one answer; a prefill is its beginning."""

    def __init__(self, prefill: str = "") -> None:
        self._text = [prefill]
        self._candidates: tuple[Candidate, ...] = ()
        self._last: Token | None = None

    def add(self, token: Token) -> None:
        """Take the next token."""
        self._text.append(token.text)
        self._candidates = self._candidates or token.candidates
        self._last = token

    @property
    def finished(self) -> bool:
        """Whether the last token was the closing one."""
        return self._last is not None and self._last.finish_reason is not None

    def answer(self) -> Answer:
        """The answer; an engine whose stream does not close is a defect."""
        if self._last is None or self._last.finish_reason is None:
            raise LlavaError("the engine ended without finishing its answer", "report this")
        return Answer(
            text="".join(self._text),
            finish_reason=self._last.finish_reason,
            stats=self._last.stats or Stats(),
            candidates=self._candidates,
            probabilities=self._last.probabilities,
        )


def stream_answer(tokens: Iterator[Token], out: AnswerStream | None, prefill: str) -> Answer:
    """Run an answer to its end, showing it on `out` while it comes."""
    collector = Collector(prefill)
    try:
        if out is not None and prefill:
            out.write(prefill)
        for token in tokens:
            collector.add(token)
            if out is not None and token.text:
                out.write(token.text)
    except BrokenPipeError:
        raise  # nobody reads: nothing to close
    except BaseException:
        if out is not None:
            out.close()
        raise
    if out is not None:
        out.close()
    return collector.answer()


def batch_answers(
    engine: Engine, conversations: Sequence[Conversation], sampling: Sampling, prefill: str
) -> Iterator[Answer]:
    """The answers to many conversations, in the order of the conversations."""
    collectors = [Collector(prefill) for _ in conversations]
    following = 0
    for index, token in engine.generate_batch(conversations, sampling):
        collectors[index].add(token)
        while following < len(collectors) and collectors[following].finished:
            yield collectors[following].answer()
            following += 1
    while following < len(collectors):
        yield collectors[following].answer()
        following += 1


def document(answer: Answer, engine: Engine, *, top_logprobs: bool) -> dict[str, Any]:
    """The object of `ask --json`."""
    stats = answer.stats
    result: dict[str, Any] = {
        "text": answer.text,
        "finish_reason": answer.finish_reason,
        "model": engine.files.reference,
        "engine": engine.name,
        "device": engine.device,
        "prompt_format": engine.prompt_format,
        "images": [
            {
                "source": image.source,
                "width": image.width,
                "height": image.height,
                "tokens": image.tokens,
            }
            for image in stats.images
        ],
        "usage": {
            "prompt_tokens": stats.prompt_tokens,
            "image_tokens": stats.image_tokens,
            "completion_tokens": stats.completion_tokens,
        },
        "timing": {
            "load_s": stats.load_s,
            "image_s": stats.image_s,
            "prefill_s": stats.prefill_s,
            "ttft_s": stats.ttft_s,
            "decode_s": stats.decode_s,
            "tokens_per_s": stats.tokens_per_s,
        },
        "cache": {
            "image": stats.cache_image,
            "prefix_tokens_reused": stats.prefix_tokens_reused,
        },
    }
    if answer.probabilities:
        result["probabilities"] = dict(answer.probabilities)
    if top_logprobs:
        result["first_token"] = [
            {"id": candidate.id, "text": candidate.text, "logprob": candidate.logprob}
            for candidate in answer.candidates
        ]
    return result


def write_stats(answer: Answer, engine: Engine) -> None:
    """Counts and seconds of one answer, on stderr."""
    stats = answer.stats
    lines = [f"{engine.files.reference} · {engine.name} · {engine.device} · {engine.prompt_format}"]
    lines += [
        f"{image.source}: {image.width}×{image.height}, {image.tokens} tokens"
        for image in stats.images
    ]
    lines.append(
        f"prompt {stats.prompt_tokens} + {stats.image_tokens} image tokens,"
        f" answer {stats.completion_tokens} tokens ({answer.finish_reason})"
    )
    lines.append(
        f"load {stats.load_s:.2f} s, image {stats.image_s:.2f} s, prefill {stats.prefill_s:.2f} s,"
        f" first token {stats.ttft_s:.2f} s, {stats.tokens_per_s:.1f} tokens/s"
    )
    lines += [f"{share:7.4f}  {choice}" for choice, share in answer.probabilities]
    _write_lines(lines)


def write_candidates(answer: Answer) -> None:
    """The likeliest first tokens, on stderr."""
    _write_lines([f"{c.logprob:9.4f}  {c.id:>7}  {c.text!r}" for c in answer.candidates])


def _write_lines(lines: Sequence[str]) -> None:
    for line in lines:
        sys.stderr.write(dim(one_line(line), sys.stderr) + "\n")
    sys.stderr.flush()
