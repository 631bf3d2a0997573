"""How the next token is chosen from its logits: the same code for all engines.

The order is llama.cpp's: repeat penalty, then greedy where the temperature is 0; else top-k, top-p,
min-p, temperature, draw. Everything runs in float64. Not here: what ends an answer (`answer.py`).
"""

from __future__ import annotations

from collections import deque
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from llava_cli.engines.base import Sampling
from llava_cli.errors import LlavaError

Logits = npt.NDArray[np.floating[Any]]
PENALTY_WINDOW = 64
"""The repeat penalty looks at so many last tokens of the answer."""


class Constraint(Protocol):
    """What may come next; a grammar, for instance."""

    def allows(self, token: int) -> bool:
        """Whether the answer may go on with this token."""
        ...

    def masked(self, logits: Logits) -> Logits:
        """Logits (V,) with -inf for all that may not come; at least one may."""
        ...

    def accept(self, token: int) -> None:
        """The answer goes on with this token."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


class Sampler:
    """Chooses the tokens of one answer."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._random = np.random.default_rng(sampling.seed)
        self._recent: deque[int] = deque(maxlen=PENALTY_WINDOW)

    def choose(self, logits: Logits, constraint: Constraint | None = None) -> int:
        """The next token's id; logits (V,) are left as they are.

        A token that the constraint forbids is drawn again among those that it allows, which gives
        every allowed one the probability it has among them.
        """
        sampling = self._sampling
        if sampling.repeat_penalty != 1.0 and self._recent:
            logits = self._penalised(logits)
        best = int(np.argmax(logits))
        if np.isnan(logits[best]):
            raise LlavaError(
                "the model computed values that are not numbers (NaN)",
                "its files may be damaged, or its numbers too large for this precision",
            )
        token = best if sampling.temperature <= 0 else self._drawn(logits)
        if constraint is not None and not constraint.allows(token):
            logits = constraint.masked(logits)
            token = int(np.argmax(logits)) if sampling.temperature <= 0 else self._drawn(logits)
        self._recent.append(token)
        return token

    def _penalised(self, logits: Logits) -> Logits:
        """Tokens of late are made less likely, as llama.cpp and transformers do."""
        ids = np.unique(np.fromiter(self._recent, np.int64))
        penalised = np.array(logits, np.float64)
        values, penalty = penalised[ids], self._sampling.repeat_penalty
        penalised[ids] = np.where(values > 0, values / penalty, values * penalty)
        return penalised

    def _drawn(self, logits: Logits) -> int:
        sampling = self._sampling
        ids = np.argsort(-logits.astype(np.float64), kind="stable")  # ties: the lower id first
        if sampling.top_k > 0:
            ids = ids[: sampling.top_k]
        values = logits[ids].astype(np.float64)
        if sampling.top_p < 1.0:
            share = np.cumsum(softmax(values))
            keep = int(np.searchsorted(share, sampling.top_p)) + 1  # at least one
            ids, values = ids[:keep], values[:keep]
        if sampling.min_p > 0.0:
            keep_mask = softmax(values) >= sampling.min_p * softmax(values)[0]
            ids, values = ids[keep_mask], values[keep_mask]
        share = np.cumsum(softmax(values / sampling.temperature))
        place = int(np.searchsorted(share, self._random.random() * share[-1], side="right"))
        return int(ids[min(place, len(ids) - 1)])


def softmax(values: Logits) -> npt.NDArray[np.float64]:
    """Probabilities of logits (V,)."""
    shifted = np.exp(np.asarray(values, np.float64) - np.max(values))
    return np.asarray(shifted / shifted.sum(), np.float64)


def top_logprobs(logits: Logits, count: int) -> list[tuple[int, float]]:
    """The likeliest tokens of the whole vocabulary with their log-probabilities, best first."""
    values = np.asarray(logits, np.float64)
    top = float(values.max())
    total = top + float(np.log(np.exp(values - top).sum()))
    ids = np.argsort(-values, kind="stable")[:count]
    return [(int(i), float(values[i]) - total) for i in ids]
