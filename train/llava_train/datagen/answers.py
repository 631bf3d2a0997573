"""What a language model wrote, taken apart strictly, and the reasons for which it is not used.

Conversation and reasoning arrive as blocks `Question:` / text / `===` / `Answer:` / text, joined by
`===`; detail is the answer alone. Nothing is repaired: an answer in another form is rejected with
its reason, and so is one that would teach a model to speak of captions, boxes or its own limits.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

Turn = tuple[str, str]
"""A question and its answer."""


class Rejected(Exception):
    """An answer that makes no sample; `reason` is one of REASONS."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


REASONS = {
    "empty": "nothing was written",
    "cut": "ended by the token limit",
    "withheld": "held back by the endpoint's own filter",
    "malformed": "not in the form that was asked for",
    "not_alternating": "questions and answers do not take turns",
    "empty_turn": "a question or an answer without text",
    "wrong_number_of_turns": "more or fewer questions than the kind has",
    "special_token": "holds a token or a character that would break training",
    "source_mentioned": "speaks of captions, boxes or coordinates",
    "refusal": "refuses, or speaks of being a language model",
    "too_short": "fewer words than --min-words",
    "too_long": "more words than --max-words",
    "repeated_question": "asks the same question twice",
    "duplicate": "the same sample is there already",
}


@dataclass(frozen=True)
class Limits:
    """How long answers may be, in words."""

    min_words: dict[str, int]
    """By kind, for all answers of a sample together."""
    max_words: int
    """For one answer."""
    max_turns: int = 12


MIN_WORDS = {"conversation": 3, "detail": 10, "reasoning": 8}
"""Low, so that only what says nothing is left out; LLaVA's own numbers are not known."""
MAX_WORDS = 800

_DIVIDER = re.compile(r"^[ \t]*={3,}[ \t]*$", re.MULTILINE)
_LABEL = re.compile(r"\s*(Question|Answer):[ \t]*\r?\n?", re.IGNORECASE)
_STRAY = re.compile(r"^\s*(question|answer)\s*:|^[ \t]*={3,}[ \t]*$", re.IGNORECASE | re.MULTILINE)
_SPECIAL = re.compile(
    r"<\s*/?\s*(?:image|im_start|im_end|im_patch|s|unk|pad|video)\s*>|<\|[^|>\n]{1,40}\|>"
    r"|</?think(?:ing)?>|\[/?INST\]|<</?SYS>>|^\s*###|^(?:USER|ASSISTANT|Human|Assistant|System):",
    re.IGNORECASE | re.MULTILINE,
)
_SOURCE = re.compile(
    r"\b(?:captions?|bounding[ -]?box(?:es)?|coordinates?|normali[sz]ed (?:values|numbers)"
    r"|(?:the|these|those|given|provided) (?:sentences|descriptions)\b"
    r"|(?:given|provided|above) (?:description|list|text|context|information)"
    r"|(?:mentioned|stated|described|listed|specified|provided|given) in the"
    r" (?:description|text|list|context|sentences?)|object (?:list|detections?)"
    r"|based on the (?:description|information|text|context))\b"
    r"|\[\s*[01]?\.\d+\s*,",
    re.IGNORECASE,
)
_REFUSAL = re.compile(
    r"\bas an? (?:ai|artificial intelligence|(?:large )?language model|text-based)\b"
    r"|\bi(?:'m| am) (?:sorry|unable|not able)\b|\bi apologi[sz]e\b"
    r"|\bi (?:cannot|can't|can not) (?:assist|help|provide|fulfil|comply|determine|access|view)\b"
    r"|\bi (?:cannot|can't|can not) see (?:the |this |any )?(?:image|picture|photo)"
    r"|\bi (?:do not|don't) have (?:access|the ability)\b|\b(?:openai|chatgpt)\b",
    re.IGNORECASE,
)


def parse(text: str, kind: str) -> tuple[Turn, ...]:
    """Question and answer pairs; for `detail` one pair with an empty question."""
    text = text.replace("\r\n", "\n").strip()
    if not text:
        raise Rejected("empty")
    if kind == "detail":
        if _STRAY.search(text):
            raise Rejected("malformed", "a description was asked for, without labels")
        return (("", text),)
    try:
        turns = _pairs(_blocks(text))
    except Rejected as rejected:
        if rejected.reason == "malformed" and _REFUSAL.search(text):
            raise Rejected("refusal", _shown(_REFUSAL, text)) from rejected
        raise
    if kind == "reasoning" and len(turns) != 1:
        raise Rejected("wrong_number_of_turns", f"{len(turns)} questions instead of one")
    return turns


def check(turns: tuple[Turn, ...], kind: str, limits: Limits) -> None:
    """Raise Rejected for what no model should learn."""
    texts = [text for turn in turns for text in turn]
    for text in texts:
        if _SPECIAL.search(text) or any(map(_unprintable, text)):
            raise Rejected("special_token", _shown(_SPECIAL, text))
        for reason, pattern in (("source_mentioned", _SOURCE), ("refusal", _REFUSAL)):
            if pattern.search(text):
                raise Rejected(reason, _shown(pattern, text))
    if len(turns) > limits.max_turns:
        raise Rejected("wrong_number_of_turns", f"{len(turns)} questions")
    words = [len(answer.split()) for _, answer in turns]
    if sum(words) < limits.min_words[kind]:
        raise Rejected("too_short", f"{sum(words)} words")
    if max(words) > limits.max_words or max(len(question) for question, _ in turns) > 2000:
        raise Rejected("too_long", f"{max(words)} words")
    asked = [normal(question) for question, _ in turns]
    if len(set(asked)) < len(asked):
        raise Rejected("repeated_question")


def normal(text: str) -> str:
    """Without case, accents of composition, punctuation and runs of blanks: for comparison."""
    text = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.sub(r"[^\w\s]", " ", text).split())


def _blocks(text: str) -> list[tuple[str, str]]:
    """(label, text) for every part between dividers."""
    parts = _DIVIDER.split(text)
    if not parts[0].strip():  # a divider in front of everything
        parts = parts[1:]
    if parts and not parts[-1].strip():
        parts = parts[:-1]
    blocks = []
    for part in parts:
        match = _LABEL.match(part)
        if match is None:
            raise Rejected("malformed", f"no label before {part.strip()[:40]!r}")
        content = part[match.end() :].strip()
        if _STRAY.search(content):
            raise Rejected("malformed", "a label inside a part")
        blocks.append((match[1].lower(), content))
    return blocks


def _pairs(blocks: list[tuple[str, str]]) -> tuple[Turn, ...]:
    if not blocks:
        raise Rejected("empty")
    for position, (label, content) in enumerate(blocks):
        if label != ("question", "answer")[position % 2]:
            raise Rejected("not_alternating", f"part {position + 1} is a {label}")
        if not content:
            raise Rejected("empty_turn", f"part {position + 1}")
    if len(blocks) % 2:
        raise Rejected("not_alternating", "the last question has no answer")
    texts = [content for _, content in blocks]
    return tuple(zip(texts[::2], texts[1::2], strict=True))


def _unprintable(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs", "Co") and character not in "\n\t"


def _shown(pattern: re.Pattern[str], text: str) -> str:
    match = pattern.search(text)
    return repr(match[0]) if match else "a control character"
