"""The VQA normalisers: every example and quirk of the rule, and soft accuracy by hand."""

from __future__ import annotations

import hashlib
import json

import pytest

from llava_cli.evals.normalise import CONTRACTIONS, MARKS, evalai, official, pica, soft_score


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The two dogs.", "2 dogs"),
        ("A man/woman", "man woman"),
        ("U.S.A.", "usa"),
        ("1,000", "1000"),
        ("3.5", "3.5"),
        ("3.", "3"),
        ("No. 7", "no 7"),
        ("None", "0"),
        ("twenty one", "twenty 1"),
        ("top-left", "top left"),
        ("- left", "left"),
        ("left - right/top", "left right top"),
        ("10:30", "10:30"),
        ("$5", "$5"),
        ("50%", "50%"),
        ("dont", "don't"),
        ("Bob's car", "bob 's car"),
        ("x = 3", "x 3"),
    ],
)
def test_examples_of_the_rule(text: str, expected: str) -> None:
    assert evalai(text) == expected


def test_the_contraction_table_is_the_public_one() -> None:
    text = json.dumps(CONTRACTIONS, sort_keys=True)
    assert hashlib.sha256(text.encode()).hexdigest()[:12] == "52771f672b95"
    assert len(CONTRACTIONS) == 120
    assert len(MARKS) == 21


def test_thats_and_that_s_never_match() -> None:
    assert evalai("that's") == "that 's"
    assert evalai("thats") == "that's"


def test_somebody_d_maps_backwards_and_capital_keys_never_match() -> None:
    assert evalai("somebody'd") == "somebodyd"
    assert evalai("Im") == "im"
    assert evalai("Ive") == "ive"


def test_other_marks_stay() -> None:
    assert evalai("a:b*c#d$e%f&g^h~i|j") == "a:b*c#d$e%f&g^h~i|j"


def test_at_most_32_periods_go() -> None:
    assert evalai("x" + "." * 40) == "x" + "." * 8
    assert evalai("x" + "." * 32) == "x"


def test_a_period_in_front_of_a_digit_stays_even_after_a_letter() -> None:
    assert evalai("v.2") == "v.2"
    assert evalai(".5") == ".5"


def test_a_mark_that_touches_a_blank_anywhere_is_deleted_everywhere() -> None:
    assert evalai("a-b - c") == "ab c"  # and `a` is no word of its own here
    assert evalai("x-y") == "x y"
    assert evalai("x/y z/ w") == "xy z w"


def test_the_decision_is_taken_on_the_text_before_the_step() -> None:
    # `;` becomes a blank, and the `/` beside it does not touch a blank because of that.
    assert evalai("x;/y") == "x y"


def test_newlines_and_tabs_are_blanks_and_any_blank_parts_words() -> None:
    assert evalai("red\nand\tblue") == "red and blue"
    assert evalai("red\u3000blue") == "red blue"


def test_nothing_is_learnt_from_one_answer_to_the_next() -> None:
    assert evalai("eleven") == "eleven"
    assert evalai("ten") == "10"
    assert evalai("eleven") == "eleven"


def test_a_comma_in_a_number_makes_the_official_rule_delete_every_mark() -> None:
    assert official("1,000 top-left") == "1000 topleft"
    assert official("top-left") == "top left"
    assert official("a dog, the cat") == "dog cat"
    assert official("Two Dogs") == "2 dogs"
    assert official("that's") == "that's"


def test_pica_drops_periods_commas_and_four_words() -> None:
    assert pica("The way to a U.S. school, an inn.") == "way us school inn"


@pytest.mark.parametrize(
    ("matches", "expected"),
    [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)],
)
def test_soft_accuracy_leaves_each_reference_out_once(matches: int, expected: float) -> None:
    assert soft_score(matches, 10) == pytest.approx(expected, abs=1e-15)
    said = [float(min(3, matches - (i < matches))) / 3 for i in range(10)]
    assert soft_score(matches, 10) == pytest.approx(sum(said) / 10, abs=1e-15)
