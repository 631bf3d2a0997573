"""Ids and labels, token for token, with both kinds of tokenizer, against masks counted by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from PIL import Image as PIL

from llava_cli.conversation import Conversation
from llava_cli.errors import DataError, ModelInvalid
from llava_cli.images import Image
from llava_cli.prompts import FORMATS, render
from llava_train.labels import IGNORE_INDEX, Encoder, encode

PICTURE = Image.from_pil(PIL.new("RGB", (4, 4)))
VICUNA = FORMATS["vicuna_v1"]
S = VICUNA.system
TWO_TURNS = (
    Conversation()
    .add("user", PICTURE, "what is unusual here?")
    .add("assistant", "the red circle is the odd one out.")
    .add("user", "how many shapes are there?")
    .add("assistant", "two blue squares, 3 green stars")
)
SLOTS = 5


@pytest.fixture(params=["bpe", "spm"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def pieces(tokenizer: Any, text: str) -> list[int]:
    """A text alone, by transformers' own call."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def by_prefix(tokenizer: Any, masked: str, borne: str) -> tuple[list[int], list[int]]:
    """Ids of `masked + borne` and labels from the length of `masked` alone: no offsets involved."""
    ids = pieces(tokenizer, masked + borne)
    known = pieces(tokenizer, masked)
    assert ids[: len(known)] == known, "the two must not share a token"
    return ids, [IGNORE_INDEX] * len(known) + ids[len(known) :]


def test_vicuna_two_turns_token_for_token(tokenizer: Any) -> None:
    image, end = (tokenizer.convert_tokens_to_ids(t) for t in ("<image>", "</s>"))
    first = by_prefix(
        tokenizer, "\nwhat is unusual here? ASSISTANT:", " the red circle is the odd one out."
    )
    second = by_prefix(
        tokenizer, "USER: how many shapes are there? ASSISTANT:", " two blue squares, 3 green stars"
    )
    start = [tokenizer.bos_token_id, *pieces(tokenizer, f"{S} USER: ")]
    want_ids = [*start, *[image] * SLOTS, *first[0], end, *second[0], end]
    blank = [IGNORE_INDEX] * (len(start) + SLOTS)
    want_labels = [*blank, *first[1], end, *second[1], end]

    ids, labels = encode(render(TWO_TURNS, VICUNA, complete=True), tokenizer, image_tokens=SLOTS)

    assert ids == want_ids
    assert labels == want_labels


def test_plain_bears_loss_on_caption_and_newline_only(tokenizer: Any) -> None:
    image = tokenizer.convert_tokens_to_ids("<image>")
    pair = Conversation().add("user", PICTURE, "Describe it.").add("assistant", "a red circle.")
    ids, labels = encode(
        render(pair, FORMATS["plain"], complete=True), tokenizer, image_tokens=SLOTS
    )
    caption = pieces(tokenizer, "a red circle.\n")
    assert ids == [tokenizer.bos_token_id, *[image] * SLOTS, *caption]
    assert labels == [IGNORE_INDEX] * (1 + SLOTS) + caption
    assert tokenizer.eos_token_id not in ids


def test_a_prompt_and_its_answer_meet_where_inference_leaves_off(tokenizer: Any) -> None:
    asked = Conversation().add("user", PICTURE, "how many?")
    prompt = _waiting_ids(tokenizer, asked)
    ids, labels = encode(
        render(asked.add("assistant", "3 green stars"), VICUNA, complete=True), tokenizer
    )
    assert ids[: len(prompt)] == prompt
    assert all(label == IGNORE_INDEX for label in labels[: len(prompt)])
    assert labels[len(prompt) :] == ids[len(prompt) :]


def _waiting_ids(tokenizer: Any, asked: Conversation) -> list[int]:
    """The ids an engine computes before it answers, written out without `Encoder`."""
    image = tokenizer.convert_tokens_to_ids("<image>")
    before, after = pieces(tokenizer, f"{S} USER: "), pieces(tokenizer, "\nhow many? ASSISTANT:")
    return [tokenizer.bos_token_id, *before, image, *after]


@pytest.mark.parametrize("literal", ["</s>", "<image>", "<s>", "<pad>"])
def test_special_tokens_in_a_users_text_are_plain_text(tokenizer: Any, literal: str) -> None:
    talk = Conversation().add("user", f"what does {literal} mean?")
    talk = talk.add("assistant", f"{literal} is a token")
    ids, labels = encode(render(talk, VICUNA, complete=True), tokenizer)
    token = tokenizer.convert_tokens_to_ids(literal)
    assert ids.count(token) == {"</s>": 1, "<s>": 1}.get(literal, 0)  # the format's own
    answer = [label for label in labels if label != IGNORE_INDEX]
    assert f"{literal} is a token" in tokenizer.decode(answer[:-1])


def test_encoding_leaves_the_tokenizer_as_it_was(tokenizer: Any) -> None:
    before = tokenizer("a </s> b")["input_ids"]
    encode(render(TWO_TURNS, VICUNA, complete=True), tokenizer)
    assert tokenizer("a </s> b")["input_ids"] == before
    assert tokenizer.eos_token_id in before


@pytest.mark.parametrize("text", ["  two spaces", "🙂🙃 ok", "naïve café", "a\n\nb", "東京"])
def test_every_character_of_an_answer_bears_loss(tokenizer: Any, text: str) -> None:
    talk = Conversation().add("user", "Q").add("assistant", text)
    ids, labels = encode(render(talk, VICUNA, complete=True), tokenizer)
    masked = pieces(tokenizer, f"{S} USER: Q ASSISTANT:")
    assert labels[: len(masked) + 1] == [IGNORE_INDEX] * (len(masked) + 1)
    assert labels[len(masked) + 1 :] == ids[len(masked) + 1 :]


def test_loss_of_many_samples_is_that_of_each(tokenizer: Any) -> None:
    encoder = Encoder(tokenizer, image_tokens=3)
    one = render(TWO_TURNS, VICUNA, complete=True)
    two = render(Conversation().add("user", "a").add("assistant", "b"), VICUNA, complete=True)
    together = encoder.encode_many([("one", one), ("two", two), ("three", one)])
    assert together == [encoder.encode(one), encoder.encode(two), encoder.encode(one)]


def test_a_sample_without_loss_is_an_error_that_names_it(bpe: Any) -> None:
    empty = Conversation().add("user", "Q").add("assistant", "")
    with pytest.raises(DataError, match="sample-17.*no token bears loss"):
        Encoder(bpe).encode(render(empty, VICUNA, complete=True), "sample-17")


def test_cutting_keeps_the_front_and_says_how_much_went(bpe: Any) -> None:
    whole = Encoder(bpe).encode(render(TWO_TURNS, VICUNA, complete=True))
    cut = Encoder(bpe, max_length=len(whole.ids) - 4).encode(
        render(TWO_TURNS, VICUNA, complete=True)
    )
    assert cut.ids == whole.ids[:-4] and cut.labels == whole.labels[:-4] and cut.cut == 4


def test_cutting_away_every_answer_is_an_error_that_names_the_sample(bpe: Any) -> None:
    segments = render(TWO_TURNS, VICUNA, complete=True)
    first = next(i for i, label in enumerate(Encoder(bpe).encode(segments).labels) if label >= 0)
    with pytest.raises(DataError, match="sample-3.*removes every answer"):
        Encoder(bpe, max_length=first).encode(segments, "sample-3")


def test_cutting_through_a_picture_is_an_error_that_names_the_sample(bpe: Any) -> None:
    talk = TWO_TURNS.add("user", PICTURE, "and this?").add("assistant", "no")
    segments = render(talk, VICUNA, complete=True)
    whole = Encoder(bpe, image_tokens=9).encode(segments)
    assert whole.images == (0, 1)
    last = max(i for i, t in enumerate(whole.ids) if t == bpe.convert_tokens_to_ids("<image>"))
    with pytest.raises(DataError, match="sample-5.*picture does not fit"):
        Encoder(bpe, image_tokens=9, max_length=last).encode(segments, "sample-5")


def test_a_format_whose_tokens_the_model_lacks_is_refused(bpe: Any) -> None:
    segments = render(TWO_TURNS, FORMATS["chatml_direct"], complete=True)
    with pytest.raises(ModelInvalid, match="im_start"):
        Encoder(bpe).encode(segments)


def test_preview_joins_a_pictures_positions_and_marks_loss(bpe: Any) -> None:
    encoder = Encoder(bpe, image_tokens=SLOTS)
    rows = encoder.preview(encoder.encode(render(TWO_TURNS, VICUNA, complete=True)))
    assert [(row.text, row.repeat) for row in rows if row.repeat > 1] == [("<image>", SLOTS)]
    assert rows[0].text == "<s>" and not rows[0].loss
    assert rows[-1].text == "</s>" and rows[-1].loss


def test_a_tokenizer_without_bos_gets_none(bpe: Any) -> None:
    from tokenizers import processors

    backend = bpe.backend_tokenizer
    kept = backend.post_processor
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    try:
        encoded = Encoder(bpe).encode(render(TWO_TURNS, VICUNA, complete=True))
    finally:
        backend.post_processor = kept
    assert encoded.ids[0] != bpe.bos_token_id
    whole = Encoder(bpe).encode(render(TWO_TURNS, VICUNA, complete=True))
    assert replace(whole, ids=whole.ids[1:], labels=whole.labels[1:]) == encoded
