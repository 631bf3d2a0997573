"""Requests have the documented structure; a person's texts take the place of ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from llava_cli.errors import DataError
from llava_train.datagen import answers, prompt_set
from llava_train.datagen.contexts import Box, Picture

PICTURE = Picture("1", "a.jpg", ("A dog.", "A cat."), (Box("dog", (0, 0.1, 0.25, 1)),))
EXAMPLES = {"conversation": 2, "detail": 3, "reasoning": 3}


@pytest.mark.parametrize("kind", EXAMPLES)
def test_a_request_is_system_text_examples_and_the_context(kind: str) -> None:
    system, *turns, query = prompt_set.load().messages(PICTURE, kind)
    assert system["role"] == "system" and query["role"] == "user"
    assert [turn["role"] for turn in turns] == ["user", "assistant"] * EXAMPLES[kind]
    boxed = "A dog.\nA cat.\n\ndog: [0.000, 0.100, 0.250, 1.000]"
    assert query["content"] == ("A dog.\nA cat." if kind == "conversation" else boxed)
    for context in (turn["content"] for turn in turns[::2]):
        captions, _, boxes = context.partition("\n\n")
        assert len(captions.splitlines()) == 5
        assert bool(boxes) == (kind != "conversation")


@pytest.mark.parametrize("kind", EXAMPLES)
def test_our_own_examples_would_be_accepted(kind: str) -> None:
    limits = answers.Limits(answers.MIN_WORDS, answers.MAX_WORDS)
    _, *turns, _ = prompt_set.load().messages(PICTURE, kind)
    assert turns[1::2]
    for turn in turns[1::2]:
        answers.check(answers.parse(turn["content"], kind), kind, limits)  # or it raises Rejected


def test_the_pools_have_sixteen_long_and_eleven_short_questions() -> None:
    prompts = prompt_set.load()
    assert len(set(prompts.questions("detail/questions.txt"))) == 16
    assert len(set(prompts.questions("brief.txt"))) == 11


def test_own_texts_replace_ours_and_change_the_version(tmp_path: Path) -> None:
    own = tmp_path / "own"
    (own / "detail").mkdir(parents=True)
    (own / "detail" / "system.txt").write_text("Tell it in Latin.\n")
    (own / "detail" / "example-7.context.txt").write_text("Canis.")
    (own / "detail" / "example-7.answer.txt").write_text("Canis currit.")
    ours, theirs = prompt_set.load(), prompt_set.load(own)
    assert theirs.messages(PICTURE, "detail")[:3] == [
        {"role": "system", "content": "Tell it in Latin."},
        {"role": "user", "content": "Canis."},
        {"role": "assistant", "content": "Canis currit."},
    ]
    assert len(theirs.messages(PICTURE, "detail")) == 4
    assert theirs.messages(PICTURE, "reasoning") == ours.messages(PICTURE, "reasoning")
    assert theirs.digest("detail") != ours.digest("detail")
    assert theirs.digest("reasoning") == ours.digest("reasoning")


def test_texts_written_out_are_read_back_as_they_were(tmp_path: Path) -> None:
    count = prompt_set.write_out(tmp_path / "texts")
    assert count == len(prompt_set.load().texts)
    assert prompt_set.load(tmp_path / "texts") == prompt_set.load()
    with pytest.raises(DataError, match="not empty"):
        prompt_set.write_out(tmp_path / "texts")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("detail/sytem.txt", "x", "no prompt of this name"),
        ("detail/system.txt", " ", "is empty"),
        ("detail/example-1.answer.txt", "x", "example-1.context.txt is missing"),
        ("notes.md", "x", "holds no prompts"),
    ],
)
def test_a_folder_with_a_mistake_is_refused(
    tmp_path: Path, name: str, text: str, said: str
) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    with pytest.raises(DataError, match=said):
        prompt_set.load(tmp_path)
