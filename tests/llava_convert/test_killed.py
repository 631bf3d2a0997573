"""Whatever ends a run, kills and full disks included, what has its final name is whole."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from llava_cli.engines.layouts.sources import open_source
from llava_cli.errors import LlavaError
from llava_convert import convert
from llava_convert.cards import write_beside
from llava_convert.hf_target import convert_to_hf
from tests.llava_convert.commands import llava

pytestmark = pytest.mark.skipif(os.name == "nt", reason="neither SIGKILL nor mount")


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def digests(folder: Path) -> dict[str, str]:
    """Of everything that has a final name."""
    files = (path for path in folder.glob("*") if not path.name.startswith("."))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


KILLED = """
import os, sys, signal
from pathlib import Path
from llava_convert import convert, gguf_file
step, count = int(sys.argv[3]), 0
def dying(real):
    def call(*args):
        global count
        count += 1
        if count == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args)
    return call
for name in ("append", "flush", "commit"):
    setattr(gguf_file.Sink, name, dying(getattr(gguf_file.Sink, name)))
convert(Path(sys.argv[1]), Path(sys.argv[2]), name="m", progress=None)
"""


@pytest.mark.parametrize("step", [1, 12, 23, 34, 45, 56, 61, 62, 63, 64])
def test_a_killed_run_leaves_no_half_file_and_the_next_run_cleans_up(
    bpe_model: Path, tmp_path: Path, step: int
) -> None:
    out = tmp_path / "out"
    reference = {f.path.name: f.sha256 for f in convert(bpe_model, tmp_path / "b", name="m").files}
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(bpe_model), str(out), str(step)], timeout=100
    )
    assert done.returncode == -signal.SIGKILL
    assert digests(out).items() <= reference.items()
    assert any(name.startswith(".") for name in names_in(out))
    again = convert(bpe_model, out, name="m")
    assert {f.path.name: f.sha256 for f in again.files} == reference
    assert names_in(out) == sorted(reference)


AT_THE_END = """
import os, signal, sys
from llava_cli.cli.app import main
step, count = int(sys.argv[1]), 0
def dying(real):
    def call(*args, **kwargs):
        global count
        count += 1
        if count == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
    return call
os.fsync, os.replace = dying(os.fsync), dying(os.replace)
sys.exit(main(sys.argv[2:]))
"""
"""Dies before one of the calls that make bytes and names last."""


@pytest.mark.parametrize("step", range(1, 11))
def test_the_command_killed_at_its_end_leaves_whole_files_and_starts_again(
    bpe_model: Path, tmp_path: Path, step: int
) -> None:
    """Language model, tower, card and Modelfile: four files, synced, named, their folder synced."""
    command = ["convert", str(bpe_model), "--name", "m", "--quiet", "-o"]
    llava(*command, tmp_path / "reference")
    reference = digests(tmp_path / "reference")
    assert sorted(reference) == ["Modelfile", "README.md", "m-F16.gguf", "mmproj-m-F16.gguf"]
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-c", AT_THE_END, str(step), *command, str(out)], timeout=280
    )
    assert done.returncode == -signal.SIGKILL
    assert digests(out).items() <= reference.items()
    llava(*command, out)
    assert digests(out) == reference and names_in(out) == sorted(reference)


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_folder_for_transformers_is_whole_or_absent(
    bpe_model: Path, tmp_path: Path, step: int
) -> None:
    out = tmp_path / "folder" / "out"
    command = ["convert", str(bpe_model), "--to", "hf", "--quiet", "-o", str(out)]
    done = subprocess.run([sys.executable, "-c", AT_THE_END, str(step), *command], timeout=280)
    assert done.returncode == -signal.SIGKILL
    assert not out.exists()
    llava(*command)
    assert names_in(out.parent) == ["out"]
    weights = load_file(out / "model.safetensors")
    assert len(weights) == len(load_file(bpe_model / "model.safetensors"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 3 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a small disk can be mounted by root only, and not everywhere")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def filling(folder: Path, *, at_the_end: bool = False) -> Callable[[int, int], None]:
    """Another program that fills the disk while files are being written."""

    def progress(done: int, total: int) -> None:
        filler = folder / "filler"
        if not filler.exists() and (done == total or not at_the_end):
            with pytest.raises(OSError, match="No space left"):
                filler.write_bytes(bytes(4 << 20))

    return progress


def test_a_disk_that_fills_up_midway(bpe_model: Path, small_disk: Path) -> None:
    with pytest.raises(LlavaError, match="No space left on device") as caught:
        convert(bpe_model, small_disk, outtypes=["f32"], progress=filling(small_disk))
    assert caught.value.exit_code == 1 and caught.value.hint
    assert names_in(small_disk) == ["filler"]


def test_a_disk_that_fills_up_before_the_card_is_written(
    bpe_model: Path, tmp_path: Path, small_disk: Path
) -> None:
    reference = {f.path.name: f.sha256 for f in convert(bpe_model, tmp_path / "b", name="m").files}
    full = filling(small_disk, at_the_end=True)
    files = convert(bpe_model, small_disk, name="m", progress=full).files
    with pytest.raises(LlavaError, match=r"README\.md cannot be written: No space left") as caught:
        write_beside(small_disk, "m", files, {})
    assert caught.value.exit_code == 1 and caught.value.hint
    (small_disk / "filler").unlink()
    assert digests(small_disk) == reference and names_in(small_disk) == sorted(reference)


def test_a_disk_that_fills_up_under_a_folder_for_transformers(
    bpe_model: Path, small_disk: Path
) -> None:
    source = open_source(bpe_model)
    with pytest.raises(LlavaError, match="No space left on device"):
        convert_to_hf(source, small_disk / "out", progress=filling(small_disk))
    assert names_in(small_disk) == ["filler"]
