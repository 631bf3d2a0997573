"""The prompt of one picture and the finished form of its caption."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath

from llava_cli.errors import UsageError

Variables = Mapping[str, Callable[[], str]]
NAMES = ("stem", "name", "dir", "caption", "exif.date")
"""What may stand in braces: file name without and with its suffix, its folder's name, the caption
that the picture has already, the day it was taken."""
_FIELD = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")
_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufffe\uffff]")
_SENTENCE_END = (".", "!", "?", "…", "。")

_PICTURE = (
    r"(?:(?:given|provided|attached|uploaded|above|following) )?"
    r"(?:image|picture|photo|photograph|illustration|drawing|painting|artwork|screenshot|scene)"
)
"""Words for the picture itself; an adjective that says something (a close-up photo) is kept."""
_SHOWS = (
    r"(?:shows|depicts|features|displays|presents|portrays|captures|contains|illustrates|"
    r"showcases|includes|is of|is showing|is depicting)"
)
_SHOWING = rf"(?:of|showing|depicting|featuring|displaying|portraying|(?:that|which) {_SHOWS})"
_LEAD_INS = tuple(
    re.compile(pattern + r"\s+(?=\S)", re.IGNORECASE)
    for pattern in (
        rf"(?:the|this) {_PICTURE} {_SHOWS}(?: us)?(?: that)?",
        rf"(?:here is|here's|this is|it is|it's) (?:an?|the) {_PICTURE} {_SHOWING}",
        rf"an? {_PICTURE} {_SHOWING}",
        rf"in (?:the|this) {_PICTURE},?(?: (?:we|you|one) (?:can )?sees?(?: that)?|"
        r" there(?: is|'s| are))?",
    )
)
"""Beginnings of captions that say only that there is a picture."""


@dataclass(frozen=True)
class Template:
    """Text with `{variables}`; `{{` and `}}` are braces."""

    text: str

    def __post_init__(self) -> None:
        for match in _FIELD.finditer(self.text):
            name = match[1]
            if name is not None and name not in NAMES:
                near = difflib.get_close_matches(name, NAMES, n=1)
                known = ", ".join(f"{{{n}}}" for n in NAMES)
                meant = f"did you mean {{{near[0]}}}?" if near else f"known: {known}"
                raise UsageError(f"unknown variable {{{name}}}", f"{meant}; write {{{{ for a brace")

    def uses(self, name: str) -> bool:
        """Whether a variable stands in the text."""
        return any(match[1] == name for match in _FIELD.finditer(self.text))

    def fill(self, variables: Variables) -> str:
        """The text with its variables' values, which are not looked into for more."""

        def value(match: re.Match[str]) -> str:
            return match[0][0] if match[1] is None else variables[match[1]]()

        return _FIELD.sub(value, self.text)


@dataclass(frozen=True)
class Finish:
    """What becomes of a model's answer before it is a caption."""

    prefix: Template = field(default_factory=lambda: Template(""))
    suffix: Template = field(default_factory=lambda: Template(""))
    trigger: str = ""
    """A word that image trainers attach to a subject; put in front with a comma."""
    strip_lead_in: bool = False
    """Take "The image shows" and its like from the beginning."""
    ban: tuple[str, ...] = ()
    """Words and phrases that are taken out, whatever their case."""
    max_words: int | None = None

    def apply(self, answer: str, variables: Variables) -> str:
        """Clean, shorten, then dress; empty where the answer was."""
        text = tidy(answer)
        if self.strip_lead_in:
            text = without_lead_in(text)
        for word in self.ban:
            text = _without(text, word)
        if self.max_words is not None:
            text = _shortened(text, self.max_words)
        if not text:
            return ""
        text = self.prefix.fill(variables) + text + self.suffix.fill(variables)
        return f"{self.trigger}, {text}" if self.trigger else text


def tidy(text: str) -> str:
    """No control characters, no blanks at the ends of lines, no more than one empty line."""
    text = _CONTROLS.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    text = "\n".join(line.rstrip() for line in text.split("\n"))
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def without_lead_in(text: str) -> str:
    """The caption without its "In this image, we can see" or "This picture depicts".

    What follows begins with a capital where the whole did; a text with nothing behind it stays.
    """
    rest = text
    while match := next((found for p in _LEAD_INS if (found := p.match(rest))), None):
        rest = rest[match.end() :]
    return rest[0].upper() + rest[1:] if text[:1].isupper() else rest


def one_line(text: str) -> str:
    """For formats whose readers take the first line only."""
    return " ".join(text.split())


def variables(relative: str, shown: str, old: str, taken: Callable[[], str]) -> Variables:
    """The variables of one picture; `taken` reads the day from its EXIF when it is wanted."""
    path = PurePath(relative)
    return {
        "stem": lambda: _utf8(path.stem),
        "name": lambda: _utf8(path.name),
        "dir": lambda: _utf8(PurePath(shown).parent.name),
        "caption": lambda: old,
        "exif.date": taken,
    }


def _utf8(name: str) -> str:
    """A file name as text: bytes that are none become question marks."""
    return name.encode("utf-8", "replace").decode("utf-8")


def _without(text: str, word: str) -> str:
    """Whole words only, and the blank or comma that would be left over with them."""
    found = re.escape(word.strip())
    start = r"(?<!\w)" if re.match(r"\w", word.strip()) else ""
    end = r"(?!\w)" if re.search(r"\w$", word.strip()) else ""
    text = re.sub(f"{start}{found}{end}", "", text, flags=re.IGNORECASE)
    text = re.sub(r"[ \t]+([,.;:!?])", r"\1", text)
    text = re.sub(r",(\s*,)+", ",", text)
    text = re.sub(r"[ \t]{2,}", " ", text)
    return re.sub(r"^[\s,;]+", "", text).strip()


def _shortened(text: str, limit: int) -> str:
    """At most so many words; ends with a whole sentence where at least half of them remain."""
    words = list(re.finditer(r"\S+", text))
    if len(words) <= limit:
        return text
    kept = words[:limit]
    for word in reversed(kept[limit // 2 :]):
        if word[0].endswith(_SENTENCE_END):
            return text[: word.end()]
    return text[: kept[-1].end()].rstrip(",;:–-")
