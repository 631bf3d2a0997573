"""Runs of a prompt -> token ids and image slots: one rule for all engines.

[BOS, if the tokenizer writes one], then each text run as a whole and without looking for special
tokens in it (a user's `</s>` is plain text), each special run as its one token, each picture as a
slot. The trainer keeps the same rule with labels (`llava_train.labels`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from llava_cli.errors import ModelInvalid
from llava_cli.prompts import PromptFormat, Run


class Vocabulary(Protocol):
    """A tokenizer, whichever library it comes from."""

    bos: int | None
    """Written in front of every prompt; None where the tokenizer writes none."""

    def encode(self, text: str) -> list[int]:
        """Ids of plain text."""
        ...

    def special(self, text: str) -> int | None:
        """Id of one special token; None where the vocabulary has none of this name."""
        ...

    def piece(self, token: int) -> bytes:
        """UTF-8 bytes of a token as part of a text; empty for special tokens."""
        ...

    def name(self, token: int) -> str:
        """What to call a token in a report; special ones have a name, not a text."""
        ...

    def is_end(self, token: int) -> bool:
        """Whether the model ends its turn with this token."""
        ...


@dataclass(frozen=True)
class Piece:
    """Neighbouring text ids, or one picture."""

    ids: tuple[int, ...] = ()
    image: int | None = None
    """Index into `Conversation.images`."""


def tokenise(runs: Iterable[Run], vocabulary: Vocabulary) -> tuple[Piece, ...]:
    """The prompt as pieces: ids of neighbouring texts joined, pictures in between."""
    pieces: list[Piece] = []
    ids = [] if vocabulary.bos is None else [vocabulary.bos]
    for run in runs:
        if run.image is not None:
            if ids:
                pieces.append(Piece(tuple(ids)))
            pieces.append(Piece(image=run.image))
            ids = []
        elif run.special:
            ids.append(special_id(run.text, vocabulary))
        else:
            ids += vocabulary.encode(run.text)
    if ids:
        pieces.append(Piece(tuple(ids)))
    return tuple(pieces)


def flat(pieces: Iterable[Piece]) -> list[int | str]:
    """Ids with the string "image" for each picture, for parity checks."""
    result: list[int | str] = []
    for piece in pieces:
        result += ["image"] if piece.image is not None else list(piece.ids)
    return result


def special_id(text: str, vocabulary: Vocabulary) -> int:
    """Id of a special token that the prompt format writes."""
    token = vocabulary.special(text)
    if token is None:
        raise ModelInvalid(
            f"the model's tokenizer has no token {text!r}, which the prompt format needs",
            "choose the format that the model was trained with: --prompt-format NAME",
        )
    return token


def end_ids(prompt_format: PromptFormat, vocabulary: Vocabulary) -> frozenset[int]:
    """Special tokens with which this format ends an answer."""
    found = (vocabulary.special(stop) for stop in prompt_format.stop)
    return frozenset(token for token in found if token is not None)
