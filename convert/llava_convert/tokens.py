"""What the two kinds of tokenizers have in common."""

from __future__ import annotations

from dataclasses import dataclass, field

from gguf import TokenType

ADDED_SCORE = -1000.0
"""Of tokens laid over a SentencePiece vocabulary, as llama.cpp's converter writes it."""


@dataclass
class Tokens:
    """A vocabulary before tokens are added and padded."""

    model: str
    pre: str
    tokens: list[str]
    types: list[TokenType]
    scores: list[float] | None = None
    merges: list[str] | None = None
    specials: dict[str, int] = field(default_factory=dict)
    """Ids that the vocabulary itself names."""
    add_space_prefix: bool | None = None
    notes: list[str] = field(default_factory=list)


def in_order(vocabulary: dict[str, int]) -> list[str | None]:
    """Texts by id; None where an id has no text."""
    texts: list[str | None] = [None] * (max(vocabulary.values(), default=-1) + 1)
    for text, number in vocabulary.items():
        texts[number] = text
    return texts
