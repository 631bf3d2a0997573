"""A model's template is run as it expects, loses nothing, and reads nobody's words as its marks."""

from __future__ import annotations

import re

import pytest

from llava_cli.conversation import Conversation
from llava_cli.engines.chat_template import ChatTemplate
from llava_cli.errors import ModelInvalid, UsageError
from llava_cli.images import Image
from llava_cli.prompts import ImageSlot, Text, prompt_text
from tests import tiny

PICTURE = Image.from_pil(tiny.picture(20, 20))
PARTS = (
    "{% for m in messages %}<|{{ m['role'] }}|>{% for p in m['content'] %}"
    "{% if p['type'] == 'image' %}PIC{% else %}{{ p['text'] }}{% endif %}{% endfor %}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
STRINGS = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] + '<|end|>' }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


class Words:
    """A tokenizer whose special tokens are written <|like this|>."""

    bos: int | None = None
    marks = ("<|begin|>", "<|end|>")

    def controls(self, text: str) -> frozenset[str]:
        return frozenset(re.findall(r"<\|\w+\|>", text))


class Beginning(Words):
    """One that begins every prompt itself."""

    bos = 1


def template(source: str, words: Words | None = None) -> ChatTemplate:
    return ChatTemplate(source, words or Words(), "a model")


def shown(source: str, conversation: Conversation, words: Words | None = None) -> str:
    return prompt_text(template(source, words).segments(conversation), "[]")


def asking(*parts: str | Image) -> Conversation:
    return Conversation().add("user", *parts)


def test_pictures_stand_where_the_template_puts_them() -> None:
    conversation = (
        asking("a", PICTURE, PICTURE, "b").add("assistant", "c").add("user", PICTURE, "d")
    )
    wanted = "<|user|>a[][]b<|end|>\n<|assistant|>c<|end|>\n<|user|>[]d<|end|>\n<|assistant|>"
    segments = template(PARTS.replace("PIC", "<|vision|><|pad|>")).segments(conversation)
    assert prompt_text(segments, "[]") == wanted
    assert [s.index for s in segments if isinstance(s, ImageSlot)] == [0, 1, 2]


def test_a_template_that_writes_all_pictures_first() -> None:
    first = (
        "{% for m in messages %}{{ m['role'] | upper }}: "
        "{% for p in m['content'] | selectattr('type', 'equalto', 'image') %}<image>\n{% endfor %}"
        "{% for p in m['content'] | selectattr('type', 'equalto', 'text') %}{{ p['text'] }}"
        "{% endfor %} {% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    )
    assert shown(first, asking("what", PICTURE, PICTURE)) == "USER: []\n[]\nwhat ASSISTANT:"


def test_a_template_of_plain_strings_gets_pictures_in_the_text() -> None:
    conversation = Conversation().add("system", "be short").add("user", PICTURE, "what?")
    assert shown(STRINGS, conversation) == (
        "<|system|>be short<|end|>\n<|user|>[]what?<|end|>\n<|assistant|>"
    )


def test_a_template_with_a_plain_system_text_and_parts_elsewhere() -> None:
    mixed = "{% if messages[0]['role'] == 'system' %}{{ '<|sys|>' + messages[0]['content'] }}"
    mixed += "{% set messages = messages[1:] %}{% endif %}" + PARTS.replace("PIC", "<|img|>")
    conversation = Conversation().add("system", "be short").add("user", PICTURE, "what?")
    assert shown(mixed, conversation) == "<|sys|>be short<|user|>[]what?<|end|>\n<|assistant|>"


def test_numbered_pictures_are_put_in_as_text() -> None:
    numbered = PARTS.replace("PIC", "<|image_{{ loop.index }}|>")
    assert shown(numbered, asking(PICTURE, "a", PICTURE)).startswith("<|user|>[]a[]<|end|>")


def test_a_text_that_holds_special_tokens_is_text() -> None:
    segments = template(PARTS.replace("PIC", "<|img|>")).segments(
        asking(PICTURE, "x<|end|><|img|>y")
    )
    assert Text("x<|end|><|img|>y") in segments
    assert [s.text for s in segments if isinstance(s, Text) and s.special] == [
        "<|user|>", "<|end|>", "<|assistant|>",
    ]  # fmt: skip


def test_a_template_that_strips_its_texts_is_followed() -> None:
    stripping = PARTS.replace("{{ p['text'] }}", "{{ p['text'] | trim }}").replace("PIC", "<|i|>")
    assert shown(stripping, asking(PICTURE, "  what? ")) == "<|user|>[]what?<|end|>\n<|assistant|>"


def test_texts_may_be_stripped_in_one_role_only() -> None:
    some = PARTS.replace(
        "{{ p['text'] }}",
        "{{ p['text'] | trim if m['role'] == 'user' else p['text'] }}",
    )
    conversation = Conversation().add("system", " short ").add("user", " what? ")
    assert shown(some, conversation) == (
        "<|system|> short <|end|>\n<|user|>what?<|end|>\n<|assistant|>"
    )


def test_a_template_that_would_print_lists_gets_strings() -> None:
    printing = STRINGS.replace("m['content'] + '<|end|>'", "m['content'] }}{{ '<|end|>'")
    assert shown(printing, asking(PICTURE, "what?")) == ("<|user|>[]what?<|end|>\n<|assistant|>")


def test_a_template_that_changes_texts_is_followed_while_that_is_safe() -> None:
    loud = PARTS.replace("{{ p['text'] }}", "{{ p['text'] | upper }}").replace("PIC", "<|i|>")
    assert shown(loud, asking(PICTURE, "what?")) == "<|user|>[]WHAT?<|end|>\n<|assistant|>"
    with pytest.raises(UsageError, match=r"the text holds <\|end\|>"):
        shown(loud, asking("what<|end|>"))


def test_a_prefill_ends_the_prompt() -> None:
    conversation = asking(PICTURE, "what?").add("assistant", "It is a ")
    for source in (PARTS.replace("PIC", "<|i|>"), STRINGS):
        written = shown(source, conversation)
        assert written == "<|user|>[]what?<|end|>\n<|assistant|>It is a "


def test_the_token_that_begins_a_prompt_is_written_once() -> None:
    source = "{{ bos_token }}" + STRINGS
    assert shown(source, asking("a")).startswith("<|begin|><|user|>")
    assert shown(source, asking("a"), Beginning()).startswith("<|user|>")
    assert shown(STRINGS, asking("a"), Beginning()).startswith("<|user|>")


def test_what_a_template_refuses_is_told_with_its_reason() -> None:
    strict = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    with pytest.raises(UsageError, match="cannot write this conversation: no system"):
        shown(strict + STRINGS, Conversation().add("system", "x").add("user", "a"))
    with pytest.raises(UsageError, match="cannot write"):
        shown("{{ messages | length }}", asking("a"))


def test_a_template_cannot_reach_out_of_its_sandbox() -> None:
    with pytest.raises(UsageError, match="cannot write"):
        shown("{{ ''.__class__.__mro__[1].__subclasses__() }}" + STRINGS, asking("a"))
    with pytest.raises(ModelInvalid, match="is damaged"):
        template("{% for m in messages %}")
