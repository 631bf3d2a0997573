"""The disk cache: bounded, private, and whatever happens to its files never believed wrongly."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llava_cli.cache import Costs, DiskCache, file_identity

KEY: dict[str, object] = {"model": "a", "cells": [1, 2]}


def cache(folder: Path, limit: int = 1 << 20, notes: list[str] | None = None) -> DiskCache:
    report = notes.append if notes is not None else lambda _: None
    return DiskCache(folder / "cache", limit, versions={"library": "1"}, report=report)


def kept(store: DiskCache, key: dict[str, object], payload: bytes, kind: str = "state") -> Path:
    before = {entry.path for entry in store.entries()}
    assert store.put(kind, key, {"n": 3}, memoryview(payload))
    new = {entry.path for entry in store.entries()} - before
    return new.pop() if new else next(iter(before))


def payload(store: DiskCache, key: dict[str, object], kind: str = "state") -> bytes | None:
    found = store.get(kind, key)
    return None if found is None else bytes(found.payload)


def test_what_was_put_is_found_again_by_another_process_with_the_same_key_only(
    tmp_path: Path,
) -> None:
    kept(cache(tmp_path), KEY, b"payload")
    again = cache(tmp_path)
    found = again.get("state", dict(reversed(list(KEY.items()))))
    assert found is not None and bytes(found.payload) == b"payload" and found.meta == {"n": 3}
    assert again.get("picture", KEY) is None
    assert again.get("state", {**KEY, "model": "b"}) is None


def test_nothing_is_touched_before_something_is_kept(tmp_path: Path) -> None:
    store = cache(tmp_path)
    assert store.get("state", KEY) is None
    assert not store.has("state", KEY) and store.entries() == [] and store.clear() == (0, 0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_nobody_else_can_read_it(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir(mode=0o755)
    path = kept(cache(tmp_path), KEY, b"payload")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_file_cut_at_any_byte_is_no_entry(tmp_path: Path) -> None:
    notes: list[str] = []
    store = cache(tmp_path, notes=notes)
    path = kept(store, KEY, b"payload")
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert store.get("state", KEY) is None, length
        assert not path.exists()
    assert len(notes) == len(whole) and "damaged" in notes[0]
    path.write_bytes(whole + b"x")
    assert store.get("state", KEY) is None
    path.write_bytes(whole)
    assert payload(store, KEY) == b"payload"


def test_a_file_with_any_byte_changed_is_no_entry(tmp_path: Path) -> None:
    store = cache(tmp_path)
    path = kept(store, KEY, b"payload")
    whole = path.read_bytes()
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 0x41
        path.write_bytes(changed)
        assert store.get("state", KEY) is None, place


def test_swapped_files_are_no_entries(tmp_path: Path) -> None:
    notes: list[str] = []
    store = cache(tmp_path, notes=notes)
    other = {**KEY, "cells": [1, 3]}
    one, two = kept(store, KEY, b"one"), kept(store, other, b"two")
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    assert payload(store, KEY) is None and payload(store, other) is None
    assert all("another's" in note for note in notes) and len(notes) == 2


def test_another_versions_entry_is_noted_and_replaced(tmp_path: Path) -> None:
    notes: list[str] = []
    store = cache(tmp_path, notes=notes)
    kept(store, KEY, b"old")
    newer = store.of_versions({"library": "2"})
    assert newer.get("state", KEY) is None
    assert "another version" in notes[0]
    kept(newer, KEY, b"new")
    assert payload(newer, KEY) == b"new"
    assert len(store.entries()) == 1


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    store = cache(tmp_path, limit=5_000)
    paths = []
    for number in range(4):
        paths.append(kept(store, {"n": number}, bytes(1_000)))
        os.utime(paths[-1], (number, number))
    assert payload(store, {"n": 0}) is not None  # used again: now the youngest
    kept(store, {"n": 4}, bytes(1_000))
    assert [path.exists() for path in paths] == [True, False, True, True]
    assert sum(entry.bytes for entry in store.entries()) <= 5_000
    assert not store.put("state", {"n": 5}, {}, memoryview(bytes(5_000)))
    assert len(store.entries()) == 4


def test_only_what_is_dear_is_worth_keeping(tmp_path: Path) -> None:
    store = DiskCache(tmp_path, 1 << 30, costs=Costs(bytes_per_s=1e6, seconds=0.1, margin=2.0))
    assert store.worth_keeping(2.3, 1_000_000)
    assert not store.worth_keeping(2.1, 1_000_000)
    assert not store.worth_keeping(0.1, 10)
    assert not store.worth_keeping(1e9, 1 << 30)  # would push out everything else


def test_a_disk_that_refuses_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    store = cache(tmp_path, notes=notes)

    def refuse(*_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        assert not store.put("state", KEY, {}, memoryview(b"x"))
    assert "No space left" in notes[0]
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_draft_is_the_files_own_memory_or_written_where_its_room_is_not_promised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    store = cache(tmp_path, notes=notes)
    in_file = store.draft("state", KEY, {}, 7)
    assert in_file is not None
    in_file.payload[:] = b"in file"
    aside = [path.read_bytes()[-7:] for path in store.folder.iterdir()]
    assert aside == ([b"in file"] if hasattr(os, "posix_fallocate") else [])
    assert in_file.keep() and payload(store, KEY) == b"in file"

    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)
    written = store.draft("state", KEY, {}, 7)
    assert written is not None
    written.payload[:] = b"written"
    assert written.keep() and payload(store, KEY) == b"written"
    assert notes == [] and len(list(store.folder.iterdir())) == 1


def test_a_draft_that_is_dropped_leaves_nothing(tmp_path: Path) -> None:
    store = cache(tmp_path)
    draft = store.draft("state", KEY, {}, 100)
    assert draft is not None
    draft.drop()
    assert list(store.folder.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="owners are POSIX's")
def test_somebody_elses_folder_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    kept(cache(tmp_path), KEY, b"theirs")
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    store = cache(tmp_path, notes=notes)
    assert store.get("state", KEY) is None
    assert not store.put("state", KEY, {}, memoryview(b"mine"))
    assert "not a folder of yours" in notes[0]


def test_clearing_removes_everything_of_ours(tmp_path: Path) -> None:
    store = cache(tmp_path)
    kept(store, KEY, b"payload")
    (tmp_path / "cache" / "state-x.tmp").write_bytes(b"half")
    count, size = store.clear()
    assert count == 1 and size > 7
    assert list((tmp_path / "cache").iterdir()) == []


WRITER = """
import random, sys
from pathlib import Path
from llava_cli.cache import DiskCache
store = DiskCache(Path(sys.argv[1]), 200_000, versions={"library": "1"}, report=print)
rng = random.Random(int(sys.argv[2]))
print("ready", flush=True)
for _ in range(int(sys.argv[3])):
    number = rng.randrange(12)
    key = {"n": number}
    found = store.get("state", key)
    if found is not None and bytes(found.payload) != bytes([number]) * (number + 1) * 4000:
        print("WRONG", number)
    store.put("state", key, {}, memoryview(bytes([number]) * (number + 1) * 4000))
"""


def writer(folder: Path, seed: int, rounds: int) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder / "cache"), str(seed), str(rounds)],
        stdout=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip


def test_three_processes_at_once_never_read_a_wrong_entry(tmp_path: Path) -> None:
    processes = [writer(tmp_path, seed, 150) for seed in range(3)]
    for process in processes:
        out, _ = process.communicate(timeout=100)
        assert (process.returncode, out) == (0, "ready\n")
    store = cache(tmp_path, 200_000)
    assert 0 < sum(entry.bytes for entry in store.entries()) <= 200_000 + 100_000


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_a_killed_writer_leaves_nothing_that_is_believed(tmp_path: Path) -> None:
    for seed in range(4):
        process = writer(tmp_path, seed, 100_000)
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        time.sleep(0.05 * (seed + 1))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    notes: list[str] = []
    store = cache(tmp_path, 200_000, notes)
    for number in range(12):
        found = payload(store, {"n": number})
        assert found in (None, bytes([number]) * (number + 1) * 4000)
    assert notes == []
    for path in (tmp_path / "cache").glob("*.tmp"):
        os.utime(path, (0, 0))
    kept(store, {"n": 99}, b"x")
    assert list((tmp_path / "cache").glob("*.tmp")) == []


def test_a_writer_that_gives_up_leaves_nothing(tmp_path: Path) -> None:
    store = cache(tmp_path, limit=1 << 30)
    asked: list[int] = []

    def given_up() -> bool:
        asked.append(len(list(store.folder.iterdir())))
        return len(asked) == 3

    assert not store.put("state", KEY, {}, memoryview(bytes(20 << 20)), given_up)
    assert asked == [1, 1, 1]
    assert list(store.folder.iterdir()) == []


def test_a_large_file_is_known_by_size_time_and_samples(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(bytes(3 << 20))
    before = file_identity(path)
    os.utime(path, ns=(1, 1))
    assert file_identity(path) != before
    data = bytearray(3 << 20)
    data[(3 << 20) - 30_000] = 1
    path.write_bytes(data)
    os.utime(path, ns=(before["changed"], before["changed"]))
    assert file_identity(path) != before
