"""Byte-level BPE tokenizers (GPT-2, Llama 3, Qwen2 and their like) from tokenizer.json.

llama.cpp knows the rule that splits a text into words only by name (`tokenizer.ggml.pre`). The name
is found by comparing the tokenizer's own expressions with those that llama.cpp has, else by trial
(`pretokens.py`); a rule that it does not have is refused, because every other name would give wrong
ids without a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gguf import TokenType

from llava_cli.errors import ModelInvalid
from llava_convert.pretokens import CANDIDATES, find_rule
from llava_convert.tokens import Tokens, in_order

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
DIGIT = r"\p{N}"
_ENGLISH = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_ENGLISH_SPELLED = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_WORDS = r"|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = _ENGLISH + _WORDS.replace("DIGITS", r"\p{N}{1,3}")
QWEN2 = _ENGLISH + _WORDS.replace("DIGITS", r"\p{N}")

PRE_TOKENIZERS: dict[tuple[tuple[str, ...], bool], str] = {
    ((GPT2,), False): "gpt-2",
    ((LLAMA3,), True): "llama-bpe",
    ((LLAMA3,), False): "smaug-bpe",
    ((QWEN2,), False): "qwen2",
    ((DIGIT, GPT2), False): "smollm",
}
"""Expressions in order, and whether a word that is a token skips the merges -> llama.cpp's name."""


def is_byte_level(tokenizer: Mapping[str, Any]) -> bool:
    """Whether a tokenizer.json turns bytes into letters before it merges."""
    parts = [*_flat(tokenizer.get("pre_tokenizer")), *_flat(tokenizer.get("decoder"))]
    return any(part.get("type") == "ByteLevel" for part in parts)


def read_bpe(tokenizer: Mapping[str, Any]) -> Tokens:
    """The vocabulary and merges of a byte-level tokenizer.json."""
    model = tokenizer.get("model") or {}
    vocabulary: dict[str, int] = model.get("vocab") or {}
    _check_model(model, vocabulary)
    texts = in_order(vocabulary)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    for merge in merges:
        left, _, right = merge.partition(" ")
        if left + right not in vocabulary:
            raise ModelInvalid(f"tokenizer.json merges {merge!r} into a token it does not have")
    tokens = [f"[PAD{n}]" if text is None else text for n, text in enumerate(texts)]
    return Tokens(
        model="gpt2",
        pre=pre_tokenizer_name(tokenizer) or _tried(tokenizer, tokens, merges),
        tokens=tokens,
        types=[TokenType.UNUSED if text is None else TokenType.NORMAL for text in texts],
        merges=merges,
        notes=_normalizer_notes(tokenizer.get("normalizer")),
    )


def pre_tokenizer_name(tokenizer: Mapping[str, Any]) -> str | None:
    """llama.cpp's name of the rule that splits a text into words; None if it is not known."""
    steps = [_step(part) for part in _flat(tokenizer.get("pre_tokenizer"))]
    if None in steps:
        return None
    expressions = tuple(step for step in steps if step)
    whole_words = bool((tokenizer.get("model") or {}).get("ignore_merges"))
    return PRE_TOKENIZERS.get((expressions, whole_words))


def _tried(tokenizer: Mapping[str, Any], tokens: list[str], merges: list[str]) -> str:
    """The rule that gives the same ids on every probe."""
    name = find_rule(tokenizer, tokens, merges)
    if name is None:
        steps = [dict(part) for part in _flat(tokenizer.get("pre_tokenizer"))]
        raise ModelInvalid(
            f"llama.cpp has no rule that splits words like this tokenizer: {steps!r}",
            f"{len(CANDIDATES)} rules were tried; every other name would give wrong ids",
        )
    return name


def byte_letters() -> dict[int, str]:
    """GPT-2's letter for each byte: itself where it prints, else one from U+0100 up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = {byte: chr(byte) for byte in printable}
    for byte in range(256):
        if byte not in letters:
            letters[byte] = chr(0x100 + len(letters) - len(printable))
    return letters


def _check_model(model: Mapping[str, Any], vocabulary: Mapping[str, int]) -> None:
    """Refuse what llama.cpp's BPE would do differently."""
    if model.get("type", "BPE") != "BPE" or not vocabulary or "merges" not in model:
        raise ModelInvalid(f"a {model.get('type')} tokenizer cannot be converted yet")
    for key in ("continuing_subword_prefix", "end_of_word_suffix", "dropout", "byte_fallback"):
        if model.get(key):
            raise ModelInvalid(f"llama.cpp's BPE has no {key}, which tokenizer.json asks for")
    missing = [byte for byte, letter in byte_letters().items() if letter not in vocabulary]
    if missing and model.get("unk_token"):
        raise ModelInvalid(
            f"tokenizer.json has no token for {len(missing)} of the 256 bytes and an unk_token, "
            "which llama.cpp's BPE does not have"
        )


def _step(part: Mapping[str, Any]) -> str | None:
    """The expression of one pre-tokenizer; empty where it splits nothing, None if not known."""
    kind = part.get("type")
    if kind == "ByteLevel" and not part.get("add_prefix_space", True):
        return GPT2 if part.get("use_regex", True) else ""
    if kind == "Split" and part.get("behavior") == "Isolated" and not part.get("invert"):
        expression = str((part.get("pattern") or {}).get("Regex", ""))
        return expression.replace(_ENGLISH_SPELLED, _ENGLISH) or None
    if kind == "Digits" and part.get("individual_digits"):
        return DIGIT
    return None


def _normalizer_notes(normalizer: Any) -> list[str]:
    kinds = [part.get("type") for part in _flat(normalizer)]
    if not kinds:
        return []
    if kinds == ["NFC"]:
        return ["the tokenizer composes characters (NFC), llama.cpp does not: give composed text"]
    raise ModelInvalid(f"llama.cpp's BPE does not normalise text, the tokenizer does: {kinds!r}")


def _flat(part: Any) -> list[Mapping[str, Any]]:
    """A step of tokenizer.json, or the steps of a Sequence."""
    if not isinstance(part, Mapping):
        return []
    if part.get("type") != "Sequence":
        return [part]
    inner = part.get("pretokenizers") or part.get("normalizers") or part.get("decoders") or []
    return [step for one in inner for step in _flat(one)]
