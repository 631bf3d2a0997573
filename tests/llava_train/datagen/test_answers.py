"""Answers are taken apart strictly; every reason to refuse one has its own name."""

from __future__ import annotations

import pytest

from llava_train.datagen import answers
from llava_train.datagen.answers import MAX_WORDS, MIN_WORDS, REASONS, Limits, Rejected
from tests.llava_train.datagen.server import CONVERSATION, DETAIL, REASONING

LIMITS = Limits(MIN_WORDS, MAX_WORDS)
LONG = "word " * 40


def judged(text: str, kind: str) -> tuple[answers.Turn, ...]:
    turns = answers.parse(text, kind)
    answers.check(turns, kind, LIMITS)
    return turns


def qa(question: str = "What is it?", answer: str = LONG) -> str:
    return f"Question:\n{question}\n===\nAnswer:\n{answer}"


def test_good_answers_of_each_kind_pass() -> None:
    assert [q for q, _ in judged(CONVERSATION, "conversation")] == [
        "What is in the picture?",
        "Is there a dog?",
    ]
    assert len(judged(REASONING, "reasoning")) == 1
    assert judged(DETAIL, "detail") == (("", DETAIL.strip()),)


@pytest.mark.parametrize(
    "text",
    [
        CONVERSATION.replace("\n", "\r\n"),
        f"\n\n{CONVERSATION}\n===\n",
        f"===\n{CONVERSATION}",
        CONVERSATION.replace("===", "  ====  "),
        CONVERSATION.replace("Question:\n", "Question: "),
        CONVERSATION.replace("Question", "question"),
    ],
)
def test_blanks_and_case_do_not_matter(text: str) -> None:
    assert judged(text, "conversation") == judged(CONVERSATION, "conversation")


def test_an_answer_keeps_its_paragraphs() -> None:
    ((_, answer),) = judged(qa(answer=f"{LONG}\n\nA second paragraph."), "reasoning")
    assert answer == f"{LONG.strip()} \n\nA second paragraph."


@pytest.mark.parametrize(
    ("text", "kind", "reason"),
    [
        ("", "detail", "empty"),
        (" \n ", "conversation", "empty"),
        ("===\n===", "conversation", "malformed"),
        ("Just prose about a picture.", "conversation", "malformed"),
        (f"Sure! Here you are.\n{CONVERSATION}", "conversation", "malformed"),
        (CONVERSATION.replace("\n===\nAnswer", "\nAnswer"), "conversation", "malformed"),
        (qa() + "\n===\n" + qa().split("\n===\n")[1], "conversation", "not_alternating"),
        ("\n===\n".join(reversed(qa().split("\n===\n"))), "conversation", "not_alternating"),
        (qa() + "\n===\nQuestion:\nAnd now?", "conversation", "not_alternating"),
        (qa(question=" "), "conversation", "empty_turn"),
        (qa(answer=""), "reasoning", "empty_turn"),
        (qa() + "\n===\n" + qa("Why?"), "reasoning", "wrong_number_of_turns"),
        ("\n===\n".join(qa(f"Q{i}?") for i in range(13)), "conversation", "wrong_number_of_turns"),
        (qa(), "detail", "malformed"),
        (f"{LONG} <image> {LONG}", "detail", "special_token"),
        (f"{LONG} </s>", "detail", "special_token"),
        (f"{LONG} <|im_end|>", "detail", "special_token"),
        (f"{LONG}\nUSER: hello", "detail", "special_token"),
        (f"{LONG}\n### Human: hello", "detail", "special_token"),
        (f"{LONG} \x00 \x1b[2J", "detail", "special_token"),
        (f"The captions say so. {LONG}", "detail", "source_mentioned"),
        (f"The bounding box is here. {LONG}", "detail", "source_mentioned"),
        (f"A dog at [0.123, 0.5, 0.6, 0.7]. {LONG}", "detail", "source_mentioned"),
        (f"Based on the description, a dog. {LONG}", "detail", "source_mentioned"),
        (qa("Which object is listed in the text?"), "reasoning", "source_mentioned"),
        (f"I'm sorry, but no. {LONG}", "detail", "refusal"),
        (qa(answer=f"As an AI language model I know. {LONG}"), "reasoning", "refusal"),
        (qa(answer=f"I cannot determine that. {LONG}"), "reasoning", "refusal"),
        ("A dog.", "detail", "too_short"),
        ("word " * (MAX_WORDS + 1), "detail", "too_long"),
        (qa("x" * 2001), "reasoning", "too_long"),
        (qa() + "\n===\n" + qa("what is it"), "conversation", "repeated_question"),
    ],
)
def test_every_other_answer_is_rejected_for_its_reason(text: str, kind: str, reason: str) -> None:
    assert reason in REASONS
    with pytest.raises(Rejected) as caught:
        judged(text, kind)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    "text",
    [
        "The dogs cannot see the ball, and I can see why.",
        "A sign reads OPEN. The boxes of fruit stand on a market stall.",
        "Crème brûlée, 寿司 and naïve art 🎨.",
        "The clock shows 10:30; the room is [almost] empty.",
    ],
)
def test_ordinary_words_are_not_mistaken_for_a_fault(text: str) -> None:
    ((_, kept),) = judged(f"{text} {LONG}", "detail")
    assert kept == f"{text} {LONG}".strip()
