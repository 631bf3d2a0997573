"""Prices, estimates, and a budget that is not passed."""

from __future__ import annotations

from pathlib import Path

import pytest

from llava_cli.errors import UsageError
from llava_train.datagen.prices import Budget, Price, estimate, estimate_tokens, read_price


def test_a_table_gives_the_price_of_its_model(tmp_path: Path) -> None:
    path = tmp_path / "prices.toml"
    path.write_text('["gpt-4.1"]\ninput = 2\noutput = 8.0\n["free"]\ninput = 0\noutput = 0\n')
    price = read_price(path, "gpt-4.1")
    assert price == Price(2.0, 8.0)
    assert price.of(1_000_000, 500_000) == 6.0
    assert read_price(path, "free") == Price(0, 0)
    assert read_price(None, "gpt-4.1") is None


@pytest.mark.parametrize(
    "text", ["", "x = 1", "[m]\ninput = 1", '[m]\ninput = "1"\noutput = 1', "[m", "[m]\ninput = -1"]
)
def test_a_table_without_the_price_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "prices.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"prices\.toml"):
        read_price(path, "m")


def test_money_cannot_be_counted_without_a_price() -> None:
    with pytest.raises(UsageError, match="needs the model's price"):
        Budget(1.0, None, None)


def test_what_is_in_flight_is_held_back_and_freed() -> None:
    budget = Budget(None, 1000, None)
    assert budget.hold(200, 100)  # 300 with caution, and 100
    assert budget.hold(200, 100)
    assert not budget.hold(200, 100)
    budget.release(200, 100)
    budget.spend(150, 50)
    assert budget.hold(200, 100)
    assert not budget.hold(1, 1)
    assert budget.spent_tokens == 200


def test_money_holds_too() -> None:
    budget = Budget(0.001, None, Price(1.0, 2.0))
    assert budget.hold(200, 100)
    assert budget.hold(200, 100)
    assert not budget.hold(200, 100)
    budget.release(200, 100)
    budget.spend(200, 100)
    assert budget.spent_money == pytest.approx(0.0004)


def test_an_estimate_adds_up() -> None:
    messages = [{"role": "user", "content": "a" * 376}]
    found = estimate([("detail", messages), ("reasoning", messages)], 1000, Price(10, 20))
    assert (found.requests, found.prompt_tokens, found.most_completion_tokens) == (2, 200, 2000)
    assert found.most_cost == pytest.approx((200 * 10 + 2000 * 20) / 1e6)
    assert estimate([], 10, None).cost is None


def test_letters_beyond_ascii_count_more() -> None:
    assert estimate_tokens("abcd" * 10) == 10
    assert estimate_tokens("犬" * 10) == 15
