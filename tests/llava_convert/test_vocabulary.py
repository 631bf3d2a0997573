"""Token ids of the converted file equal the source tokenizer's; the vocabulary fits the model."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llava_cli.errors import ModelInvalid
from llava_convert import convert
from llava_convert.bpe import byte_letters
from llava_convert.spm import BYTE_TOKENS, read_spm, rebuild_scores
from llava_convert.vocabulary import read_vocabulary
from tests.llava_convert.tokenizer_files import BYTE_LEVEL, change_json, source_ids

Gguf = Callable[[Path], tuple[dict[str, Any], dict[str, Any], dict[str, str]]]


@pytest.mark.parametrize(
    ("key", "value"),
    [("normalizer", {"type": "Lowercase"}), ("model", {"type": "WordPiece", "vocab": {"a": 0}})],
)
def test_a_tokenizer_that_does_more_than_llama_cpp_is_refused(
    source: Path, tmp_path: Path, key: str, value: dict[str, Any]
) -> None:
    change_json(source / "tokenizer.json", lambda tokenizer: tokenizer.update({key: value}))
    with pytest.raises(ModelInvalid, match=r"Lowercase|WordPiece"):
        convert(source, tmp_path / "out")


def test_a_tokenizer_without_merges_works(
    source: Path, tmp_path: Path, llama: Any, texts: list[str]
) -> None:
    def only_bytes(tokenizer: dict[str, Any]) -> None:
        keep = [*(t["content"] for t in tokenizer["added_tokens"]), *byte_letters().values()]
        tokenizer["model"]["vocab"] = {text: number for number, text in enumerate(keep)}
        tokenizer["model"]["merges"] = []

    change_json(source / "tokenizer.json", only_bytes)
    converted = llama(convert(source, tmp_path / "out").files[0].path, vocab_only=True)
    for text in texts[::5]:
        assert converted.ids(text) == source_ids(source, text), text


def test_sentencepiece_ids_equal_transformers_on_texts_that_start_with_a_letter(
    spm_model: Path, tmp_path: Path, llama: Any, texts: list[str]
) -> None:
    """transformers 5 leaves out the space that SentencePiece puts before a leading space."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(spm_model)
    converted = llama(convert(spm_model, tmp_path).files[0].path, vocab_only=True)
    compared = [text for text in texts if text[:1] not in (" ", "\u2581")]
    for text in compared:
        plain = tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
        assert converted.ids(text) == plain, text
    assert len(compared) > 400


def test_the_older_form_of_a_llama_tokenizer_json_is_read(
    spm_model: Path, tmp_path: Path, llama: Any, gguf: Gguf, texts: list[str]
) -> None:
    source = Path(shutil.copytree(spm_model, tmp_path / "source"))
    (source / "tokenizer.model").unlink()

    def older(tokenizer: dict[str, Any]) -> None:
        tokenizer["pre_tokenizer"] = None
        tokenizer["normalizer"] = {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "\u2581"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
            ],
        }
        merges = tokenizer["model"]["merges"]
        tokenizer["model"]["merges"] = [" ".join(merge) for merge in merges]
        tokenizer["model"]["unk_token"] = "<unk>"

    change_json(source / "tokenizer.json", older)
    path = convert(source, tmp_path / "out").files[0].path
    assert gguf(path)[0]["tokenizer.ggml.add_space_prefix"] is True
    converted = llama(path, vocab_only=True)
    for text in [text for text in texts if text]:
        assert converted.ids(text) == source_ids(source, text), text


def test_scores_rank_merges_and_leave_the_rest_behind() -> None:
    from gguf import TokenType

    texts = ["a", "b", "ab", "abb", "</s>", None]
    kinds = [TokenType.NORMAL] * 4 + [TokenType.CONTROL, TokenType.UNUSED]
    merges = [("a", "b"), ("ab", "b"), ("a", "bb")]
    assert rebuild_scores(texts, merges, kinds) == [-1e6, -1e6, -0.0, -1.0, -1e6, -1e6]


def test_merges_that_no_sentencepiece_model_has_are_told() -> None:
    words = [*BYTE_TOKENS, "a", "b", "c", "ab", "bc", "abc"]
    model = {
        "type": "BPE",
        "byte_fallback": True,
        "vocab": {text: number for number, text in enumerate(words)},
        "merges": [["a", "b"], ["b", "c"], ["ab", "c"], ["a", "bc"]],
    }
    complete = read_spm({"model": model}, Path("no file"), {})
    assert complete.notes == []
    model["merges"] = [["a", "b"], ["b", "c"], ["ab", "c"]]  # llama.cpp would join "a", "bc" too
    assert "1 merges" in read_spm({"model": model}, Path("no file"), {}).notes[0]


def test_a_sentencepiece_tokenizer_without_byte_tokens_is_refused(
    spm_model: Path, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(spm_model, tmp_path / "source"))
    (source / "tokenizer.model").unlink()

    def without_bytes(tokenizer: dict[str, Any]) -> None:
        vocabulary = tokenizer["model"]["vocab"]
        vocabulary["spare"] = vocabulary.pop("<0x0A>")

    change_json(source / "tokenizer.json", without_bytes)
    with pytest.raises(ModelInvalid, match="<0x0A>"):
        convert(source, tmp_path / "out")


@pytest.mark.parametrize("keep", [0, 10, 0.3, 0.9])
def test_a_damaged_sentencepiece_file_is_an_error(
    spm_model: Path, tmp_path: Path, keep: float
) -> None:
    source = Path(shutil.copytree(spm_model, tmp_path / "source"))
    data = (source / "tokenizer.model").read_bytes()
    size = int(keep if keep >= 1 or not keep else keep * len(data))
    (source / "tokenizer.model").write_bytes(data[:size])
    with pytest.raises(ModelInvalid, match=r"tokenizer\.model"):
        convert(source, tmp_path / "out")


def test_two_tokenizer_files_that_disagree_are_an_error(spm_model: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(spm_model, tmp_path / "source"))

    def swap(tokenizer: dict[str, Any]) -> None:
        vocabulary = tokenizer["model"]["vocab"]
        last, other = list(vocabulary)[-1], list(vocabulary)[-2]
        vocabulary[last], vocabulary[other] = vocabulary[other], vocabulary[last]

    change_json(source / "tokenizer.json", swap)
    with pytest.raises(ModelInvalid, match=r"tokenizer\.model and .* in tokenizer\.json") as caught:
        convert(source, tmp_path / "out")
    assert "belongs to another model" in caught.value.hint


def test_the_vocabulary_is_padded_to_the_embedding(
    bpe_model: Path, spm_model: Path, tmp_path: Path, gguf: Gguf
) -> None:
    for number, model in enumerate((bpe_model, spm_model)):
        keys, values, _ = gguf(convert(model, tmp_path / str(number)).files[0].path)
        tokens, types = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
        assert len(tokens) == len(types) == values["token_embd.weight"].shape[0]
        assert len(set(tokens)) == len(tokens)
        padding = [t for t, kind in zip(tokens, types, strict=True) if kind == 5]
        assert padding and all(re.fullmatch(r"\[PAD\d+\]", text) for text in padding)


def test_added_tokens_keep_their_ids_and_kinds(spm_model: Path, tmp_path: Path, gguf: Gguf) -> None:
    source = Path(shutil.copytree(spm_model, tmp_path / "source"))
    plain = {"id": 402, "content": "plain word", "special": False}
    change_json(source / "tokenizer.json", lambda value: value["added_tokens"].append(plain))
    keys = gguf(convert(source, tmp_path / "out").files[0].path)[0]
    tokens, types = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
    assert tokens[400:403] == ["<pad>", "<image>", "plain word"]
    assert types[400:403] == [3, 3, 4]
    assert types[:3] == [2, 3, 3]
    assert keys["tokenizer.ggml.padding_token_id"] == 400


def test_a_tokenizer_larger_than_the_embedding_is_an_error(source: Path, tmp_path: Path) -> None:
    def grow(tokenizer: dict[str, Any]) -> None:
        vocabulary = tokenizer["model"]["vocab"]
        vocabulary.update({f"more{n}": len(vocabulary) + n for n in range(100)})

    change_json(source / "tokenizer.json", grow)
    with pytest.raises(ModelInvalid, match="rows"):
        convert(source, tmp_path / "out")


def test_an_added_token_without_a_row_is_left_out_and_told(source: Path, tmp_path: Path) -> None:
    far = {"id": 9999, "content": "<far>", "special": True}
    change_json(source / "tokenizer.json", lambda value: value["added_tokens"].append(far))
    result = convert(source, tmp_path / "out")
    assert any("<far>" in note for note in result.notes)


def test_a_chat_template_is_stored_and_gives_the_prompt_format(
    source: Path, tmp_path: Path, gguf: Gguf
) -> None:
    template = (
        "{% for m in messages %}{{ m.role.upper() + ': ' + m.content "
        "+ ('</s>' if m.role == 'assistant' else ' ') }}{% endfor %}ASSISTANT:"
    )
    (source / "chat_template.jinja").write_text(template)
    change_json(source / "config.json", lambda value: value.pop("llava_prompt_format"))
    keys = gguf(convert(source, tmp_path / "out").files[0].path)[0]
    assert keys["tokenizer.chat_template"] == "{#- USER: ... ASSISTANT: ... -#}" + template
    assert keys["llava.prompt_format"] == "vicuna_v1"


def test_without_any_sign_no_prompt_format_is_guessed(
    source: Path, tmp_path: Path, gguf: Gguf
) -> None:
    change_json(source / "config.json", lambda value: value.pop("llava_prompt_format"))
    keys = gguf(convert(source, tmp_path / "vicuna-v1.5-13b", name="vicuna_v1").files[0].path)[0]
    assert "llava.prompt_format" not in keys


@pytest.mark.parametrize(
    ("processor", "config", "expected"),
    [
        (None, {}, False),
        (None, {"add_bos_token": True}, False),
        ("same", {}, True),
        ("same", {"add_bos_token": False}, True),
        ("nested", {}, True),
    ],
)
def test_bos_is_added_exactly_when_transformers_adds_it(
    source: Path, processor: str | None, config: dict[str, Any], expected: bool
) -> None:
    from transformers import AutoTokenizer

    def change(tokenizer: dict[str, Any]) -> None:
        if processor is None:
            tokenizer["post_processor"] = None
        elif processor == "nested":
            level = {**BYTE_LEVEL, "use_regex": True}
            inner = [level, tokenizer["post_processor"]]
            tokenizer["post_processor"] = {"type": "Sequence", "processors": inner}

    change_json(source / "tokenizer.json", change)
    change_json(source / "tokenizer_config.json", lambda value: value.update(config))
    vocabulary = read_vocabulary(source, {}, 448)
    assert vocabulary.add_bos is expected
    assert (AutoTokenizer.from_pretrained(source)("a").input_ids[0] == 1) is expected


def test_without_an_end_token_nothing_is_guessed(source: Path) -> None:
    (source / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ModelInvalid, match="eos_token"):
        read_vocabulary(source, {}, 448)
    assert read_vocabulary(source, {"text_config": {"eos_token_id": [2, 3]}}, 448).specials == {
        "bos": 2,
        "eos": 2,
    }


def test_byte_letters_are_those_of_the_tokenizers_library() -> None:
    from tokenizers import pre_tokenizers

    assert sorted(byte_letters().values()) == sorted(pre_tokenizers.ByteLevel.alphabet())
    assert byte_letters()[0x20] == "\u0120" and byte_letters()[0x0A] == "\u010a"


def test_the_base_install_is_enough(bpe_model: Path, tmp_path: Path) -> None:
    """Neither torch, transformers nor tokenizers is imported."""
    import subprocess
    import sys

    code = (
        "import sys; from pathlib import Path; from llava_convert import convert;"
        "convert(Path(sys.argv[1]), Path(sys.argv[2]), outtypes=['q8_0']);"
        "print([m for m in ('torch', 'transformers', 'tokenizers') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(bpe_model), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.stdout.strip() == "[]", done.stderr
