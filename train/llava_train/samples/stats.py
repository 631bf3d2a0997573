"""What a data set is made of: kinds, turns, lengths, and what its questions ask about.

Counts only; memory is bounded because rare words are dropped when a table of words grows large.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from llava_train.samples.files import Seen
from llava_train.samples.lengths import TOKEN, LengthOf
from llava_train.samples.phrases import nouns, verbs
from llava_train.samples.reading import Row
from llava_train.samples.validate import ERRORS, faults

_MOST_WORDS = 200_000
_BIN = {"words_per_question": 5, "words_per_answer": 20, "tokens_per_sample": 128}


@dataclass
class Stats:
    """The counts."""

    samples: int = 0
    left_out: int = 0
    """Samples with errors (`llava data validate` says which)."""
    pictures: int = 0
    """Different ones."""
    text_only: int = 0
    questions: int = 0
    answer_words: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    turns: Counter[int] = field(default_factory=Counter)
    """Samples by their number of questions."""
    words_per_question: Counter[int] = field(default_factory=Counter)
    words_per_answer: Counter[int] = field(default_factory=Counter)
    """By the lower end of a class of 5 and of 20 words."""
    tokens_per_sample: Counter[int] = field(default_factory=Counter)
    """By the lower end of a class of 128; empty without a tokenizer."""
    verbs: Counter[str] = field(default_factory=Counter)
    nouns: Counter[str] = field(default_factory=Counter)
    openings: Counter[str] = field(default_factory=Counter)
    """The first two words of questions."""

    def document(self, most: int = 20) -> dict[str, Any]:
        """As JSON; `most` entries of each table of words."""
        plain = {
            name: getattr(self, name)
            for name in ("samples", "left_out", "pictures", "text_only", "questions")
        }
        mean = self.answer_words / self.questions if self.questions else 0.0
        return {
            **plain,
            "words_per_answer_mean": round(mean, 2),
            "kinds": dict(self.kinds.most_common()),
            **{
                name: {str(key): n for key, n in sorted(getattr(self, name).items())}
                for name in ("turns", *_BIN)
            },
            **{
                name: dict(getattr(self, name).most_common(most))
                for name in ("verbs", "nouns", "openings")
            },
        }


def count(rows: Iterable[Any], length_of: LengthOf | None = None) -> Stats:
    """One pass over samples."""
    stats = Stats()
    pictures = Seen()
    try:
        for row in rows:
            if any(code in ERRORS for code, _ in faults(row)):
                stats.left_out += 1
                continue
            _add(stats, row, pictures)
            if length_of is not None:
                _class(stats, "tokens_per_sample", length_of(row))
    finally:
        pictures.close()
    return stats


def _add(stats: Stats, row: Row, pictures: Seen) -> None:
    stats.samples += 1
    image = row.get("image")
    if image is None:
        stats.text_only += 1
    elif pictures.add(str(image)):
        stats.pictures += 1
    stats.kinds[str(row.get("kind", "unknown"))[:40]] += 1
    asked = 0
    for turn in row["conversations"]:
        text = turn["value"].replace(TOKEN, " ").strip()
        if turn["from"] == "gpt":
            words = len(text.split())
            stats.answer_words += words
            _class(stats, "words_per_answer", words)
        else:
            asked += 1
            _question(stats, text)
    stats.turns[asked] += 1


def _question(stats: Stats, text: str) -> None:
    stats.questions += 1
    words = text.split()
    _class(stats, "words_per_question", len(words))
    text = text[:2000]
    stats.verbs.update(verbs(text))
    stats.nouns.update(nouns(text))
    if len(words) > 1:
        stats.openings[" ".join(words[:2]).lower()[:60]] += 1
    for table in (stats.verbs, stats.nouns, stats.openings):
        if len(table) > _MOST_WORDS:
            kept = table.most_common(_MOST_WORDS // 2)
            table.clear()
            table.update(dict(kept))


def _class(stats: Stats, name: str, value: int) -> None:
    width = _BIN[name]
    getattr(stats, name)[value // width * width] += 1
