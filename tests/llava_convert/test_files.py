"""Damaged sources give one clear line; a result is whole or absent, whatever ends the run."""

from __future__ import annotations

import errno
import json
import os
import pickle
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from llava_cli.engines.layouts.shards import open_tensors, read_header
from llava_cli.errors import LlavaError, ModelInvalid, ModelNotFound, UsageError
from llava_convert import convert, gguf_file

WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


@pytest.mark.parametrize("keep", [0, 4, 40, 0.5, 0.999])
def test_a_truncated_checkpoint_is_an_error(source: Path, tmp_path: Path, keep: float) -> None:
    data = (source / WEIGHTS).read_bytes()
    (source / WEIGHTS).write_bytes(data[: int(keep if keep >= 1 or not keep else keep * len(data))])
    with pytest.raises(ModelInvalid, match=r"cut off|safetensors") as caught:
        convert(source, tmp_path / "out")
    assert caught.value.hint
    assert names_in(tmp_path / "out") == []


def header_of(tensors: dict[str, Any]) -> bytes:
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a checkpoint",
        struct.pack("<Q", 1 << 60) + b"{}",
        struct.pack("<Q", 4) + b"nope",
        header_of({"a": 3}) + bytes(64),
        header_of({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 12]}}) + bytes(64),
        header_of({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]}}) + bytes(64),
        header_of({"a": {"dtype": "X9", "shape": [4], "data_offsets": [0, 16]}}) + bytes(64),
        header_of({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}) + bytes(8),
    ],
)
def test_a_damaged_header_is_an_error(tmp_path: Path, data: bytes) -> None:
    (tmp_path / WEIGHTS).write_bytes(data)
    with pytest.raises(ModelInvalid, match=WEIGHTS):
        open_tensors(tmp_path)


def write_shard(path: Path, *names: str) -> None:
    entries = {
        name: {"dtype": "F32", "shape": [2], "data_offsets": [8 * i, 8 * i + 8]}
        for i, name in enumerate(names)
    }
    path.write_bytes(header_of(entries) + bytes(8 * len(names)))


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write_shard(tmp_path / "one.safetensors", "a")
    places = {"a": "one.safetensors", "b": "two.safetensors"}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": places}))
    with pytest.raises(ModelInvalid, match=r"two\.safetensors is missing"):
        open_tensors(tmp_path)


def test_an_index_that_names_an_absent_tensor_is_an_error(tmp_path: Path) -> None:
    write_shard(tmp_path / "one.safetensors", "a")
    places = {"a": "one.safetensors", "b": "one.safetensors"}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": places}))
    with pytest.raises(ModelInvalid, match=r"b is in one\.safetensors, but it is not"):
        open_tensors(tmp_path)


def test_a_tensor_in_two_shards_is_an_error(tmp_path: Path) -> None:
    write_shard(tmp_path / "one.safetensors", "a")
    write_shard(tmp_path / "two.safetensors", "a", "b")
    places = {"a": "one.safetensors", "b": "two.safetensors"}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": places}))
    with pytest.raises(ModelInvalid, match="tensor a is in both"):
        open_tensors(tmp_path)


def test_an_index_cannot_name_files_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    write_shard(tmp_path / "secret.safetensors", "a")
    places = {"a": "../secret.safetensors"}
    (tmp_path / "model" / INDEX).write_text(json.dumps({"weight_map": places}))
    with pytest.raises(ModelInvalid, match="outside"):
        open_tensors(tmp_path / "model")


class Touch:
    """Something that writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.path}'",)


@pytest.mark.parametrize("form", ["plain pickle", "torch file", "in a tensor's place", "shard"])
def test_code_in_a_pickle_is_never_run(source: Path, tmp_path: Path, form: str) -> None:
    torch = pytest.importorskip("torch")
    (source / WEIGHTS).unlink()
    name = "pytorch_model-00001-of-00001.bin" if form == "shard" else "pytorch_model.bin"
    trap = Touch(tmp_path / "pwned")
    if form == "plain pickle":
        (source / name).write_bytes(pickle.dumps(trap))
    else:
        torch.save({"a": trap} if form != "torch file" else trap, source / name)
    if form == "shard":
        index = {"weight_map": {"a": name}}
        (source / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelInvalid, match=r"foreign code|no torch file") as caught:
        convert(source, tmp_path / "out")
    assert caught.value.hint
    assert not (tmp_path / "pwned").exists()
    assert names_in(tmp_path / "out") == []


@pytest.mark.parametrize("content", ["truncated", "a list", "no tensors"])
def test_a_torch_file_that_is_no_checkpoint_is_an_error(
    source: Path, tmp_path: Path, content: str
) -> None:
    torch = pytest.importorskip("torch")
    (source / WEIGHTS).unlink()
    path = source / "pytorch_model.bin"
    torch.save([1, 2] if content == "a list" else {"a": 3}, path)
    if content == "truncated":
        torch.save({"a": torch.zeros(1000)}, path)
        path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(ModelInvalid, match=r"pytorch_model\.bin"):
        convert(source, tmp_path / "out")


def test_a_tensor_of_a_packed_type_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / WEIGHTS
    entry = {"dtype": "U8", "shape": [8, 8], "data_offsets": [0, 64]}
    path.write_bytes(header_of({"packed.weight": entry}) + bytes(64))
    with pytest.raises(ModelInvalid, match=r"packed\.weight"):
        read_header(path)["packed.weight"].array()


@pytest.mark.parametrize("kind", ["nothing", "empty folder", "file", "gguf", "adapter"])
def test_a_source_that_is_no_model_is_an_error(tmp_path: Path, kind: str) -> None:
    place = tmp_path / ("a.gguf" if kind == "gguf" else "a")
    if kind in ("file", "gguf"):
        place.write_bytes(b"GGUF")
    elif kind != "nothing":
        place.mkdir()
    if kind == "adapter":
        (place / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelNotFound if kind == "nothing" else ModelInvalid) as caught:
        convert(place, tmp_path / "out")
    assert caught.value.hint
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"]
)
def test_a_damaged_settings_file_is_an_error_that_names_it(
    source: Path, tmp_path: Path, name: str
) -> None:
    (source / name).write_text('{"a": ')
    with pytest.raises(ModelInvalid, match=name):
        convert(source, tmp_path / "out")


@pytest.mark.parametrize("name", ["tokenizer.json", "preprocessor_config.json"])
def test_a_missing_settings_file_is_an_error_that_names_it(
    source: Path, tmp_path: Path, name: str
) -> None:
    (source / name).unlink()
    with pytest.raises(ModelInvalid, match=name):
        convert(source, tmp_path / "out")


def test_a_dry_run_writes_nothing_and_knows_the_sizes(bpe_model: Path, tmp_path: Path) -> None:
    planned = convert(bpe_model, tmp_path / "out", outtypes=["q8_0", "f16"], dry_run=True)
    assert names_in(tmp_path) == []
    real = convert(bpe_model, tmp_path / "out", outtypes=["q8_0", "f16"])
    assert [f.bytes for f in planned.files] == [f.path.stat().st_size for f in real.files]
    assert [f.sha256 for f in planned.files] == [None, None, None]


def test_the_digest_and_size_are_those_of_the_file(bpe_model: Path, tmp_path: Path) -> None:
    import hashlib

    for file in convert(bpe_model, tmp_path).files:
        data = file.path.read_bytes()
        assert file.sha256 == hashlib.sha256(data).hexdigest()
        assert file.bytes == len(data)


def test_progress_reaches_the_total(bpe_model: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    result = convert(bpe_model, tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1] == (sum(f.bytes for f in result.files),) * 2


def test_a_second_conversion_replaces_the_first(bpe_model: Path, tmp_path: Path) -> None:
    first = convert(bpe_model, tmp_path, name="m")
    first.files[0].path.write_bytes(b"old")
    second = convert(bpe_model, tmp_path, name="m")
    assert second.files[0].path.stat().st_size == second.files[0].bytes
    assert len(names_in(tmp_path)) == 2


def test_a_file_in_place_of_the_folder_is_refused(bpe_model: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        convert(bpe_model, tmp_path / "out")


def test_too_small_a_disk_is_an_error_before_anything_is_written(
    bpe_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(LlavaError, match=r"GB free, the files need") as caught:
        convert(bpe_model, tmp_path / "out")
    assert caught.value.exit_code == 1
    assert names_in(tmp_path / "out") == []


def test_a_disk_that_fills_up_leaves_the_old_files_and_nothing_half(
    bpe_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    before = {f.path: f.sha256 for f in convert(bpe_model, out, name="m").files}
    written = 0

    def fills_up(sink: Any, data: bytes) -> None:
        nonlocal written
        written += len(data)
        if written > 400_000:
            with gguf_file.disk_errors(sink.path):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(sink, data)

    real = gguf_file.Sink._write
    monkeypatch.setattr(gguf_file.Sink, "_write", fills_up)
    with pytest.raises(LlavaError, match="No space left on device") as caught:
        convert(bpe_model, out, name="m", outtypes=["f32"])
    assert "m-F32.gguf" in caught.value.message or "m-F16.gguf" in caught.value.message
    assert names_in(out) == sorted(path.name for path in before)
    monkeypatch.undo()
    assert [f.sha256 for f in convert(bpe_model, out, name="m").files] == list(before.values())


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_an_error(bpe_model: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir(mode=0o500)
    with pytest.raises(LlavaError, match="Permission denied"):
        convert(bpe_model, tmp_path / "out")


def test_ctrl_c_leaves_nothing(bpe_model: Path, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(bpe_model, tmp_path / "out", progress=interrupt)
    assert names_in(tmp_path / "out") == []


def test_a_run_that_is_still_writing_keeps_its_file(bpe_model: Path, tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        theirs = tmp_path / f".m-F16.gguf.{other.pid}.partial"
        theirs.write_bytes(b"in the making")
        convert(bpe_model, tmp_path, name="m")
        assert theirs.read_bytes() == b"in the making"
    finally:
        other.kill()
        other.wait()
    time.sleep(0)
    convert(bpe_model, tmp_path, name="m")
    assert not theirs.exists()
