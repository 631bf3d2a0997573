"""An answer out of a few that are allowed, with the probability of each: for all engines.

The probability of a choice is that of its tokens, one after the other, given the prompt: the event
"the answer begins with this choice and with no longer one that is allowed". These events exclude
each other, so their probabilities, divided by their sum, are those of the choices given that the
answer is one of them. What the model would say behind a choice does not count.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from llava_cli.conversation import Conversation, Message
from llava_cli.engines.answer import Prefilled, first_candidates
from llava_cli.engines.base import Sampling, Token
from llava_cli.engines.sampling import Logits, Sampler
from llava_cli.engines.tokenise import Vocabulary
from llava_cli.errors import UsageError

Cells = Sequence[Any]
"""What stands at each position, as the engine knows it; token ids are integers."""


class Choice:
    """The allowed answers to one conversation, written down."""

    def __init__(
        self,
        conversation: Conversation,
        sampling: Sampling,
        cells_of: Callable[[Conversation], Cells],
    ) -> None:
        """`cells_of` writes a conversation down without reading it."""
        self._sampling = sampling
        self._base = list(cells_of(conversation))
        self._owner: list[int] = []
        written: list[list[Any]] = []
        for number, forms in enumerate(sampling.choices):
            for text in forms:
                self._owner.append(number)
                written.append(list(cells_of(_answered(conversation, text))))
        self._common = _common_length([*written, written[0]])
        self._head = written[0][: self._common]
        self._tails = [tuple(cells[self._common :]) for cells in written]
        if len(set(self._tails)) < len(self._tails):
            raise UsageError("two of the choices are the same to the model", "leave one out")
        self.longest = max(len(cells) for cells in written) - len(self._base)
        """Tokens that the longest one has more than the prompt."""

    def answer(
        self, prompt: Prefilled, behind: Callable[[Cells], Logits], vocabulary: Vocabulary
    ) -> Iterator[Token]:
        """The answer; `behind` gives the logits (V,) behind any cells."""
        began = time.perf_counter()
        root = prompt.logits if self._head == self._base else behind(self._head)
        scores = self._scores(root, behind)
        count = len(self._sampling.choices)
        joint = np.full(count, -np.inf)
        for owner, score in zip(self._owner, scores, strict=True):
            joint[owner] = np.logaddexp(joint[owner], score)
        chosen = Sampler(self._sampling).choose(joint)
        shares = np.exp(joint - np.logaddexp.reduce(joint))
        tokens = min(len(t) for t, o in zip(self._tails, self._owner, strict=True) if o == chosen)
        now = time.perf_counter()
        stats = replace(
            prompt.stats,
            completion_tokens=max(tokens, 1),
            ttft_s=now - prompt.started,
            decode_s=now - began,
        )
        text = self._sampling.choices[chosen][0]
        names = [forms[0] for forms in self._sampling.choices]
        candidates = first_candidates(prompt.logits, self._sampling, vocabulary)
        yield Token(text, self._first_token(chosen), candidates)
        shown = tuple((name, float(share)) for name, share in zip(names, shares, strict=True))
        yield Token("", None, (), "stop", stats, probabilities=shown)

    def _first_token(self, chosen: int) -> int | None:
        tail = self._tails[self._owner.index(chosen)]
        return int(tail[0]) if tail else None

    def _scores(self, root: Logits, behind: Callable[[Cells], Logits]) -> list[float]:
        """Log-probability of each written choice, without those that go on from it."""
        nodes: dict[tuple[Any, ...], Any] = {(): _log_softmax(root)}
        whole: dict[tuple[Any, ...], float] = {}
        for tail in sorted(self._tails):
            total = 0.0
            for place, token in enumerate(tail):
                node = tail[:place]
                if node not in nodes:
                    nodes[node] = _log_softmax(behind([*self._head, *node]))
                total += float(nodes[node][token])
            whole[tail] = total
        return [_exclusive(tail, whole) for tail in self._tails]


def _exclusive(tail: tuple[Any, ...], whole: dict[tuple[Any, ...], float]) -> float:
    """The log-probability of a choice but of no longer one that begins with it."""
    longer = [t for t in whole if len(t) > len(tail) and t[: len(tail)] == tail]
    nearest = [t for t in longer if not any(t != o and t[: len(o)] == o for o in longer)]
    share = sum(float(np.exp(whole[t] - whole[tail])) for t in nearest)
    return whole[tail] + float(np.log(max(1.0 - share, 1e-12)))


def _answered(conversation: Conversation, text: str) -> Conversation:
    """The conversation with this beginning of an answer."""
    messages = conversation.messages
    if messages and messages[-1].role == "assistant":  # a prefill
        last = Message("assistant", (*messages[-1].content, text))
        return Conversation((*messages[:-1], last))
    return conversation.add("assistant", text)


def _common_length(rows: Sequence[Cells]) -> int:
    length = 0
    for column in zip(*rows, strict=False):
        if any(cell != column[0] for cell in column):
            break
        length += 1
    return length


def _log_softmax(logits: Logits) -> Any:
    values = np.asarray(logits, np.float64)
    top = values.max()
    return values - top - np.log(np.exp(values - top).sum())
