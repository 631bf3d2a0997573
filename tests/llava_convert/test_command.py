"""`llava convert` as a person and a script meet it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


def llava(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "llava_cli", "convert", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=290)


def test_json_tells_files_and_tensors(bpe_model: Path, tmp_path: Path) -> None:
    done = llava(bpe_model, "-o", tmp_path, "--outtype", "q8_0,f16", "--name", "m", "--json",
                 "--no-card")  # fmt: skip
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    found = {
        (file["role"], file["type"], Path(file["path"]).name, len(file["sha256"]))
        for file in document["files"]
    }
    assert found == {
        ("text", "Q8_0", "m-Q8_0.gguf", 64),
        ("text", "F16", "m-F16.gguf", 64),
        ("mmproj", "F16", "mmproj-m-F16.gguf", 64),
    }
    sizes = {file["path"]: file["bytes"] for file in document["files"]}
    assert sizes == {str(path): path.stat().st_size for path in tmp_path.iterdir()}
    assert document["tensors"] == {"mapped": 62, "ignored": 18}


def test_outtype_may_be_repeated_and_the_mmproj_has_its_own(
    bpe_model: Path, tmp_path: Path
) -> None:
    done = llava(bpe_model, "-o", tmp_path, "--outtype", "f32", "--outtype", "BF16",
                 "--mmproj-outtype", "q8_0", "--name", "m", "--no-card")  # fmt: skip
    assert done.returncode == 0, done.stderr
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["m-BF16.gguf", "m-F32.gguf", "mmproj-m-Q8_0.gguf"]
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [row[:2] for row in rows] == [["text", "F32"], ["text", "BF16"], ["mmproj", "Q8_0"]]
    assert "62 tensors converted, 18 left out" in done.stderr


def test_a_dry_run_writes_nothing(bpe_model: Path, tmp_path: Path) -> None:
    done = llava(bpe_model, "-o", tmp_path / "out", "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["dry_run"] and [file["sha256"] for file in document["files"]] == [None, None]
    assert all(file["bytes"] > 100_000 for file in document["files"])
    assert not (tmp_path / "out").exists()
    tensors = {entry["name"]: entry for entry in document["files"][0]["tensors"]}
    assert tensors["token_embd.weight"]["type"] == "F16"
    assert tensors["output_norm.weight"]["shape"] == [64]
    assert document["memory_bytes"] > 100_000_000


def test_a_dry_run_shows_every_tensor_with_its_types(bpe_model: Path, tmp_path: Path) -> None:
    done = llava(bpe_model, "-o", tmp_path / "out", "--dry-run", "--quant", "Q4_K_M,f32")
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines()}
    assert rows["blk.1.ffn_down.weight"] == ["64", "x", "160", "Q8_0,", "F32"]
    assert rows["blk.0.attn_q.weight"] == ["64", "x", "64", "Q5_0,", "F32"]
    assert "GB of memory" in done.stderr


def test_check_compares_every_file_with_its_source(bpe_model: Path, tmp_path: Path) -> None:
    done = llava(bpe_model, "-o", tmp_path, "--quant", "f32,q8_0", "--mmproj-outtype", "f32",
                 "--check", "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    first, second = document["check"]["files"]
    assert first["type"] == "F32" and first["verdict"] == "equal"
    assert first["same_ids"] == first["same_answers"] == first["prompts"] == 4
    assert first["max_logit_difference"] < 5e-3
    assert second["type"] == "Q8_0" and second["verdict"] == "close"
    assert 1e-4 < second["max_logit_difference"] < 1
    assert document["check"]["verdict"] == "close"
    names = {path.name for path in tmp_path.iterdir()}
    assert {"README.md", "Modelfile"} < names and not any(name.startswith(".") for name in names)
    assert first["path"].rpartition("/")[2] in (tmp_path / "README.md").read_text()


def test_to_hf_writes_a_folder_for_transformers(bpe_model: Path, tmp_path: Path) -> None:
    done = llava(bpe_model, "-o", tmp_path / "out", "--to", "hf", "--outtype", "bf16", "--json")
    assert done.returncode == 0, done.stderr
    (file,) = json.loads(done.stdout)["files"]
    assert file["role"] == "weights" and file["type"] == "BF16"
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} < names


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["nowhere", "-o", "out"], 3, "nowhere does not exist"),
        ([".", "-o", "out"], 3, "config.json"),
        ([".", "-o", "out", "--outtype", "q3"], 2, "q3"),
        ([".", "-o", "out", "--to", "hf", "--check"], 2, "--check"),
        ([".", "-o", "out", "--push-to-hub", "me"], 2, "'me'"),
        ([".", "-o", "out", "--push-to-hub", "me/it", "--offline"], 2, "network"),
        ([".", "-o", "out", "--base", "nobody/nothing", "--offline"], 3, "nobody/nothing"),
        ([".", "-o", "out", "--mmproj-outtype", "q4_0"], 2, "q4_0"),
        ([".", "-o", "out", "--to", "onnx"], 2, "onnx"),
        (["."], 2, "-o"),
    ],
)
def test_failures_are_two_lines_and_the_promised_code(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    word: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    done = llava(*arguments)
    assert done.returncode == code
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 2 and lines[0].startswith("error:") and lines[1].startswith("hint:")
    assert word in lines[0]
    assert not list(tmp_path.iterdir())


def test_failures_are_json_where_json_is_asked_for(tmp_path: Path) -> None:
    done = llava(tmp_path / "nowhere", "-o", tmp_path / "out", "--json")
    assert done.returncode == 3
    error = json.loads(done.stderr)["error"]
    assert error["type"] == "ModelNotFound" and "nowhere" in error["message"] and error["hint"]


def test_the_command_knows_every_type_that_the_converter_has() -> None:
    from llava_cli.cli import convert as command
    from llava_convert import mixtures

    assert tuple(mixtures.OUTTYPES) == command.OUTTYPES
    assert mixtures.MMPROJ_OUTTYPES == command.MMPROJ_OUTTYPES
