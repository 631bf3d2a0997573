"""Token ids of the converted file equal the source tokenizer's, on ten thousand strings a kind.

The vocabularies are learnt across words, digits and scripts, so that a rule that cut one text
elsewhere would give other ids.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from llava_convert import convert
from llava_convert.bpe import GPT2, LLAMA3, QWEN2
from tests.llava_convert.tokenizer_files import BYTE_LEVEL, change_json, split_by

SPECIALS = ["<unk>", "<s>", "</s>", "<pad>", "<image>"]
DIGITS = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Digits", "individual_digits": True},
        {**BYTE_LEVEL, "use_regex": True},
    ],
}
ROWS = 4096


def with_rows(model: Path, folder: Path) -> Path:
    """A copy of a checkpoint with a larger embedding and without its tokenizer."""
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("tokenizer*", "special*"))
    tensors = load_file(folder / "model.safetensors")
    for name in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"):
        tensors[name] = np.resize(tensors[name], (ROWS, tensors[name].shape[1]))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def joining(
    bpe_model: Path, many_texts: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A checkpoint whose byte-level merges join whatever stood side by side."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=ROWS - 7,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # llama.cpp takes any token of that text for one that ends a turn, also where it is a word
    learnt = [text for text in many_texts[::2] if "<|im_end|>" not in text]
    tokenizer.train_from_iterator(learnt, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    folder = with_rows(bpe_model, tmp_path_factory.mktemp("joining") / "model")
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder


@pytest.mark.parametrize(
    ("rule", "whole_words", "name"),
    [
        pytest.param(split_by(GPT2), False, "gpt-2", id="GPT-2"),
        pytest.param(split_by(LLAMA3), True, "llama-bpe", id="Llama 3"),
        pytest.param(split_by(LLAMA3), False, "smaug-bpe", id="Llama 3 without whole words"),
        pytest.param(split_by(QWEN2), False, "qwen2", id="Qwen 2"),
        pytest.param(DIGITS, False, "smollm", id="digits alone"),
    ],
)
def test_byte_level_ids(
    joining: Path, tmp_path: Path, llama: Any, gguf: Any, many_texts: list[str],
    rule: dict[str, Any], whole_words: bool, name: str,
) -> None:  # fmt: skip
    """Special tokens in a text as plain words, and as the tokens that they name."""
    from tokenizers import Tokenizer

    source = Path(shutil.copytree(joining, tmp_path / "source"))

    def change(tokenizer: dict[str, Any]) -> None:
        tokenizer["pre_tokenizer"] = rule
        tokenizer["model"]["ignore_merges"] = whole_words

    change_json(source / "tokenizer.json", change)
    path = convert(source, tmp_path / "out").files[0].path
    assert gguf(path)[0]["tokenizer.ggml.pre"] == name
    converted = llama(path, vocab_only=True)
    theirs = Tokenizer.from_file(str(source / "tokenizer.json"))
    assert len(many_texts) > 10_000
    for parsed in (False, True):
        theirs.encode_special_tokens = not parsed
        expected = theirs.encode_batch(many_texts, add_special_tokens=False)
        for text, want in zip(many_texts, expected, strict=True):
            assert converted.ids(text, parse_special=parsed) == want.ids, (parsed, text)
    assert converted.ids("hi", add_special=True) == theirs.encode("hi").ids


@pytest.fixture(scope="module")
def sentencepieces(
    tiny: ModuleType, many_texts: list[str], spm_model: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:  # fmt: skip
    """A checkpoint with a SentencePiece model whose pieces cross words and scripts."""
    import sentencepiece
    from transformers import LlamaTokenizer

    folder = with_rows(spm_model, tmp_path_factory.mktemp("pieces") / "model")
    known = [text for text in many_texts[:4000] if not any(name in text for name in SPECIALS)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text.replace("\n", " ") for text in known]),
        model_prefix=str(folder / "tokenizer"), vocab_size=ROWS - 200, model_type="bpe",
        byte_fallback=True, character_coverage=0.98, normalization_rule_name="identity",
        remove_extra_whitespaces=False, add_dummy_prefix=True, split_by_number=False,
        split_by_unicode_script=False, split_by_whitespace=False, max_sentencepiece_length=32,
        allow_whitespace_only_pieces=True, minloglevel=2, hard_vocab_limit=False, num_threads=1,
    )  # fmt: skip
    tokenizer: Any = LlamaTokenizer.from_pretrained(folder, add_bos_token=True)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"], "pad_token": "<pad>"})
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("files", ["both", "tokenizer.model", "tokenizer.json"])
def test_sentencepiece_ids(
    sentencepieces: Path, tmp_path: Path, llama: Any, many_texts: list[str], files: str
) -> None:
    """Equal to those of sentencepiece itself, also with scores rebuilt from tokenizer.json."""
    import sentencepiece

    reference = sentencepiece.SentencePieceProcessor()
    reference.LoadFromFile(str(sentencepieces / "tokenizer.model"))
    source = Path(shutil.copytree(sentencepieces, tmp_path / "source"))
    for name in {"tokenizer.model", "tokenizer.json"} - {files}:
        if files != "both":
            (source / name).unlink()
    converted = llama(convert(source, tmp_path / "out").files[0].path, vocab_only=True)
    assert len(many_texts) > 10_000
    for text in many_texts:
        assert converted.ids(text) == reference.EncodeAsIds(text), text
    assert converted.ids("hi", add_special=True)[0] == reference.bos_id()
