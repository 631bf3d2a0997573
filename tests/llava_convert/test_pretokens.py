"""llama.cpp's rule that splits texts into words: looked up, or found by trying."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llava_cli.errors import ModelInvalid
from llava_convert import convert
from tests.llava_convert.tokenizer_files import BYTE_LEVEL, change_json, source_ids, split_by

Gguf = Callable[[Path], tuple[dict[str, Any], dict[str, Any], dict[str, str]]]


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
