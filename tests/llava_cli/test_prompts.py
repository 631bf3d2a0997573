"""Prompt formats: upstream's strings by digest, turns spelled out by hand, pictures in place."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
from PIL import Image as PIL

from llava_cli.conversation import Conversation
from llava_cli.errors import UsageError
from llava_cli.images import Image
from llava_cli.prompts import FORMATS, ImageSlot, Run, Text, prompt_text, render, runs

CAT = Image.from_pil(PIL.new("RGB", (4, 4)), "cat")
DOG = Image.from_pil(PIL.new("RGB", (5, 5)), "dog")
TALK = Conversation().add("user", CAT, "Q1").add("assistant", "A1").add("user", "Q2")
VICUNA = FORMATS["vicuna_v1"]
PLAIN = FORMATS["plain"]
S = VICUNA.system

# name: (system: chars, sha256[:12]), (rendered sample: chars, sha256[:12]), as upstream writes them
DIGESTS = {
    "vicuna_v1": ((154, "1fa69e2371b7"), (208, "080b3549d584")),
    "llava_v1": ((156, "ace78a978005"), (210, "ff54643a6973")),
    "llava_v0": ((156, "ace78a978005"), (217, "129350366331")),
    "v1_mmtag": ((311, "563c2a621b11"), (365, "a26c3bd49529")),
    "v0_mmtag": ((311, "563c2a621b11"), (372, "d4b0484ba881")),
    "llama_2": ((508, "d52c188a3c96"), (580, "ce0da33a83ab")),
    "llava_llama_2": ((186, "790f4cfc0552"), (258, "5853d830822f")),
    "mistral_instruct": ((0, "e3b0c44298fc"), (50, "b89525f98314")),
    "mpt": ((127, "c20002e5cc3a"), (259, "45965cc860c1")),
    "chatml_direct": ((40, "9ce12280308e"), (172, "654dfeac3e00")),
}


def digest(text: str) -> tuple[int, str]:
    return len(text), hashlib.sha256(text.encode()).hexdigest()[:12]


@pytest.mark.parametrize("name", DIGESTS)
def test_system_text_and_rendering_are_upstreams(name: str) -> None:
    form = FORMATS[name]
    header = form.system_open if name in ("mpt", "chatml_direct") else ""
    untagged = replace(form, image_open="", image_close="")
    assert digest(header + form.system) == DIGESTS[name][0]
    assert digest(prompt_text(render(TALK, untagged))) == DIGESTS[name][1]


def test_every_format_but_plain_is_held_by_a_digest() -> None:
    assert set(FORMATS) == {*DIGESTS, "plain"}
    assert all(name == form.name for name, form in FORMATS.items())


@pytest.mark.parametrize("name", DIGESTS)
def test_the_answers_end_is_something_that_stops(name: str) -> None:
    form = FORMATS[name]
    assert form.answer_close.strip() in form.stop


def test_vicuna_waiting_prompt_spelled_out() -> None:
    assert prompt_text(render(TALK, VICUNA)) == (
        f"{S} USER: <image>\nQ1 ASSISTANT: A1</s>USER: Q2 ASSISTANT:"
    )


def test_vicuna_segments_of_two_turns_in_training() -> None:
    segments = render(TALK.add("assistant", "A2"), VICUNA, complete=True)
    assert segments == (
        Text(f"{S} USER: "),
        ImageSlot(0),
        Text("\nQ1 ASSISTANT:"),
        Text(" A1", loss=True),
        Text("</s>", loss=True, special=True),
        Text("USER: Q2 ASSISTANT:"),
        Text(" A2", loss=True),
        Text("</s>", loss=True, special=True),
    )


def test_plain_is_picture_caption_newline_and_drops_the_question() -> None:
    pair = Conversation().add("user", CAT, "Describe it.").add("assistant", "A cat.")
    assert render(pair, PLAIN, complete=True) == (ImageSlot(0), Text("A cat.\n", loss=True))
    assert render(Conversation().add("user", CAT, "Describe it."), PLAIN) == (ImageSlot(0),)


def test_plain_without_a_picture_is_refused() -> None:
    with pytest.raises(UsageError, match="plain"):
        render(Conversation().add("user", "Describe it."), PLAIN)


def test_llama_2_keeps_the_space_before_the_end_and_its_loss() -> None:
    segments = render(TALK.add("assistant", "A2"), FORMATS["mistral_instruct"], complete=True)
    assert segments[2:5] == (
        Text("\nQ1 [/INST]"),
        Text(" A1 ", loss=True),
        Text("</s>", loss=True, special=True),
    )


def test_llama_2_begins_later_turns_with_the_special_bos() -> None:
    segments = render(TALK, FORMATS["llama_2"])
    assert Text("<s>", special=True) in segments
    assert segments[0] != Text("<s>", special=True)  # the tokenizer writes the first one


def test_chatml_marks_its_tokens_special_and_no_newline_follows_the_end() -> None:
    segments = render(TALK, FORMATS["chatml_direct"])
    assert segments[:2] == (
        Text("<|im_start|>", special=True),
        Text("system\nAnswer the questions."),
    )
    assert "<|im_end|><|im_start|>user\n" in prompt_text(segments)


def test_a_system_message_replaces_the_default_and_an_empty_one_removes_it() -> None:
    with_one = Conversation().add("system", "Be brief.").add("user", "Q")
    assert prompt_text(render(with_one, VICUNA)) == "Be brief. USER: Q ASSISTANT:"
    without = Conversation().add("system", "").add("user", "Q")
    assert prompt_text(render(without, VICUNA)) == "USER: Q ASSISTANT:"


def test_an_unfinished_answer_is_continued() -> None:
    begun = Conversation().add("user", "Q").add("assistant", "The red")
    assert prompt_text(render(begun, VICUNA)) == f"{S} USER: Q ASSISTANT: The red"


@pytest.mark.parametrize(
    ("content", "written"),
    [
        ((CAT, "Q"), "<image>\nQ"),
        (("Q", CAT), "<image>\nQ"),
        ((CAT, DOG, "Q"), "<image>\n<image>\nQ"),
        (("left ", CAT, " right ", DOG, " same?"), "left <image> right <image> same?"),
        ((CAT, " or ", DOG), "<image>\n or <image>"),
        (("", CAT, "Q"), "<image>\nQ"),
    ],
)
def test_pictures_stand_in_front_unless_among_the_text(
    content: tuple[str | Image, ...], written: str
) -> None:
    text = prompt_text(render(Conversation().add("user", *content), VICUNA))
    assert text == f"{S} USER: {written} ASSISTANT:"


def test_image_slots_count_over_all_turns() -> None:
    talk = Conversation().add("user", CAT, "Q1").add("assistant", "A1").add("user", "Q2", DOG)
    slots = [part for part in render(talk, VICUNA) if isinstance(part, ImageSlot)]
    assert [slot.index for slot in slots] == [0, 1]
    assert talk.images == (CAT, DOG)


def test_mmtag_wraps_the_picture() -> None:
    text = prompt_text(render(TALK, FORMATS["v1_mmtag"]))
    assert "USER: <Image><image></Image>\nQ1 " in text


def test_special_tokens_in_a_users_text_stay_plain_text() -> None:
    talk = Conversation().add("user", "what is </s> and <image>?").add("assistant", "see </s>")
    segments = render(talk, VICUNA, complete=True)
    specials = [part for part in segments if isinstance(part, Text) and part.special]
    assert specials == [Text("</s>", loss=True, special=True)]
    assert Text(" see </s>", loss=True) in segments


def test_an_empty_answer_bears_no_loss() -> None:
    segments = render(Conversation().add("user", "Q").add("assistant", " "), VICUNA, complete=True)
    assert not any(part.loss for part in segments if isinstance(part, Text))


def test_runs_join_neighbouring_texts_and_keep_their_loss_spans() -> None:
    parts = runs(render(TALK.add("assistant", "A2"), VICUNA, complete=True))
    assert parts == (
        Run(f"{S} USER: "),
        Run(image=0),
        Run("\nQ1 ASSISTANT: A1", spans=((14, 17),)),
        Run("</s>", special=True, spans=((0, 4),)),
        Run("USER: Q2 ASSISTANT: A2", spans=((19, 22),)),
        Run("</s>", special=True, spans=((0, 4),)),
    )


@pytest.mark.parametrize(
    "talk",
    [
        Conversation(),
        Conversation().add("system", "S"),
        Conversation().add("assistant", "A"),
        Conversation().add("user", "Q").add("user", "Q"),
        Conversation().add("user", "Q").add("system", "S"),
        Conversation().add("user", "Q").add("assistant", "A", CAT),
        Conversation().add("system", "S", CAT).add("user", "Q"),
    ],
)
def test_a_conversation_that_no_format_can_hold_is_refused(talk: Conversation) -> None:
    with pytest.raises(UsageError):
        render(talk, VICUNA)


def test_training_needs_a_last_answer() -> None:
    with pytest.raises(UsageError, match="without an answer"):
        render(TALK, VICUNA, complete=True)
