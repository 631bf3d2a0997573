"""What a question would take: the figures that both engines reckon before a model is loaded."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """Counts of tokens and bytes."""

    prompt_tokens: int
    """Text tokens."""
    image_tokens: int
    answer_tokens: int
    """At most."""
    limit: int
    """Positions that the model reads."""
    weights: int
    mmproj: int
    """0 where the weights hold the vision tower, too."""
    kv: int
    """Keys and values of prompt and answer."""
    compute: int
    """Intermediate results; a rough figure."""
    available: int | None
    """Memory that is free now."""

    @property
    def positions(self) -> int:
        """Positions of prompt and answer, within the limit."""
        return min(self.prompt_tokens + self.image_tokens + self.answer_tokens, self.limit)

    @property
    def fits_context(self) -> bool:
        """Whether the prompt can be read at all."""
        return self.prompt_tokens + self.image_tokens < self.limit

    @property
    def total(self) -> int:
        """Bytes of everything."""
        return self.weights + self.mmproj + self.kv + self.compute
