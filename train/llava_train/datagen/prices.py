"""What requests cost: a table of prices, an estimate of tokens, and a budget that holds.

A price table is TOML, one table a model, in money for a million tokens:

    ["some-model"]
    input = 2.50
    output = 10.00

Without a price a budget in tokens still holds, and a budget in money is refused.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_cli.errors import UsageError
from llava_train.datagen.prompt_set import Message

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_MILLION = 1_000_000
_PER_MESSAGE = 6
"""Tokens that a chat format adds to a message."""
_CAUTION = 1.5
"""A reservation is this many times the estimate, so that a budget is not passed by a bad guess."""
_TABLE = '["model-name"] with input = 2.5 and output = 10.0, money for a million tokens'


@dataclass(frozen=True)
class Price:
    """Money for a million tokens."""

    input: float
    output: float

    def of(self, prompt_tokens: int, completion_tokens: int) -> float:
        """What a request cost."""
        return (prompt_tokens * self.input + completion_tokens * self.output) / _MILLION


def read_price(path: Path | None, model: str) -> Price | None:
    """The model's price in a table; None without a table."""
    if path is None:
        return None
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path}: no price table: {error}", f"write {_TABLE}") from error
    row = table.get(model)
    if not isinstance(row, dict):
        known = ", ".join(sorted(table)) or "none"
        raise UsageError(f"{path} has no price of {model}; it has: {known}", f"add {_TABLE}")
    return Price(_amount(path, model, row, "input"), _amount(path, model, row, "output"))


def estimate_tokens(text: str) -> int:
    """Roughly the tokens of a text: four ASCII characters each, one and a half for every other."""
    narrow = sum(character < "\x80" for character in text)
    return round(narrow / 4 + (len(text) - narrow) * 1.5)


def prompt_tokens(messages: Sequence[Message]) -> int:
    """Roughly the tokens of a request."""
    return sum(estimate_tokens(message["content"]) + _PER_MESSAGE for message in messages)


@dataclass(frozen=True)
class Estimate:
    """What a run would send, at most."""

    requests: int
    prompt_tokens: int
    completion_tokens: int
    """If every answer were as long as is usual for its kind."""
    most_completion_tokens: int
    """If every answer were as long as allowed."""
    cost: float | None
    most_cost: float | None
    """None without a price."""


USUAL_ANSWER = {"conversation": 330, "detail": 220, "reasoning": 280}
"""Tokens of an answer, as in our examples and a little above."""


def estimate(
    requests: Iterable[tuple[str, Sequence[Message]]], max_tokens: int, price: Price | None
) -> Estimate:
    """The sum over (kind, messages)."""
    count = prompt = usual = 0
    for kind, messages in requests:
        count += 1
        prompt += prompt_tokens(messages)
        usual += min(USUAL_ANSWER.get(kind, max_tokens), max_tokens)
    most = count * max_tokens
    costs = (price.of(prompt, usual), price.of(prompt, most)) if price else (None, None)
    return Estimate(count, prompt, usual, most, *costs)


class Budget:
    """Money and tokens that may be spent; what is in flight is held back in full."""

    def __init__(self, money: float | None, tokens: int | None, price: Price | None) -> None:
        if money is not None and price is None:
            raise UsageError(
                "--budget needs the model's price", f"give --prices FILE with {_TABLE}"
            )
        self._money = money
        self._tokens = tokens
        self.price = price
        self.spent_money = 0.0
        self.spent_tokens = 0
        self._held_money = 0.0
        self._held_tokens = 0

    def hold(self, prompt: int, completion: int) -> bool:
        """Whether a request of at most these tokens fits; if it does, it is held back."""
        prompt = round(prompt * _CAUTION)
        tokens, money = prompt + completion, self.price.of(prompt, completion) if self.price else 0
        over_tokens = (
            self._tokens is not None
            and self.spent_tokens + self._held_tokens + tokens > self._tokens
        )
        over_money = (
            self._money is not None and self.spent_money + self._held_money + money > self._money
        )
        if over_tokens or over_money:
            return False
        self._held_tokens += tokens
        self._held_money += money
        return True

    def release(self, prompt: int, completion: int) -> None:
        """The request is over."""
        prompt = round(prompt * _CAUTION)
        self._held_tokens -= prompt + completion
        if self.price:
            self._held_money -= self.price.of(prompt, completion)

    def spend(self, prompt: int, completion: int) -> None:
        """Tokens that were used."""
        self.spent_tokens += prompt + completion
        if self.price:
            self.spent_money += self.price.of(prompt, completion)

    @property
    def in_flight(self) -> bool:
        """Whether anything is held back."""
        return self._held_tokens > 0


def _amount(path: Path, model: str, row: dict[str, Any], key: str) -> float:
    value = row.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or not value >= 0:
        raise UsageError(f"{path}: {key} of {model} is not a price", f"write {_TABLE}")
    return float(value)
