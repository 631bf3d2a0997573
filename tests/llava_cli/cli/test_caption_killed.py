"""Runs that are killed, that are stopped, and that meet: real processes, real signals."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image as PIL

from tests.llava_cli.cli.conftest import FAKE, InProcess, process_environment

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
PICTURES, KILLS = 60, 6


def start(*arguments: str | Path, script: list[str | float]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, str(FAKE), "caption", *map(str, arguments)],
        env=process_environment(script),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(PICTURES):
        PIL.new("RGB", (20, 20), "red").save(folder / f"{number:03}.png")
        (folder / f"{number:03}.txt").write_text("old\n")
    return folder


def wait_for(condition: object, process: subprocess.Popen[bytes]) -> None:
    assert callable(condition)
    while not condition() and process.poll() is None:
        time.sleep(0.003)


def changed(folder: Path) -> int:
    return sum(p.stat().st_size > 4 for p in folder.glob("*.txt"))


def test_killed_again_and_again_nothing_is_lost_or_done_twice(photos: Path) -> None:
    """Append is the mode in which a caption written twice shows."""
    rng = random.Random(4)
    command = (photos, "--existing", "append", "--batch-size", "3")
    for _ in range(KILLS):
        process = start(*command, script=["PICTURE", 0.01])
        goal = min(PICTURES, changed(photos) + rng.randint(1, PICTURES // KILLS))
        wait_for(lambda goal=goal: changed(photos) >= goal, process)
        time.sleep(rng.random() * 0.02)
        process.kill()
        process.communicate()
        assert all(p.read_text() in ("old\n", f"old, {p.stem}.png\n") for p in photos.glob("*.txt"))
    process = start(*command, "--json", script=["PICTURE"])
    out, _ = process.communicate(timeout=100)
    assert process.returncode == 0
    assert {p.name: p.read_text() for p in photos.glob("*.txt")} == {
        f"{n:03}.txt": f"old, {n:03}.png\n" for n in range(PICTURES)
    }
    summary = json.loads(out)
    assert summary["written"] + summary["skipped"] == PICTURES
    assert {p.suffix for p in photos.iterdir()} == {".png", ".txt"}


def test_a_killed_run_of_one_file_keeps_its_captions(photos: Path, llava: InProcess) -> None:
    command = (photos, "--format", "jsonl", "--batch-size", "4")
    process = start(*command, "-v", script=["first"])
    journal = photos / ".captions.jsonl.llava-caption.sqlite-wal"
    wait_for(lambda: journal.exists() and journal.stat().st_size > 60_000, process)
    process.kill()
    process.communicate()
    killed_early = not (photos / "captions.jsonl").exists()
    ran = llava("caption", *command, "--json", "-q", script=["second"])
    rows = [json.loads(line) for line in (photos / "captions.jsonl").read_text().splitlines()]
    assert [row["path"] for row in rows] == [f"{n:03}.png" for n in range(PICTURES)]
    firsts = sum(row["caption"] == "first" for row in rows)
    assert firsts == ran.json["skipped"]
    assert firsts + ran.json["written"] == PICTURES
    assert firsts > 0 or not killed_early


def test_two_runs_at_once_on_one_folder_the_second_refuses(photos: Path) -> None:
    command = (photos, "--existing", "overwrite", "--batch-size", "1")
    first = start(*command, script=[0.05, "PICTURE"])
    wait_for(lambda: changed(photos) > 0, first)
    second = start(*command, script=["other"])
    _, err = second.communicate(timeout=100)
    assert second.returncode == 1
    assert b"another llava caption is at work" in err
    assert b"hint: " in err
    first.communicate(timeout=100)
    assert first.returncode == 0
    assert {p.read_text() for p in photos.glob("*.txt")} == {
        f"{n:03}.png\n" for n in range(PICTURES)
    }


def test_two_runs_that_overlap_leave_one_caption_each(photos: Path) -> None:
    """One names the folder above: other journals, the same pictures."""
    for path in photos.glob("*.txt"):
        path.unlink()
    runs = [
        start(photos, script=["from the one", 0.002]),
        start(photos.parent, "-r", script=["from the other", 0.002]),
    ]
    for process in runs:
        _, err = process.communicate(timeout=100)
        assert process.returncode == 0, err
    texts = [p.read_text() for p in photos.glob("*.txt")]
    assert len(texts) == PICTURES
    assert set(texts) <= {"from the one\n", "from the other\n"}
    assert {p.suffix for p in photos.iterdir()} == {".png", ".txt"}


def test_ctrl_c_says_what_was_done_and_the_same_command_goes_on(photos: Path) -> None:
    command = (photos, "--existing", "overwrite", "--batch-size", "1")
    process = start(*command, script=[0.05, "PICTURE"])
    wait_for(lambda: changed(photos) > 2, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 130
    assert b"the same command goes on" in err
    done = changed(photos)
    process = start(*command, "--json", script=["PICTURE"])
    out, _ = process.communicate(timeout=100)
    summary = json.loads(out)
    assert (summary["skipped"], summary["written"]) == (done, PICTURES - done)


def test_a_full_disk_ends_the_run_and_loses_nothing(
    photos: Path, llava: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    from llava_cli.captioning import sidecars
    from llava_cli.writing import write_bytes as real

    count = 0

    def full(path: Path, data: bytes, aside: Path) -> None:
        nonlocal count
        count += 1
        if count > 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        real(path, data, aside)

    monkeypatch.setattr(sidecars, "write_bytes", full)
    assert llava("caption", photos, "--existing", "overwrite", script=["PICTURE"]).code == 1
    monkeypatch.setattr(sidecars, "write_bytes", real)
    ran = llava("caption", photos, "--existing", "overwrite", "--json", script=["PICTURE"])
    assert (ran.code, ran.json["skipped"], ran.json["written"]) == (0, 5, PICTURES - 5)
