"""How VQA answers are brought to one form before they are compared.

`evalai` is what VQAv2's, VizWiz's and TextVQA's answers pass through (the "EvalAI processor"),
`official` what the VQA organisers' evaluation does to a prediction, `pica` what PICa does to an
answer of a language model. Their quirks are kept, for published numbers contain them.
"""

from __future__ import annotations

import re
from functools import lru_cache

MARKS = ';/[]"{}()=+\\_-><@`,?!'
"""In the order of the rule, though no order gives another result: each is decided on its own."""
MOST_PERIODS = 32
"""The rule hands a flag (re.UNICODE) to `re.sub` as the count, so that at most 32 periods go."""
NUMBERS = {
    "none": "0",
    **{w: str(n) for n, w in enumerate("zero one two three four five six seven eight".split())},
    "nine": "9",
    "ten": "10",
}
ARTICLES = frozenset(("a", "an", "the"))
CACHED = 1 << 17

_CONTRACTED = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't"
    " haven't he'd he'd've he's how'd how'll how's I'd've I'm I've isn't it'd it'd've it'll ma'am"
    " mightn't mightn't've might've mustn't must've needn't not've o'clock oughtn't 'ow's'at"
    " shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's"
    " someone'd someone'd've someone'll someone's something'd something'd've something'll that's"
    " there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't"
    " we'd've we've weren't what'll what're what's what've when's where'd where's where've who'd"
    " who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all"
    " y'all'll y'all'd've you'd you'd've you'll you're you've"
).split()


def _contractions() -> dict[str, str]:
    """Each word above under every spelling that lacks one apostrophe, and three odd entries."""
    table = {
        word[:i] + word[i + 1 :]: word
        for word in _CONTRACTED
        for i, character in enumerate(word)
        if character == "'"
    }
    return table | {"let's": "let's", "she's": "she's", "somebody'd": "somebodyd"}


CONTRACTIONS = _contractions()
"""120 entries; four of their keys have capitals and never match, one entry maps backwards."""

_ANY_MARK = re.compile("[" + re.escape(MARKS) + "]")
_PERIOD = re.compile(r"\.(?!\d)")
_COMMA_IN_NUMBER = re.compile(r"\d,\d")


@lru_cache(maxsize=CACHED)
def evalai(text: str) -> str:
    """The EvalAI processor's form of an answer or a reference."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    return _words(_punctuation(text))


@lru_cache(maxsize=CACHED)
def official(text: str) -> str:
    """The organisers' form of a prediction."""
    return _words(_punctuation(text.replace("\n", " ").replace("\t", " ").strip()))


@lru_cache(maxsize=CACHED)
def official_reference(text: str) -> str:
    """The organisers' form of a reference, where the ten are not all the same."""
    return _punctuation(text)


def pica(text: str) -> str:
    """PICa's cleaning of an answer."""
    words = text.replace(".", "").replace(",", "").lower().split(" ")
    return " ".join(word for word in words if word not in ("a", "an", "the", "to", ""))


def _punctuation(text: str) -> str:
    """Each mark goes where it touches a blank anywhere in `text`, else it becomes one."""
    out = text
    if _ANY_MARK.search(text):
        always = _COMMA_IN_NUMBER.search(text) is not None
        for mark in MARKS:
            if mark in text:
                goes = always or mark + " " in text or " " + mark in text
                out = out.replace(mark, "" if goes else " ")
    return _PERIOD.sub("", out, count=MOST_PERIODS) if "." in out else out


def _words(text: str) -> str:
    """Number words to digits, articles out, contractions with their apostrophe."""
    words = [NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def soft_score(matches: int, references: int) -> float:
    """VQA accuracy of an answer that `matches` of the references are equal to.

    Each reference is left out once: mean over i of min(1, matches among the others / 3).
    """
    if references == 0:
        return 0.0
    left_out = matches * min(3, matches - 1) + (references - matches) * min(3, matches)
    return left_out / (3 * references) if matches else 0.0
