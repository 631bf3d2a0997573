"""Prompt formats as data, and the one rendering of a conversation, for inference and training.

`render` turns a conversation into segments: texts (each knows whether it bears loss in training and
whether it is a special token that the format itself writes) and image slots. `runs` merges segments
into what a tokenizer reads as a whole. Not here: tokenizers (each engine and `llava_train.labels`
have theirs), pictures' pixels (`pixels.py`), and the choice of a format, which a model's own files
make by exact name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from llava_cli.conversation import Conversation, Message
from llava_cli.errors import UsageError


@dataclass(frozen=True)
class Text:
    """A piece of text."""

    text: str
    loss: bool = False
    """Bears loss in training."""
    special: bool = False
    """A special token that the format itself writes, like `</s>`; never a user's text."""


@dataclass(frozen=True)
class ImageSlot:
    """The place of a picture."""

    index: int
    """Into `Conversation.images`."""


Segment = Text | ImageSlot


@dataclass(frozen=True)
class Run:
    """What a tokenizer reads as a whole: a text, one special token, or a picture's positions."""

    text: str = ""
    special: bool = False
    image: int | None = None
    """Index of the picture, for an image slot."""
    spans: tuple[tuple[int, int], ...] = ()
    """Character ranges [start, end) of `text` that bear loss."""


@dataclass(frozen=True)
class PromptFormat:
    """How turns are written down: upstream LLaVA's separators, each with a name."""

    name: str
    system: str = ""
    """Default system text; a system message of the conversation replaces it."""
    system_open: str = ""
    system_close: str = ""
    """Around the system text; neither is written where that text is empty."""
    system_in_user: bool = False
    """The system text stands inside the first user turn, behind `user_open`."""
    user_open: str = ""
    user_close: str = ""
    between: str = ""
    """In front of every user turn but the first."""
    header: str = ""
    """What makes the model answer: the end of a waiting prompt."""
    answer_open: str = ""
    """Between header and answer; belongs to the answer, so that it bears loss with it."""
    answer_close: str = ""
    image_open: str = ""
    image_close: str = ""
    image_gap: str = "\n"
    """Between a picture at the front of a turn and what follows it."""
    images_first: bool = True
    """A picture behind its question is written in front of it."""
    reads_question: bool = True
    """False: only the pictures of a user turn are written (`plain`)."""
    specials: tuple[str, ...] = ()
    """The special tokens among the texts above."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer."""


_POLITE = "The assistant gives helpful, detailed, and polite answers to the {who}'s questions."
_CURIOUS = "A chat between a curious {who} and an artificial intelligence assistant. "
_ABLE = (
    "able to understand the visual content that the user provides, and assist the user with a "
    "variety of tasks using natural language."
)
_USER_SYSTEM = (_CURIOUS + _POLITE).format(who="user")
_HUMAN_SYSTEM = (_CURIOUS + _POLITE).format(who="human")
_MMTAG_SYSTEM = (
    _CURIOUS.format(who="user")
    + f"The assistant is {_ABLE}The visual content will be provided with the following format: "
    "<Image>visual content</Image>."
)
_LLAMA_2_SYSTEM = (
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, "
    "while being safe.  Your answers should not include any harmful, unethical, racist, sexist, "
    "toxic, dangerous, or illegal content. Please ensure that your responses are socially unbiased "
    "and positive in nature.\n\nIf a question does not make any sense, or is not factually "
    "coherent, explain why instead of answering something not correct. If you don't know the "
    "answer to a question, please don't share false information."
)
_LLAVA_LLAMA_2_SYSTEM = f"You are a helpful language and vision assistant. You are {_ABLE}"
_MPT_SYSTEM = (
    "A conversation between a user and an LLM-based AI assistant. The assistant gives helpful and "
    "honest answers."
)


def _vicuna(name: str, system: str, tags: tuple[str, str] = ("", "")) -> PromptFormat:
    return PromptFormat(
        name, system, system_close=" ", user_open="USER: ", user_close=" ", header="ASSISTANT:",
        answer_open=" ", answer_close="</s>", specials=("</s>",), stop=("</s>",),
        image_open=tags[0], image_close=tags[1],
    )  # fmt: skip


def _hashes(name: str, system: str, tags: tuple[str, str] = ("", "")) -> PromptFormat:
    return PromptFormat(
        name, system, system_close="###", user_open="Human: ", user_close="###",
        header="Assistant:", answer_open=" ", answer_close="###", stop=("###",),
        image_open=tags[0], image_close=tags[1],
    )  # fmt: skip


def _llama_2(name: str, system: str, between: str) -> PromptFormat:
    return PromptFormat(
        name, system, system_open="<<SYS>>\n", system_close="\n<</SYS>>\n\n", system_in_user=True,
        user_open="[INST] ", user_close=" [/INST]", between=between, answer_open=" ",
        answer_close=" </s>", specials=("<s>", "</s>"), stop=("</s>",),
    )  # fmt: skip


def _chatml(name: str, system: str) -> PromptFormat:
    return PromptFormat(
        name, system, system_open="<|im_start|>system\n", system_close="<|im_end|>",
        user_open="<|im_start|>user\n", user_close="<|im_end|>",
        header="<|im_start|>assistant\n", answer_close="<|im_end|>",
        specials=("<|im_start|>", "<|im_end|>"), stop=("<|im_end|>",),
    )  # fmt: skip


_TAGS = ("<Image>", "</Image>")

FORMATS: dict[str, PromptFormat] = {
    prompt_format.name: prompt_format
    for prompt_format in (
        PromptFormat("plain", answer_close="\n", image_gap="", reads_question=False, stop=("\n",)),
        _vicuna("vicuna_v1", _USER_SYSTEM),
        _vicuna("llava_v1", _HUMAN_SYSTEM),
        _vicuna("v1_mmtag", _MMTAG_SYSTEM, _TAGS),
        _hashes("llava_v0", _HUMAN_SYSTEM),
        _hashes("v0_mmtag", _MMTAG_SYSTEM, _TAGS),
        _llama_2("llama_2", _LLAMA_2_SYSTEM, "<s>"),
        _llama_2("llava_llama_2", _LLAVA_LLAMA_2_SYSTEM, "<s>"),
        _llama_2("mistral_instruct", "", ""),
        _chatml("mpt", _MPT_SYSTEM),
        _chatml("chatml_direct", "Answer the questions."),
    )
}
"""Every known format under its exact name."""


def render(
    conversation: Conversation, prompt_format: PromptFormat, *, complete: bool = False
) -> tuple[Segment, ...]:
    """Write a conversation down in a format.

    A waiting prompt (the default) ends with the assistant's header, or, where the last turn is the
    assistant's, with that unfinished answer (prefill). `complete` is for training: the last turn is
    the assistant's and every answer is closed.
    """
    system, turns = checked_turns(conversation)
    if complete and turns[-1].role != "assistant":
        raise UsageError("the conversation ends without an answer", "end it with an answer")
    return tuple(_merged(_segments(system, turns, prompt_format, complete)))


def runs(segments: Iterable[Segment]) -> tuple[Run, ...]:
    """Merge neighbouring texts into runs; special tokens and pictures stay alone."""
    result: list[Run] = []
    text, spans = "", []
    for segment in (*segments, ImageSlot(-1)):
        if isinstance(segment, Text) and not segment.special:
            if segment.loss and segment.text:
                spans.append((len(text), len(text) + len(segment.text)))
            text += segment.text
            continue
        if text:
            result.append(Run(text, spans=tuple(spans)))
        text, spans = "", []
        if isinstance(segment, Text):
            span = ((0, len(segment.text)),) if segment.loss else ()
            result.append(Run(segment.text, special=True, spans=span))
        else:
            result.append(Run(image=segment.index))
    return tuple(result[:-1])  # the last one only closed the last text


def prompt_text(segments: Iterable[Segment], image: str = "<image>") -> str:
    """The prompt as one string, for people to read: never to be tokenised."""
    return "".join(part.text if isinstance(part, Text) else image for part in segments)


def checked_turns(conversation: Conversation) -> tuple[str | None, tuple[Message, ...]]:
    """The system text (None: not given) and the turns, checked."""
    turns = conversation.messages
    system = None
    if turns and turns[0].role == "system":
        system, turns = turns[0].text, turns[1:]
        if conversation.messages[0].images:
            raise UsageError("a system message cannot hold pictures", "put them in a user turn")
    if not turns:
        raise UsageError("the conversation is empty", "give a prompt")
    for position, turn in enumerate(turns):
        wanted = ("user", "assistant")[position % 2]
        if turn.role != wanted:
            raise UsageError(
                f"turn {position + 1} is the {turn.role}'s, expected the {wanted}'s",
                "turns alternate, and the user begins",
            )
        if turn.role == "assistant" and turn.images:
            raise UsageError("an answer cannot hold pictures", "put them in a user turn")
    return system, turns


def _segments(
    system: str | None, turns: tuple[Message, ...], form: PromptFormat, complete: bool
) -> Iterator[Segment]:
    system_text = form.system if system is None else system
    preface: list[Segment] = []
    if system_text:
        preface = [
            *_own(form.system_open, form),
            Text(system_text),
            *_own(form.system_close, form),
        ]
    if not form.system_in_user:
        yield from preface
    pictures = 0
    for position, turn in enumerate(turns):
        if turn.role == "user":
            yield from _own(form.between if position else "", form)
            yield from _own(form.user_open, form)
            if form.system_in_user and position == 0:
                yield from preface
            yield from _question(turn, form, pictures)
            pictures += len(turn.images)
            yield from _own(form.user_close, form)
            yield from _own(form.header, form)
        else:
            loss = bool(turn.text.strip())  # an empty answer teaches nothing
            yield from _own(form.answer_open, form, loss)
            yield Text(turn.text, loss)
            if complete or position < len(turns) - 1:
                yield from _own(form.answer_close, form, loss)


def _question(turn: Message, form: PromptFormat, first: int) -> Iterator[Segment]:
    """A user turn's content: pictures in front, unless they stand among the text."""
    if not form.reads_question and not turn.images:
        raise UsageError(
            f"the prompt format {form.name} reads a picture and no text", "give a picture"
        )
    shape = re.sub(r"(.)\1+", r"\1", "".join(_kind(part) for part in turn.content))
    content = [part for part in turn.content if _kind(part)]
    if form.images_first and shape in ("ti", "t", "i", "it"):
        content.sort(key=lambda part: isinstance(part, str))  # stable: pictures first
    in_front = True
    for part in content:
        if isinstance(part, str):
            in_front = False
            if form.reads_question:
                yield Text(part)
            continue
        yield Text(form.image_open)
        yield ImageSlot(first)
        yield Text(form.image_close + (form.image_gap if in_front else ""))
        first += 1


def _kind(part: object) -> str:
    """`t`ext, `i`mage, or nothing for an empty text."""
    if isinstance(part, str):
        return "t" if part else ""
    return "i"


def _own(text: str, form: PromptFormat, loss: bool = False) -> Iterator[Text]:
    """A text of the format, with its special tokens apart."""
    if not form.specials:
        yield Text(text, loss)
        return
    for piece in re.split("(" + "|".join(map(re.escape, form.specials)) + ")", text):
        yield Text(piece, loss, special=piece in form.specials)


def _merged(segments: Iterable[Segment]) -> Iterator[Segment]:
    """Without empty texts, neighbours of one kind joined."""
    last: Text | None = None
    for segment in segments:
        if isinstance(segment, Text) and not segment.text:
            continue
        if last and isinstance(segment, Text) and not (last.special or segment.special):
            if last.loss == segment.loss:
                last = Text(last.text + segment.text, last.loss)
                continue
        if last:
            yield last
            last = None
        if isinstance(segment, Text):
            last = segment
        else:
            yield segment
    if last:
        yield last
