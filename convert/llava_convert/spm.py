"""SentencePiece tokenizers (Llama, Vicuna, Mistral) from tokenizer.model or tokenizer.json.

transformers 5 no longer saves tokenizer.model, and tokenizer.json has no scores. They are rebuilt
from the order of its merges: llama.cpp joins the pair whose result scores highest, the merges are
sorted by just that score, so minus the rank gives the same order.

tokenizer.model is read here, field by field, because its protobuf library is not part of the base
install.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gguf import TokenType

from llava_cli.errors import ModelInvalid
from llava_convert.tokens import Tokens, in_order

LOWEST_SCORE = -1e6
"""Of tokens that no merge makes."""
BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]
UNIGRAM_BPE = 2
"""model_type BPE in the trainer's settings; 1 is unigram, which llama.cpp's SPM is not."""
PIECE_TYPES = {
    1: TokenType.NORMAL,
    2: TokenType.UNKNOWN,
    3: TokenType.CONTROL,
    4: TokenType.USER_DEFINED,
    5: TokenType.UNUSED,
    6: TokenType.BYTE,
}

Fields = dict[int, list[int | bytes]]


def read_spm(
    tokenizer: Mapping[str, Any], sentencepiece: Path, config: Mapping[str, Any]
) -> Tokens:
    """The vocabulary of a SentencePiece tokenizer; its own file wins over tokenizer.json."""
    if sentencepiece.is_file():
        tokens = _from_model(sentencepiece)
        if tokenizer:
            _compare(tokens, tokenizer)
    else:
        tokens = _from_json(tokenizer, config)
    missing = [text for text in BYTE_TOKENS if text not in set(tokens.tokens)]
    if missing:
        raise ModelInvalid(
            f"the tokenizer has no byte tokens ({missing[0]} and {len(missing) - 1} more)",
            "llama.cpp would end at the first character that it does not know",
        )
    prefix = config.get("add_prefix_space")
    if isinstance(prefix, bool):
        tokens.add_space_prefix = prefix
    return tokens


def rebuild_scores(
    texts: list[str | None], merges: list[tuple[str, str]], types: list[TokenType]
) -> list[float]:
    """Scores that make llama.cpp merge in the order of tokenizer.json."""
    rank: dict[str, int] = {}
    for place, (left, right) in enumerate(merges):
        rank.setdefault(left + right, place)
    return [
        -float(rank[text]) if kind == TokenType.NORMAL and text in rank else LOWEST_SCORE
        for text, kind in zip(texts, types, strict=True)
    ]


def _from_json(tokenizer: Mapping[str, Any], config: Mapping[str, Any]) -> Tokens:
    """From tokenizer.json alone."""
    model = tokenizer.get("model") or {}
    if model.get("type", "BPE") != "BPE" or not model.get("byte_fallback"):
        raise ModelInvalid(
            f"a {model.get('type')} tokenizer without byte fallback cannot be converted yet",
            "known: byte-level BPE, SentencePiece BPE",
        )
    vocabulary: dict[str, int] = model.get("vocab") or {}
    merges = [_pair(merge) for merge in model.get("merges") or []]
    texts = in_order(vocabulary)
    special = {t["content"] for t in tokenizer.get("added_tokens") or [] if t.get("special")}
    unknown = model.get("unk_token") or config.get("unk_token")
    types = [_type_of(text, unknown, special) for text in texts]
    tokens = Tokens(
        model="llama",
        pre="default",
        tokens=[f"[PAD{n}]" if text is None else text for n, text in enumerate(texts)],
        types=types,
        scores=rebuild_scores(texts, merges, types),
        add_space_prefix=_adds_space(tokenizer),
    )
    unlisted = _unlisted_merges(vocabulary, merges, special)
    if unlisted:
        tokens.notes.append(
            f"tokenizer.json does not list {unlisted} merges that llama.cpp will do: some texts "
            "get other ids (it was not made from a SentencePiece model)"
        )
    return tokens


def _pair(merge: Any) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return str(left), str(right)


def _type_of(text: str | None, unknown: Any, special: set[str]) -> TokenType:
    if text is None:
        return TokenType.UNUSED
    if text == unknown:
        return TokenType.UNKNOWN
    if text in special:
        return TokenType.CONTROL
    return TokenType.BYTE if text in BYTE_TOKENS else TokenType.NORMAL


def _unlisted_merges(
    vocabulary: Mapping[str, int], merges: list[tuple[str, str]], special: set[str]
) -> int:
    """How many pairs of tokens make a token without a merge that says so."""
    listed, made = set(merges), {left + right for left, right in merges}
    plain = vocabulary.keys() - special
    return sum(
        (text[:cut], text[cut:]) not in listed
        for text in made
        for cut in range(1, len(text))
        if text[:cut] in plain and text[cut:] in plain
    )


def _adds_space(tokenizer: Mapping[str, Any]) -> bool:
    """Whether a text is tokenised as if a space stood before it."""
    steps: list[Any] = []
    for key, inner in (("normalizer", "normalizers"), ("pre_tokenizer", "pretokenizers")):
        part = tokenizer.get(key) or {}
        steps += part.get(inner) or [part]
    for step in steps:
        if step.get("type") == "Prepend":
            return True
        if step.get("type") == "Metaspace":
            scheme = step.get("prepend_scheme")
            return scheme != "never" if scheme else bool(step.get("add_prefix_space", True))
    return False


def _from_model(path: Path) -> Tokens:
    """From tokenizer.model, a serialized sentencepiece.ModelProto."""
    try:
        top = _fields(path.read_bytes())
        pieces = [_fields(_bytes(piece)) for piece in top.get(1, [])]
        trainer = _fields(_bytes(top[2][0])) if 2 in top else {}
        normalizer = _fields(_bytes(top[3][0])) if 3 in top else {}
        tokens = Tokens(
            model="llama",
            pre="default",
            tokens=[_bytes(piece[1][0]).decode() for piece in pieces],
            types=[PIECE_TYPES[_whole(piece, 3, 1)] for piece in pieces],
            scores=[_score(piece) for piece in pieces],
            specials={
                name: number
                for name, key, usual in (("unk", 40, 0), ("bos", 41, 1), ("eos", 42, 2))
                if 0 <= (number := _signed(_whole(trainer, key, usual))) < len(pieces)
            },
            add_space_prefix=bool(_whole(normalizer, 3, 1)),
        )
    except (ValueError, KeyError, IndexError, struct.error) as error:
        raise ModelInvalid(
            f"{path.name} is not a SentencePiece model, or is cut off", "fetch it again"
        ) from error
    if not pieces or _whole(trainer, 3, 1) != UNIGRAM_BPE:
        raise ModelInvalid(
            f"{path.name} is not a BPE model, which is all that llama.cpp's SentencePiece can do"
        )
    if normalizer.get(2) not in (None, [b""]):
        tokens.notes.append(
            f"{path.name} normalises characters, which neither llama.cpp nor transformers' "
            "LlamaTokenizer does"
        )
    return tokens


def _compare(tokens: Tokens, tokenizer: Mapping[str, Any]) -> None:
    """Refuse two files that disagree: one of them belongs to another model."""
    vocabulary: dict[str, int] = (tokenizer.get("model") or {}).get("vocab") or {}
    for text, number in vocabulary.items():
        if number < len(tokens.tokens) and tokens.tokens[number] != text:
            raise ModelInvalid(
                f"token {number} is {tokens.tokens[number]!r} in tokenizer.model and {text!r} in "
                "tokenizer.json",
                "remove the file that belongs to another model",
            )


def _fields(data: bytes) -> Fields:
    """One protobuf message: field number -> its values, in order."""
    fields: Fields = {}
    for number, value in _walk(data):
        fields.setdefault(number, []).append(value)
    return fields


def _walk(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    place = 0
    while place < len(data):
        tag, place = _varint(data, place)
        kind = tag & 7
        if kind == 0:
            value, place = _varint(data, place)
            yield tag >> 3, value
            continue
        if kind not in (1, 2, 5):
            raise ValueError(f"unknown wire type {kind}")
        length = {1: 8, 5: 4}.get(kind, 0)
        if kind == 2:
            length, place = _varint(data, place)
        if place + length > len(data):
            raise ValueError("cut off")
        yield tag >> 3, data[place : place + length]
        place += length


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise ValueError("a number of more than 64 bits")


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number where text was expected")
    return value


def _whole(fields: Fields, key: int, usual: int) -> int:
    value = fields.get(key, [usual])[-1]
    if not isinstance(value, int):
        raise ValueError("text where a number was expected")
    return value


def _signed(value: int) -> int:
    """Negative numbers are written as 64-bit two's complement."""
    return value - (1 << 64) if value >> 63 else value


def _score(piece: Fields) -> float:
    if 2 not in piece:
        return 0.0
    return float(struct.unpack("<f", _bytes(piece[2][0]))[0])
