"""llama.cpp's rule that splits texts into words: looked up, or found by trying."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llava_cli.errors import ModelInvalid
from llava_convert import convert
from llava_convert.bpe import GPT2, LLAMA3, QWEN2

Gguf = Callable[[Path], tuple[dict[str, Any], dict[str, Any], dict[str, str]]]

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}


def split_by(expression: str) -> dict[str, Any]:
    split = {**SPLIT, "pattern": {"Regex": expression}}
    level = {**BYTE_LEVEL, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [split, level]}


def change_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def source_ids(folder: Path, text: str) -> list[int]:
    """By the tokenizers library itself, without special tokens and without looking for them."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


@pytest.mark.parametrize(
    ("pre_tokenizer", "ignore_merges", "name"),
    [
        (split_by(GPT2), False, "gpt-2"),
        (split_by(LLAMA3), False, "smaug-bpe"),
        (split_by(LLAMA3), True, "llama-bpe"),
        (split_by(QWEN2), False, "qwen2"),
        (
            {
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Digits", "individual_digits": True},
                    {**BYTE_LEVEL, "use_regex": True},
                ],
            },
            False,
            "smollm",
        ),
    ],
)
def test_every_known_word_rule_gives_the_same_ids(
    source: Path,
    tmp_path: Path,
    llama: Any,
    gguf: Gguf,
    texts: list[str],
    pre_tokenizer: dict[str, Any],
    ignore_merges: bool,
    name: str,
) -> None:
    def change(tokenizer: dict[str, Any]) -> None:
        tokenizer["pre_tokenizer"] = pre_tokenizer
        tokenizer["model"]["ignore_merges"] = ignore_merges

    change_json(source / "tokenizer.json", change)
    path = convert(source, tmp_path / "out").files[0].path
    assert gguf(path)[0]["tokenizer.ggml.pre"] == name
    converted = llama(path, vocab_only=True)
    for text in texts:
        assert converted.ids(text) == source_ids(source, text), text


@pytest.mark.parametrize(
    ("expression", "name"),
    [
        (r" ?\p{L}+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+", None),
        (
            r"(?:'s|'t|'re|'ve|'m|'ll|'d)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
            "gpt-2",
        ),
        (
            r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+"
            r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s",
            "qwen2",
        ),
    ],
)
def test_an_unknown_expression_is_found_by_trying_llama_cpps_rules(
    source: Path, tmp_path: Path, gguf: Gguf, llama: Any, texts: list[str], expression: str,
    name: str | None,
) -> None:  # fmt: skip
    change_json(
        source / "tokenizer.json", lambda value: value.update(pre_tokenizer=split_by(expression))
    )
    if name is None:
        with pytest.raises(ModelInvalid, match=r"llama\.cpp"):
            convert(source, tmp_path / "out")
        return
    path = convert(source, tmp_path / "out").files[0].path
    # this small vocabulary joins no digits: rules that differ in digits alone are as good
    alike = {"qwen2": ("llama-bpe", "smaug-bpe", "qwen2")}.get(name, (name,))
    assert gguf(path)[0]["tokenizer.ggml.pre"] in alike
    converted = llama(path, vocab_only=True)
    for text in texts:
        assert converted.ids(text) == source_ids(source, text), text


@pytest.mark.parametrize(
    "part",
    [
        {**BYTE_LEVEL, "add_prefix_space": True, "use_regex": True},
        split_by(r"\w+|\s+"),
        {"type": "Sequence", "pretokenizers": [{"type": "Whitespace"}, BYTE_LEVEL]},
    ],
)
def test_a_word_rule_that_llama_cpp_lacks_is_refused(
    source: Path, tmp_path: Path, part: dict[str, Any]
) -> None:
    change_json(source / "tokenizer.json", lambda value: value.update(pre_tokenizer=part))
    with pytest.raises(ModelInvalid, match=r"llama\.cpp"):
        convert(source, tmp_path / "out")
