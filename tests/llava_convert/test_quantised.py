"""Quantised files equal those of llama.cpp's own quantiser byte by byte."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from llava_cli.errors import ModelInvalid
from llava_convert import convert

TYPES = ("f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q5_k_s", "q4_k_m", "q4_k_s", "q4_0",
         "q3_k_m", "q2_k")  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "blocks of 256": {"intermediate_size": 512, "num_hidden_layers": 17},
    "rows of 288, shared keys": {
        "intermediate_size": 288, "num_hidden_layers": 8, "num_key_value_heads": 2,
    },
    "rows of 272, tied": {
        "intermediate_size": 272, "num_hidden_layers": 3, "tie_word_embeddings": True,
    },
    "narrow model": {"hidden_size": 96, "head_dim": 32, "num_hidden_layers": 2},
}  # fmt: skip


def build(tiny: ModuleType, folder: Path, dtype: str, **text: Any) -> Path:
    """A checkpoint whose language model has other numbers."""
    import torch
    from transformers import LlamaConfig, LlavaForConditionalGeneration

    tiny.build(folder)
    config: Any = LlavaForConditionalGeneration.from_pretrained(folder).config
    sizes = {"hidden_size": 256, "num_attention_heads": 8, "num_key_value_heads": 8,
             "head_dim": 32, "intermediate_size": 512}  # fmt: skip
    config.text_config = LlamaConfig(vocab_size=config.text_config.vocab_size, **{**sizes, **text})
    config.tie_word_embeddings = config.text_config.tie_word_embeddings
    torch.manual_seed(1)
    model = LlavaForConditionalGeneration(config).to(getattr(torch, dtype))
    model.save_pretrained(folder)
    return folder


def quantise(source: Path, target: Path, file_type: int, imatrix: Any = None) -> None:
    """llama.cpp's own."""
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = file_type, 1
    if imatrix is not None:
        params.imatrix = imatrix
    code = llama_cpp.llama_model_quantize(
        str(source).encode(), str(target).encode(), ctypes.byref(params)
    )
    assert code == 0


def tensors(path: Path) -> dict[str, tuple[str, bytes]]:
    """Type and bytes of each tensor of a GGUF."""
    from gguf import GGUFReader

    return {t.name: (t.tensor_type.name, t.data.tobytes()) for t in GGUFReader(path).tensors}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_type_is_byte_identical_to_llama_cpps(
    shape: str, tiny: ModuleType, tmp_path: Path, llama_cpp_api: Any
) -> None:
    source = build(tiny, tmp_path / "source", "bfloat16", **SHAPES[shape])
    result = convert(source, tmp_path / "ours", outtypes=TYPES, name="m")
    files = {file.type.lower(): file.path for file in result.files[:-1]}
    kinds = set()
    for kind in TYPES[1:]:
        start = files["f32"] if kind == "f16" else files["bf16"]
        theirs = tmp_path / "theirs.gguf"
        from gguf import GGUFReader

        field = GGUFReader(files[kind]).fields["general.file_type"]
        quantise(start, theirs, int(field.contents()))
        ours, expected = tensors(files[kind]), tensors(theirs)
        assert ours.keys() == expected.keys()
        for name, (label, data) in expected.items():
            assert ours[name][0] == label, (kind, name)
            assert ours[name][1] == data, (kind, name)
            kinds.add(label)
    if shape == "blocks of 256":
        assert kinds == {"F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q4_0", "Q3_K",
                         "Q2_K"}  # fmt: skip
    elif shape == "rows of 288, shared keys":
        assert {"Q5_0", "Q5_1", "Q8_0"} < kinds


@pytest.fixture
def wide(tiny: ModuleType, tmp_path: Path) -> Path:
    return build(tiny, tmp_path / "source", "float16", num_hidden_layers=8)


def write_imatrix(path: Path, weights: dict[str, Any], form: str) -> None:
    """As llama-imatrix writes it, in its newer or older form."""
    if form == "dat":
        with path.open("wb") as file:
            file.write(np.int32(len(weights)).tobytes())
            for name, values in weights.items():
                file.write(np.int32(len(name)).tobytes() + name.encode())
                file.write(np.array([3, values.size], np.int32).tobytes())
                file.write((values * 3).astype(np.float32).tobytes())
            file.write(np.int32(3).tobytes() + np.int32(4).tobytes() + b"text")
        return
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "imatrix")
    writer.add_array("imatrix.datasets", ["text"])
    writer.add_uint32("imatrix.chunk_count", 3)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, values in weights.items():
        writer.add_tensor(f"{name}.in_sum2", (values * 7).astype(np.float32)[None])
        writer.add_tensor(f"{name}.counts", np.array([[7]], np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("form", ["gguf", "dat"])
def test_an_importance_matrix_is_used_as_llama_quantize_uses_it(
    wide: Path, tmp_path: Path, llama_cpp_api: Any, form: str
) -> None:
    import llama_cpp

    plain = convert(wide, tmp_path / "plain", outtypes=["f32"], name="m").files[0]
    draw = np.random.default_rng(3)
    weights = {
        name: (draw.random(shape[1], np.float32) * 4).astype(np.float32)
        for name, (_, shape) in plain.tensors.items()
        if name.startswith("blk.") and len(shape) == 2
    }
    path = tmp_path / f"imatrix.{form}"
    write_imatrix(path, weights, form)
    types = ["q4_k_m", "q4_0", "q2_k", "q8_0"]
    files = convert(wide, tmp_path / "ours", outtypes=types, imatrix=path, name="m").files[:-1]
    from gguf import GGUFReader

    factor = np.float32(3) if form == "dat" else np.float32(7)
    used = {k: ((v * factor).astype(np.float32) / factor).astype(np.float32)
            for k, v in weights.items()}  # fmt: skip
    entries = (llama_cpp.llama_model_imatrix_data * (len(used) + 1))()
    for place, (name, values) in enumerate(used.items()):
        entries[place].name = name.encode()
        entries[place].data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        entries[place].size = values.size
    for file in files:
        fields = GGUFReader(file.path).fields
        assert fields["quantize.imatrix.entries_count"].contents() == len(weights)
        theirs = tmp_path / "theirs.gguf"
        quantise(plain.path, theirs, int(fields["general.file_type"].contents()), entries)
        assert tensors(file.path) == tensors(theirs), file.type
    unweighted = convert(wide, tmp_path / "other", outtypes=["q4_k_m"], name="m").files[0]
    assert unweighted.sha256 != files[0].sha256


def test_an_importance_matrix_of_another_model_is_refused(wide: Path, tmp_path: Path) -> None:
    path = tmp_path / "imatrix.gguf"
    write_imatrix(path, {"blk.0.attn_q.weight": np.ones(64, np.float32)}, "gguf")
    with pytest.raises(ModelInvalid, match="64 columns"):
        convert(wide, tmp_path / "out", outtypes=["q4_k_m"], imatrix=path)
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize("content", [b"", b"GGUF", b"\x01\0\0\0\xff\xff\xff\x7f", b"x" * 100])
def test_a_file_that_is_no_importance_matrix_is_refused(
    bpe_model: Path, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "imatrix"
    path.write_bytes(content)
    with pytest.raises(ModelInvalid, match="importance matrix"):
        convert(bpe_model, tmp_path / "out", imatrix=path)


@pytest.mark.parametrize("threads", [1, 3])
def test_the_number_of_threads_does_not_change_the_bytes(
    wide: Path, tmp_path: Path, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llava_convert.pipeline.CHUNK_VALUES", 4096)
    small = convert(wide, tmp_path / "a", outtypes=["q4_k_m", "q6_k"], threads=threads, name="m")
    monkeypatch.undo()
    large = convert(wide, tmp_path / "b", outtypes=["q4_k_m", "q6_k"], threads=1, name="m")
    assert [file.sha256 for file in small.files] == [file.sha256 for file in large.files]


def test_the_files_load_and_compute(wide: Path, tmp_path: Path, llama: Callable[..., Any]) -> None:
    files = convert(wide, tmp_path, outtypes=TYPES, name="m").files[:-1]
    models = {file.type: llama(file.path) for file in files}
    ids = models["F32"].ids("USER: what is unusual here?", add_special=True)
    exact = models["F32"].logits(ids)
    spread = exact.std()
    limits = {"F16": 0.01, "BF16": 0.05, "Q8_0": 0.05, "Q6_K": 0.1, "Q5_K_M": 0.2, "Q5_K_S": 0.2,
              "Q4_K_M": 0.3, "Q4_K_S": 0.3, "Q4_0": 0.4, "Q3_K_M": 0.5, "Q2_K": 1.0}  # fmt: skip
    for kind, limit in limits.items():
        assert np.abs(models[kind].logits(ids) - exact).std() < limit * spread, kind
