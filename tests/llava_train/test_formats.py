"""Ids and labels equal those of the original preprocessing, on random conversations.

The reference below is written from the original's published rules: it counts the tokens of each
round and each instruction, where ours goes by character offsets. Its tokenizer is the slow kind
that the original requires: text between special tokens is tokenised alone.
"""

from __future__ import annotations

import random
import re
from typing import Any

import pytest

from llava_cli.errors import DataError
from llava_cli.prompts import FORMATS, prompt_text
from llava_train.conversations import rendered, sample_of
from llava_train.labels import IGNORE_INDEX, Encoder

WORDS = (
    "what is unusual here? how many shapes are there two blue squares, 3 green stars and one small "
    "yellow triangle. Füße l'été 東京 🙂 (x) a/b :-) USER assistant"
).split()
ODD = ("", " ", "  ", "\n", "\n\n", "\t", " \n ")
COUNT = 250
"""Conversations of each format; four formats make a thousand."""


def text(rng: random.Random) -> str:
    """Some words with odd white space between and around them."""
    parts = [rng.choice(ODD)]
    for _ in range(rng.randint(1, 9)):
        parts += [rng.choice(WORDS), rng.choice((" ", " ", " ", *ODD[2:]))]
    return "".join(parts) + rng.choice(ODD)


def record(rng: random.Random) -> dict[str, Any]:
    """One to four rounds; the picture in any turn, its mark anywhere and more than once."""
    turns = []
    rounds = rng.randint(1, 4)
    pictured = rng.choice([None, *range(rounds)])
    for number in range(rounds):
        question = text(rng)
        if number == pictured:
            mark = rng.choice(["<image>\n", "<image>", "<image> <image>\n"])
            question = mark + question if rng.random() < 0.6 else f"{question}\n<image>"
        answer = text(rng)
        turns.append({"from": "human", "value": question})
        turns.append({"from": "gpt", "value": answer})
    return {"id": "r", "conversations": turns} | ({} if pictured is None else {"image": "a.png"})


class Original:
    """The original's tokenisation: BOS in front of every call, one id for a picture."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.image = tokenizer.convert_tokens_to_ids("<image>")
        self.end = tokenizer.convert_tokens_to_ids("</s>")

    def ids(self, prompt: str) -> list[int]:
        found = [self._tokenizer.bos_token_id]
        for piece in re.split("(<image>|</s>|<s>)", prompt):
            if piece in ("<image>", "</s>", "<s>"):
                found.append(self._tokenizer.convert_tokens_to_ids(piece))
            elif piece:
                found += self._tokenizer(piece, add_special_tokens=False)["input_ids"]
        return found

    def labels(self, prompt: str, separator: str) -> list[int]:
        """Rounds end with </s>; what stands before an answer is masked by its count of tokens."""
        labels = self.ids(prompt)
        labels[0] = IGNORE_INDEX
        place = 1
        for one in prompt.split("</s>"):
            if not one:
                break
            instruction, answer, *more = one.split(separator)
            assert not more and answer
            masked = len(self.ids(instruction + separator)) - 2  # BOS and the space at the end
            labels[place : place + masked] = [IGNORE_INDEX] * masked
            place += len(self.ids(one))
        assert place == len(labels), "the original would mask the whole sample here"
        return labels


@pytest.mark.parametrize(
    ("name", "separator"),
    [("vicuna_v1", " ASSISTANT: "), ("llama_2", "[/INST] "), ("mistral_instruct", "[/INST] ")],
)
def test_formats_of_rounds_equal_the_original(spm: Any, name: str, separator: str) -> None:
    original, encoder, rng = Original(spm), Encoder(spm), random.Random(name)
    for number in range(COUNT):
        sample = sample_of(record(rng), str(number))
        segments = rendered(sample, FORMATS[name])
        prompt = prompt_text(segments)
        got = encoder.encode(segments)
        assert got.ids == original.ids(prompt), prompt
        assert got.labels == original.labels(prompt, separator), prompt


@pytest.fixture(scope="module")
def chatml(tiny: Any) -> Any:
    """A tokenizer with the turns' special tokens and no BOS, as MPT's and Yi's."""
    from tokenizers import processors

    tokenizer = tiny.bpe_tokenizer(("<|im_start|>", "<|im_end|>"))
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


@pytest.mark.parametrize("name", ["mpt", "chatml_direct"])
def test_chatml_bears_loss_on_answers_and_what_ends_them(chatml: Any, name: str) -> None:
    """Counted from the text: what follows `assistant\\n` up to and with the next end."""
    encoder, rng = Encoder(chatml), random.Random(name)
    marks = {m: chatml.convert_tokens_to_ids(m) for m in ("<image>", "<|im_start|>", "<|im_end|>")}
    for number in range(COUNT):
        segments = rendered(sample_of(record(rng), str(number)), FORMATS[name])
        ids: list[int] = []
        labels: list[int] = []
        for piece in re.split(r"(<image>|<\|im_start\|>|<\|im_end\|>)", prompt_text(segments)):
            answers = piece.startswith("assistant\n")
            if piece in marks:
                ended = piece == "<|im_end|>" and bool(labels) and labels[-1] != IGNORE_INDEX
                ids.append(marks[piece])
                labels.append(marks[piece] if ended else IGNORE_INDEX)
            elif piece:
                whole = chatml(piece, add_special_tokens=False)["input_ids"]
                head = len(chatml("assistant\n", add_special_tokens=False)["input_ids"])
                own = chatml(piece[10:], add_special_tokens=False)["input_ids"] if answers else []
                if (
                    answers and whole[head:] != own
                ):  # a token reaches over the border: it bears loss
                    head = next(
                        i for i in range(len(whole)) if whole[: i + 1] != _of(chatml, i + 1)
                    )
                ids += whole
                masked = head if answers else len(whole)
                labels += [IGNORE_INDEX] * masked + whole[masked:]
        got = encoder.encode(segments)
        assert got.ids == ids and got.labels == labels, prompt_text(segments)


def _of(tokenizer: Any, count: int) -> list[int]:
    return list(tokenizer("assistant\n", add_special_tokens=False)["input_ids"][:count])


def test_plain_masks_as_many_ids_as_the_picture_and_bos_have(spm: Any) -> None:
    original, encoder, rng = Original(spm), Encoder(spm), random.Random("plain")
    for number in range(COUNT):
        caption = text(rng).strip()
        turns = [("human", "<image>\nDescribe it."), ("gpt", caption)]
        conversation = [{"from": f, "value": v} for f, v in turns]
        sample = sample_of({"image": "a.png", "conversations": conversation}, str(number))
        got = encoder.encode(rendered(sample, FORMATS["plain"]))
        ids = original.ids(f"<image>{caption}\n")
        assert got.ids == ids and got.labels == [IGNORE_INDEX] * 2 + ids[2:], caption


@pytest.mark.parametrize("empty", ["", " ", "\n"])
def test_an_empty_answer_in_any_turn_is_refused(empty: str) -> None:
    values = ["Q1", "A1", "Q2", empty]
    turns = [{"from": ("human", "gpt")[i % 2], "value": v} for i, v in enumerate(values)]
    with pytest.raises(DataError, match="s7.*answer 2 is empty"):
        sample_of({"id": "s7", "conversations": turns}, "file")
