"""A model's own chat template, run so that nothing a person writes is taken for the model's marks.

The template is first run with stand-ins for what was said, which shows where each text and each
picture goes; special tokens are looked for only in what the template itself wrote. Templates differ
in what they expect (parts with types, or plain strings) and in what they write for a picture, so
several ways are tried and the first is taken that loses nothing. Not here: the sandbox
(`models.templates`), LLaVA's own formats (`prompts.py`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import count
from typing import Any, Protocol

from llava_cli.conversation import Conversation
from llava_cli.engines.answer import is_continued
from llava_cli.engines.formats import choose_format
from llava_cli.errors import ModelInvalid, UsageError
from llava_cli.models.files import ModelFiles
from llava_cli.models.templates import OWN_TEMPLATE, compiled, run
from llava_cli.prompts import ImageSlot, PromptFormat, Segment, Text, checked_turns, render

_Turn = tuple[str, list[str | int]]
"""A role, and texts and numbers of pictures."""
_Parts = list[str | int]
"""A prompt: pieces of text and numbers of pictures."""

Write = Callable[[Conversation], Iterable[Segment]]
"""Writes a conversation down."""

_TEXT, _PICTURE, _END = "\ue0a0", "\ue0a1", "\ue0a2"
"""Stand-ins: a text's or a picture's number stands between the first and the last."""
_WAYS = (("image", "all"), ("image", "user"), ("mark", "all"), ("mark", "user"), ("mark", "none"))
"""How pictures are told (as parts of type image, or as text), whose turns are lists of parts."""


class TemplateVocabulary(Protocol):
    """What a template must know of a tokenizer."""

    bos: int | None
    """Written in front of every prompt; None where the tokenizer writes none."""

    @property
    def marks(self) -> tuple[str, str]:
        """Texts of the tokens that begin and end a text."""
        ...

    def controls(self, text: str) -> frozenset[str]:
        """The special tokens that stand in a text."""
        ...


def prompt_form(files: ModelFiles, wanted: str | None) -> PromptFormat:
    """The format that was asked for, else the model's own; its template counts as one."""
    if wanted is None and files.prompt_format == OWN_TEMPLATE:
        return PromptFormat(OWN_TEMPLATE)
    return choose_format(files, wanted)


def writer_of(files: ModelFiles, form: PromptFormat, vocabulary: TemplateVocabulary) -> Write:
    """What writes prompts in this format."""
    if form.name != OWN_TEMPLATE:
        return lambda conversation: render(conversation, form)
    source = str(files.config.get("tokenizer.chat_template", ""))
    return ChatTemplate(source, vocabulary, files.reference).segments


class ChatTemplate:
    """One model's template."""

    def __init__(self, source: str, vocabulary: TemplateVocabulary, reference: str) -> None:
        from jinja2 import TemplateError

        try:
            self._template = compiled(source)
        except (TemplateError, RecursionError) as error:
            raise ModelInvalid(
                f"the chat template of {reference} is damaged: {error}",
                "name one of LLaVA's formats with --prompt-format, or download the model again",
            ) from error
        self._vocabulary = vocabulary
        self._reference = reference

    def segments(self, conversation: Conversation) -> tuple[Segment, ...]:
        """A waiting prompt; a last assistant turn is left unfinished (prefill)."""
        checked_turns(conversation)
        failure = ""
        for pictures, lists in _WAYS:
            try:
                found = self._written(conversation, pictures, lists)
            except ValueError as error:
                failure = failure or str(error)
                continue
            if found is not None:
                return tuple(self._without_begin(found))
        raise UsageError(
            f"the chat template of {self._reference} cannot write this conversation"
            + (f": {failure}" if failure else ""),
            "ask without a system message, or name a format with --prompt-format",
        )

    def _written(
        self, conversation: Conversation, pictures: str, lists: str
    ) -> list[Segment] | None:
        """One way to write it; None where something is lost, ValueError where it does not run."""
        said = [p for m in conversation.messages for p in m.content if isinstance(p, str)]
        names = [f"{_TEXT}{number}{_END}" for number in range(len(said))]
        pictured, goes_on = len(conversation.images), is_continued(conversation)
        mark = self._mark(lists) if pictures == "image" and pictured else None
        if pictures == "image" and pictured and mark is None:
            return None
        parts = _split(self._run(_turns(conversation, names), pictures, lists, goes_on), mark)
        if not _holds(parts, names, pictured):
            return None
        real = self._run(_turns(conversation, said), pictures, lists, goes_on)
        by_name = _followed(parts, dict(zip(names, said, strict=True)), mark, real)
        if by_name is None:
            return self._changed(conversation, real, mark)
        if goes_on:
            del parts[parts.index(names[-1]) + 1 :]
        return list(self._marked(parts, by_name))

    def _changed(
        self, conversation: Conversation, real: str, mark: str | None
    ) -> list[Segment] | None:
        """Where the template does more with a text than to write it: its own output is split."""
        for message in conversation.messages:
            for token in sorted(self._vocabulary.controls(message.text)):
                raise UsageError(
                    f"the text holds {token}, which {self._reference} would not read as words",
                    "write it differently",
                )
        if is_continued(conversation):
            last = conversation.messages[-1].text.strip()
            if last not in real:
                return None
            real = real[: real.rindex(last) + len(last)]
        parts = _split(real, mark)
        if not _holds(parts, [], len(conversation.images)):
            return None
        return list(self._marked(parts, {}))

    def _run(self, turns: Sequence[_Turn], pictures: str, lists: str, goes_on: bool) -> str:
        begin, end = self._vocabulary.marks
        messages = [
            {
                "role": role,
                "content": _content(parts, pictures, lists == "all" or (lists, role) == _USER),
            }
            for role, parts in turns
        ]
        shown = run(
            self._template,
            messages,
            add_generation_prompt=not goes_on,
            bos_token=begin,
            eos_token=end,
        )
        lists_shown = [m for m in messages if isinstance(m["content"], list)]
        if any(str(message["content"]) in shown for message in lists_shown):
            raise ValueError("it knows no parts of a message")
        return shown

    def _mark(self, lists: str) -> str | None:
        """What the template writes for a picture: what a second one adds to the prompt."""
        text = f"{_TEXT}0{_END}"
        one = self._run([("user", [0, text])], "image", lists, goes_on=False)
        two = self._run([("user", [0, 1, text])], "image", lists, goes_on=False)
        longer = len(two) - len(one)
        same = next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), len(one))
        added = two[same : same + longer].strip()
        return added if longer > 0 and added and added in one else None

    def _marked(self, parts: _Parts, by_name: Mapping[str, str]) -> Iterator[Segment]:
        """Segments; special tokens are looked for in the template's own words only."""
        for part in parts:
            if isinstance(part, int):
                yield ImageSlot(part)
            elif part in by_name:
                yield Text(by_name[part])
            else:
                marks = sorted(self._vocabulary.controls(part), key=len, reverse=True)
                pattern = "|".join(map(re.escape, marks))
                for piece in re.split(f"({pattern})", part) if marks else [part]:
                    yield Text(piece, special=piece in marks)

    def _without_begin(self, segments: Iterable[Segment]) -> Iterator[Segment]:
        """The token that begins a text is written by the tokenizer, if it writes one."""
        begin = self._vocabulary.marks[0] if self._vocabulary.bos is not None else None
        first = True
        for segment in segments:
            if isinstance(segment, Text) and not segment.text:
                continue
            if not (first and isinstance(segment, Text) and segment.text == begin):
                yield segment
            first = False


_USER = ("user", "user")


def _turns(conversation: Conversation, texts: Sequence[str]) -> list[_Turn]:
    """The conversation with these texts in place of its own."""
    left, pictures = iter(texts), count()
    return [
        (m.role, [next(left) if isinstance(p, str) else next(pictures) for p in m.content])
        for m in conversation.messages
    ]


def _content(parts: Sequence[str | int], pictures: str, as_list: bool) -> Any:
    """A turn's content as templates know it: a list of typed parts, or one string."""
    marked = [part if isinstance(part, str) else f"{_PICTURE}{part}{_END}" for part in parts]
    if not as_list:
        return "".join(marked)
    return [
        {"type": "image"}
        if isinstance(part, int) and pictures == "image"
        else {"type": "text", "text": text}
        for part, text in zip(parts, marked, strict=True)
    ]


def _split(shown: str, mark: str | None) -> _Parts:
    """A written prompt, apart: stand-ins of texts, numbers of pictures, and what is in between."""
    ours = f"{_TEXT}[0-9]+{_END}|{_PICTURE}[0-9]+{_END}"
    pattern = ours if mark is None else f"{ours}|{re.escape(mark)}"
    parts: _Parts = []
    pictures = 0
    for place, piece in enumerate(re.split(f"({pattern})", shown)):
        if place % 2 and piece == mark:
            parts.append(pictures)
            pictures += 1
        elif place % 2 and piece[0] == _PICTURE:
            parts.append(int(piece[1:-1]))
        elif piece:
            parts.append(piece)
    return parts


def _holds(parts: _Parts, names: Sequence[str], pictures: int) -> bool:
    """Whether every text and every picture is there, once and in order."""
    there = [part for part in parts if isinstance(part, str) and part[0] == _TEXT]
    return there == list(names) and [p for p in parts if isinstance(p, int)] == list(
        range(pictures)
    )


def _followed(
    parts: _Parts, by_name: Mapping[str, str], mark: str | None, real: str
) -> dict[str, str] | None:
    """The texts as the template wrote them, some stripped; None where it changed more than that."""
    place = 0
    found: dict[str, str] = {}
    for part in parts:
        if isinstance(part, int):
            ways = [f"{_PICTURE}{part}{_END}" if mark is None else mark]
        elif part in by_name:
            text = by_name[part]
            ways = [text, text.rstrip(), text.lstrip(), text.strip()]
        else:
            ways = [part]
        written = next((way for way in ways if real.startswith(way, place)), None)
        if written is None:
            return None
        place += len(written)
        if isinstance(part, str) and part in by_name:
            found[part] = written
    return found if place == len(real) else None
