"""Which arguments of `ask` are pictures and which one is the question.

Reads standard input and looks at files; decodes nothing and knows no model.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from llava_cli.errors import ImageError, UsageError
from llava_cli.images import Image, locate_all

MAX_PROMPT_CHARACTERS = 1_000_000
_QUOTE = 'put the question in quotes: llava ask photo.jpg "what is unusual here?"'


@dataclass(frozen=True)
class Question:
    """What was asked, about which pictures."""

    prompt: str
    images: tuple[Image, ...]


def parse_question(
    arguments: Sequence[str], images: Sequence[str], prompt: str | None, background: str
) -> Question:
    """Sort the arguments: what names a picture is one, the one that is left is the question.

    `-` is a picture on standard input, except as the last argument where no question is left.
    """
    if sum(text == "-" for text in (*images, *arguments, prompt)) > 1:
        raise UsageError("standard input (-) can be read only once", "give the other one directly")
    pictures = [picture for text in images for picture in _must_be_picture(text, background)]
    rest: list[str] = []
    stdin_at_end = prompt is None and len(arguments) > 0 and arguments[-1] == "-"
    for index, text in enumerate(arguments):
        last_dash = stdin_at_end and index == len(arguments) - 1
        if last_dash and not rest:
            rest.append(text)  # the question comes from standard input
            continue
        found = locate_all(text, background)
        pictures.extend(found)
        if not found:
            rest.append(text)
    if prompt is not None and rest:
        raise ImageError(f"{rest[0]}: no such picture", "the question was given with -p/--prompt")
    if len(rest) > 1:
        shown = ", ".join(repr(text) for text in rest[:3])
        raise UsageError(f"more than one argument is no picture: {shown}", _QUOTE)
    if prompt is None and not rest:
        raise UsageError("the question is missing", _QUOTE)
    return Question(_prompt_text(rest[0] if prompt is None else prompt), tuple(pictures))


def _must_be_picture(text: str, background: str) -> tuple[Image, ...]:
    found = locate_all(text, background)
    if not found:
        raise ImageError(f"{text or repr(text)}: no such picture", "check the path given to -i")
    return found


def _prompt_text(text: str) -> str:
    if text == "-":
        text = _stdin_text()
    if not text.strip():
        raise UsageError("the question is empty", _QUOTE)
    if len(text) > MAX_PROMPT_CHARACTERS:
        raise UsageError("the question is longer than a million characters", "shorten it")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError("the question is not valid UTF-8", "write it in UTF-8") from error
    return text


def _stdin_text() -> str:
    if sys.stdin is None:
        raise UsageError("the question should come from standard input, which is closed", _QUOTE)
    data = sys.stdin.buffer.read(4 * MAX_PROMPT_CHARACTERS + 1)
    try:
        return data.decode("utf-8-sig").strip("\r\n")
    except UnicodeDecodeError as error:
        raise UsageError(
            "the question on standard input is not UTF-8", "write it in UTF-8"
        ) from error
