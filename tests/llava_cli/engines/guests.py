"""An audience for batches: some come later, some leave after so many of their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llava_cli.conversation import Conversation
from llava_cli.engines.base import Engine, Sampling
from llava_cli.errors import LlavaError


class Guests:
    """Remembers what each heard, and what each was refused."""

    def __init__(
        self,
        later: Sequence[tuple[Conversation, Sampling]] = (),
        patience: dict[int, int] | None = None,
    ) -> None:
        self.later = list(later)
        self.patience = patience or {}
        self.heard: dict[int, list[tuple[Any, ...]]] = {}
        self.errors: dict[int, LlavaError] = {}

    def more(self) -> Sequence[tuple[Conversation, Sampling]]:
        """One at a time, when somebody has been heard."""
        return [self.later.pop(0)] if self.later and self.heard else []

    def gone(self, index: int) -> bool:
        """Whether this one has heard enough."""
        return len(self.heard.get(index, ())) >= self.patience.get(index, 10**9)

    def failed(self, index: int, error: LlavaError) -> None:
        """This one cannot be answered."""
        self.errors[index] = error

    def listen(
        self, engine: Engine, asked: Sequence[Conversation], sampling: Sampling
    ) -> list[list[tuple[Any, ...]]]:
        """Everything that is said: id, text and reason of each token, in the order of indexes."""
        for index, t in engine.generate_batch(asked, sampling, self):
            self.heard.setdefault(index, []).append((t.id, t.text, t.finish_reason))
        return [self.heard[index] for index in sorted(self.heard)]
