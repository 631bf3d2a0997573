"""GGUF headers: read exactly and quickly; damage is named, whatever and wherever it is."""

from __future__ import annotations

import random
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from llava_cli.errors import LlavaError, ModelInvalid, ModelNotFound
from llava_cli.models.gguf_header import read_header

Writer = Callable[..., Path]


def test_metadata_and_tensors_are_those_that_gguf_reads(
    text_gguf: Writer, mmproj_gguf: Writer, tmp_path: Path
) -> None:
    from gguf import GGUFReader

    for path in (text_gguf(tmp_path / "a.gguf", llava__prompt_format="vicuna_v1"),
                 mmproj_gguf(tmp_path / "b.gguf")):  # fmt: skip
        header, theirs = read_header(path), GGUFReader(path)
        fields = {k: f.contents() for k, f in theirs.fields.items() if not k.startswith("GGUF.")}
        fields.pop("tokenizer.ggml.tokens", None)  # too long to be of use
        assert dict(header.metadata) == fields
        assert {n: (t.shape, t.type, t.offset) for n, t in header.tensors.items()} == {
            t.name: (tuple(t.shape.tolist()), int(t.tensor_type), t.data_offset)
            for t in theirs.tensors
        }


def test_content_tells_text_from_mmproj(
    text_gguf: Writer, mmproj_gguf: Writer, tmp_path: Path
) -> None:
    text = read_header(text_gguf(tmp_path / "mmproj-looking.gguf"))
    assert (text.architecture, text.is_mmproj) == ("llama", False)
    assert read_header(mmproj_gguf(tmp_path / "model.gguf")).is_mmproj


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"PK\x03\x04 a zip file", "is not a GGUF"),
        (b"GGUF", "damaged"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "GGUF version 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60), "damaged"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 62), "damaged"),
    ],
)
def test_what_is_no_gguf_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelInvalid, match=said) as caught:
        read_header(path)
    assert caught.value.hint


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="no such model file"):
        read_header(tmp_path / "none.gguf")
    with pytest.raises(ModelInvalid, match="cannot read"):
        read_header(tmp_path)


def test_every_truncation_is_damage(text_gguf: Writer, tmp_path: Path) -> None:
    whole = text_gguf(tmp_path / "whole.gguf").read_bytes()
    path = tmp_path / "cut.gguf"
    for length in [*range(0, 400, 13), len(whole) // 2, len(whole) - 100, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(ModelInvalid):
            read_header(path)


def test_random_damage_never_raises_anything_else(mmproj_gguf: Writer, tmp_path: Path) -> None:
    whole = mmproj_gguf(tmp_path / "whole.gguf").read_bytes()
    path = tmp_path / "bad.gguf"
    rng, refused = random.Random(0), 0
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 6)):
            data[rng.randrange(4, len(data) // 2)] = rng.randrange(256)
        path.write_bytes(data)
        try:
            read_header(path)
        except LlavaError:
            refused += 1
    assert refused > 50


def test_a_vocabulary_with_a_token_twice_is_damage(tmp_path: Path) -> None:
    from gguf import GGUFWriter

    for tokens, whole in ((["a", "b", "c"], True), (["a", "b", "a"], False)):
        path = tmp_path / f"{whole}.gguf"
        writer = GGUFWriter(path, "llama")
        writer.add_token_list(tokens)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        if whole:
            assert read_header(path).metadata["tokenizer.ggml.tokens"] == tokens
        else:
            with pytest.raises(ModelInvalid, match="a token twice"):
                read_header(path)


def test_a_large_vocabulary_is_passed_over_quickly(text_gguf: Writer, tmp_path: Path) -> None:
    path = text_gguf(tmp_path / "a.gguf")
    started = time.process_time()
    header = read_header(path)
    assert time.process_time() - started < 0.1
    assert "tokenizer.ggml.tokens" not in header.metadata
