"""Token ids and labels of a conversation: which tokens bear loss, from character offsets.

Every run of text is tokenised as a whole and never parsed for special tokens, so that a user's
`</s>` or `<image>` stays plain text. A token bears loss if it overlaps a character that does. A
sample that would teach nothing is an error that names it, not a silent zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from llava_cli.errors import DataError, ModelInvalid
from llava_cli.prompts import Run, Segment, runs

IGNORE_INDEX = -100
"""Label of a token that bears no loss."""
IMAGE_TOKEN = "<image>"


@dataclass(frozen=True)
class Encoded:
    """One sample as numbers; a picture is as many equal ids as it takes positions."""

    ids: list[int]
    labels: list[int]
    """As long as `ids`: the id itself, or `IGNORE_INDEX`."""
    images: tuple[int, ...] = ()
    """Which pictures of the conversation stand in `ids`, in order."""
    cut: int = 0
    """Tokens that did not fit into `max_length`."""

    @property
    def answer_tokens(self) -> int:
        """Tokens that bear loss as targets (the first position has no predecessor)."""
        return sum(label != IGNORE_INDEX for label in self.labels[1:])


@dataclass(frozen=True)
class PreviewToken:
    """One token for a person to look at."""

    id: int
    text: str
    loss: bool
    repeat: int = 1
    """How many equal image positions this line stands for."""


class Encoder:
    """A tokenizer of transformers (fast) with the rule above.

    Works on a copy of the tokenizer's backend that takes special tokens in texts for plain text.
    """

    def __init__(
        self, tokenizer: Any, *, image_tokens: int = 1, max_length: int | None = None
    ) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ModelInvalid(
                "the tokenizer gives no character offsets", "use a model with tokenizer.json"
            )
        self._plain = type(backend).from_str(backend.to_str())
        self._plain.encode_special_tokens = True
        self._plain.no_truncation()
        self._plain.no_padding()
        self._backend = backend
        self._tokenizer = tokenizer
        self.image_tokens = image_tokens
        self.max_length = max_length
        self.image_token_id: int | None = backend.token_to_id(IMAGE_TOKEN)
        self.prefix = _prefix(tokenizer)
        """The BOS token, if this tokenizer writes one."""

    def encode(
        self,
        segments: Iterable[Segment],
        name: str = "sample",
        positions: Sequence[int] | None = None,
    ) -> Encoded:
        """Ids and labels of one rendered conversation."""
        every = None if positions is None else [positions]
        return self.encode_many([(name, segments)], every)[0]

    def encode_many(
        self,
        samples: Sequence[tuple[str, Iterable[Segment]]],
        positions: Sequence[Sequence[int]] | None = None,
    ) -> list[Encoded]:
        """Many named samples; the texts of all go through the tokenizer together.

        positions: of each sample's pictures, where they do not all take `image_tokens`.
        """
        merged = [(name, runs(segments)) for name, segments in samples]
        texts = [run.text for _, parts in merged for run in parts if run.text and not run.special]
        encodings = iter(self._plain.encode_batch(texts, add_special_tokens=False))
        return [
            self._one(name, parts, encodings, positions[place] if positions else None)
            for place, (name, parts) in enumerate(merged)
        ]

    def _one(
        self, name: str, parts: Sequence[Run], encodings: Any, positions: Sequence[int] | None
    ) -> Encoded:
        ids = list(self.prefix)
        labels = [IGNORE_INDEX] * len(ids)
        images: list[int] = []
        ends: list[int] = []
        for run in parts:
            if run.image is not None:
                if self.image_token_id is None:
                    raise ModelInvalid(f"the tokenizer has no {IMAGE_TOKEN} token")
                taken = positions[run.image] if positions else self.image_tokens
                ids += [self.image_token_id] * taken
                labels += [IGNORE_INDEX] * taken
                images.append(run.image)
                ends.append(len(ids))
            elif run.special:
                token = self.special(run.text)
                ids.append(token)
                labels.append(token if run.spans else IGNORE_INDEX)
            else:
                encoding = next(encodings)
                ids += encoding.ids
                labels += _labels(encoding.ids, encoding.offsets, run.spans)
        return self._fitted(name, Encoded(ids, labels, tuple(images)), ends)

    def special(self, text: str) -> int:
        """The id of a special token of the prompt format."""
        token = self._backend.token_to_id(text)
        if token is None:
            raise ModelInvalid(
                f"the tokenizer has no token {text!r}, which the prompt format needs",
                "choose another prompt_format, or a model made for this one",
            )
        return int(token)

    def _fitted(self, name: str, whole: Encoded, ends: Sequence[int]) -> Encoded:
        """The sample cut to `max_length`; an error where nothing would be left to learn."""
        if not whole.answer_tokens:
            raise DataError(
                f"sample {name}: no token bears loss", "give every sample an answer that is text"
            )
        limit = self.max_length
        if limit is None or len(whole.ids) <= limit:
            return whole
        if any(end > limit for end in ends):
            raise DataError(
                f"sample {name}: a picture does not fit into max_length {limit}",
                f"the sample has {len(whole.ids)} tokens; raise max_length or split it",
            )
        cut = len(whole.ids) - limit
        fitted = Encoded(whole.ids[:limit], whole.labels[:limit], whole.images, cut)
        if not fitted.answer_tokens:
            raise DataError(
                f"sample {name}: cutting it to max_length {limit} removes every answer",
                f"the sample has {len(whole.ids)} tokens; raise max_length or split it",
            )
        return fitted

    def preview(self, encoded: Encoded) -> list[PreviewToken]:
        """The tokens of a sample, each with its text and whether it bears loss."""
        rows: list[PreviewToken] = []
        for token, label in zip(encoded.ids, encoded.labels, strict=True):
            loss = label != IGNORE_INDEX
            if rows and token == self.image_token_id == rows[-1].id:
                rows[-1] = PreviewToken(token, rows[-1].text, loss, rows[-1].repeat + 1)
                continue
            rows.append(PreviewToken(token, self._backend.id_to_token(token) or "", loss))
        return rows


def encode(
    segments: Iterable[Segment],
    tokenizer: Any,
    *,
    image_tokens: int = 1,
    max_length: int | None = None,
    name: str = "sample",
) -> tuple[list[int], list[int]]:
    """Ids and labels of one rendered conversation (`Encoder` for many)."""
    encoded = Encoder(tokenizer, image_tokens=image_tokens, max_length=max_length).encode(
        segments, name
    )
    return encoded.ids, encoded.labels


def _labels(
    ids: Sequence[int], offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]
) -> list[int]:
    """The ids of tokens that overlap a span, `IGNORE_INDEX` for the others."""
    if not spans:
        return [IGNORE_INDEX] * len(ids)
    return [
        token if any(_overlap(start, end, span) for span in spans) else IGNORE_INDEX
        for token, (start, end) in zip(ids, offsets, strict=True)
    ]


def _overlap(start: int, end: int, span: tuple[int, int]) -> bool:
    """Whether [start, end) meets the span; an empty token, if it stands inside."""
    return start < span[1] and span[0] < max(end, start + 1)


def _prefix(tokenizer: Any) -> tuple[int, ...]:
    """(BOS,) if this tokenizer begins every text with it."""
    ids = tokenizer.backend_tokenizer.encode("", add_special_tokens=True).ids
    bos = tokenizer.bos_token_id
    return (bos,) if bos is not None and ids[:1] == [bos] else ()
