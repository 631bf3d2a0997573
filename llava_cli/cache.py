"""Results that are dear to compute, kept on disk between runs: bounded, private, never trusted.

An entry has a kind, a key (what it was computed from) and versions (what computed it). It is given
back only if its file is whole (SHA-256 over everything), says the very same kind and key, and comes
from the same versions: a file that is cut, changed or swapped with another is no entry. Nothing
here is needed for an answer: every failure is a note and a miss.

Writers work on a file of their own and rename it, so that any number of processes share a folder.
Not here: what is worth keeping, which the engines know; it is decided with `worth_keeping`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import secrets
import shutil
import stat
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_MAGIC = b"llava\x00c1"
_DIGEST = 32
_HEADER = struct.Struct("<I")
_MAX_HEADER = 1 << 20
_SUFFIX = ".cache"
_ASIDE = ".tmp"
_ABANDONED_S = 3600.0
"""A file aside of this age belongs to a process that was killed."""
_PIECE = 4 << 20
"""Bytes that are digested or written in one go."""
_KEEP_FREE = 1 << 30
"""Bytes of the disk that are left to others."""
_NEW = os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)


@dataclass(frozen=True)
class Costs:
    """What reading an entry back is taken to cost."""

    bytes_per_s: float = 3e8
    """A slow solid-state disk, checksum included."""
    seconds: float = 0.05
    margin: float = 2.0
    """An entry must save so many times what it costs, for it is written, too."""


@dataclass(frozen=True)
class Entry:
    """One file of the cache, as `llava cache ls` shows it."""

    path: Path
    kind: str
    bytes: int
    used: float
    """Seconds since the epoch when it was last written or read."""


@dataclass(frozen=True)
class Found:
    """What was kept."""

    meta: Mapping[str, Any]
    payload: memoryview
    """Bytes (N,), writable, in memory of its own."""


class DiskCache:
    """A folder of entries with a bound on their total size."""

    def __init__(
        self,
        folder: Path,
        limit: int,
        *,
        versions: Mapping[str, str] | None = None,
        report: Callable[[str], None] = lambda _: None,
        costs: Costs | None = None,
    ) -> None:
        """`limit` in bytes; `report` takes notes for a person; nothing is touched before use."""
        self.folder = folder
        self.limit = limit
        self._versions = dict(versions or {})
        self._report = report
        self._costs = costs or Costs()
        self._usable: bool | None = None

    def of_versions(self, versions: Mapping[str, str]) -> DiskCache:
        """The same folder, for results that these versions of libraries compute."""
        return DiskCache(
            self.folder, self.limit, versions=versions, report=self._report, costs=self._costs
        )

    def worth_keeping(self, seconds: float, size: int) -> bool:
        """Whether `size` bytes that took `seconds` to compute are cheaper to read back."""
        costs = self._costs
        reading = costs.seconds + size / costs.bytes_per_s
        return 0 < size <= self.limit // 2 and seconds > costs.margin * reading

    def get(self, kind: str, key: Mapping[str, Any]) -> Found | None:
        """The entry, if there is a whole one of these versions."""
        path = self._path(kind, key)
        try:
            if not self._ready(make=False):
                return None
            with path.open("rb") as file:
                found, problem = _read(file, kind, key, self._versions)
            if found is None:
                self._report(f"a kept result is {problem} and computed again ({path.name})")
                path.unlink(missing_ok=True)
                return None
            os.utime(path)
        except FileNotFoundError:
            return None
        except (OSError, MemoryError) as error:
            self._report(f"the cache cannot be read: {_reason(error)}")
            return None
        return found

    def has(self, kind: str, key: Mapping[str, Any]) -> bool:
        """Whether there is a file for this entry; `get` alone knows whether it is good."""
        try:
            return self._ready(make=False) and self._path(kind, key).exists()
        except OSError:
            return False

    def put(
        self,
        kind: str,
        key: Mapping[str, Any],
        meta: Mapping[str, Any],
        payload: memoryview,
        given_up: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Keep bytes (N,); False where that was not possible.

        `given_up` is asked every few megabytes whether to leave it.
        """
        draft = self.draft(kind, key, meta, payload.nbytes)
        if draft is None:
            return False
        draft.payload[:] = payload
        return draft.keep(given_up)

    def draft(
        self, kind: str, key: Mapping[str, Any], meta: Mapping[str, Any], size: int
    ) -> Draft | None:
        """An entry of `size` bytes to be filled and kept; None where that is not possible."""
        header = json.dumps(
            {"kind": kind, "key": key, "versions": self._versions, "meta": meta, "bytes": size},
            sort_keys=True,
        ).encode()
        head = _MAGIC + bytes(_DIGEST) + _HEADER.pack(len(header)) + header
        try:
            if not self._ready(make=True) or not self._make_room(len(head) + size):
                return None
            return Draft(self._path(kind, key), head, size, self._report)
        except (OSError, MemoryError) as error:
            self._report(f"the cache cannot be written: {_reason(error)}")
            return None

    def entries(self) -> list[Entry]:
        """All entries, the one used last first."""
        found = list(self._entries()) if self._ready(make=False) else []
        return sorted(found, key=lambda entry: -entry.used)

    def clear(self) -> tuple[int, int]:
        """Remove every entry; how many there were, and their bytes."""
        count = size = 0
        for entry in self.entries():
            entry.path.unlink(missing_ok=True)
            count, size = count + 1, size + entry.bytes
        if self._ready(make=False):
            for path in self.folder.glob(f"*{_ASIDE}"):
                path.unlink(missing_ok=True)
        return count, size

    def _path(self, kind: str, key: Mapping[str, Any]) -> Path:
        text = json.dumps([kind, key], sort_keys=True).encode()
        return self.folder / f"{kind}-{hashlib.sha256(text).hexdigest()[:40]}{_SUFFIX}"

    def _ready(self, *, make: bool) -> bool:
        """Whether the folder is there, ours alone; a folder of somebody else's is left alone."""
        if self._usable is not None and (self._usable or not make):
            return self._usable
        if make:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        elif not self.folder.exists():
            return False
        info = self.folder.stat()
        mine = not hasattr(os, "geteuid") or info.st_uid == os.geteuid()
        if not stat.S_ISDIR(info.st_mode) or not mine:
            self._report(f"{self.folder} is not a folder of yours, so nothing is kept there")
            self._usable = False
            return False
        if os.name == "posix" and stat.S_IMODE(info.st_mode) != 0o700:
            self.folder.chmod(0o700)
        self._usable = True
        return True

    def _entries(self) -> Iterator[Entry]:
        for path in self.folder.glob(f"*{_SUFFIX}"):
            try:
                info = path.lstat()
            except OSError:  # another process removed it
                continue
            kind = path.name.split("-")[0]
            yield Entry(path, kind, info.st_size, info.st_mtime)

    def _make_room(self, size: int) -> bool:
        """Remove what was used longest ago until `size` bytes fit; also what killed ones left."""
        if size > self.limit:
            return False
        now = time.time()
        for path in self.folder.glob(f"*{_ASIDE}"):
            try:
                if now - path.lstat().st_mtime > _ABANDONED_S:
                    path.unlink(missing_ok=True)
            except OSError:  # its owner finished it meanwhile
                continue
        entries = sorted(self._entries(), key=lambda entry: entry.used)
        total = sum(entry.bytes for entry in entries)
        for entry in entries:
            if total + size <= self.limit:
                break
            entry.path.unlink(missing_ok=True)
            total -= entry.bytes
        return shutil.disk_usage(self.folder).free >= size + _KEEP_FREE


class Draft:
    """An entry that is being made: its payload is filled, and it is kept or dropped.

    The payload is the file's own memory where the system can promise its room on the disk
    (without that, a full disk would end the process): so nothing is copied once more. Every page
    of such a copy would be new, and new pages cost several times what copying does.
    """

    def __init__(self, path: Path, head: bytes, size: int, report: Callable[[str], None]) -> None:
        self._path = path
        self._aside = path.with_name(f"{path.stem}-{secrets.token_hex(8)}{_ASIDE}")
        self._report = report
        in_file = _file_memory(self._aside, len(head) + size)
        self._written = in_file is not None
        self._whole = memoryview(in_file or mmap.mmap(-1, len(head) + size))
        self._whole[: len(head)] = head
        self.payload = self._whole[len(head) :]
        """Bytes (size,), writable."""

    def keep(self, given_up: Callable[[], bool] = lambda: False) -> bool:
        """Make it an entry; False where that was not possible or `given_up`, asked every few
        megabytes, says to leave it. Not fsynced: the checksum finds what a power cut leaves."""
        covered = len(_MAGIC) + _DIGEST
        digest = hashlib.sha256()
        try:
            for piece in _pieces(self._whole[covered:]):
                if given_up():
                    return False
                digest.update(piece)
            self._whole[len(_MAGIC) : covered] = digest.digest()
            if not self._written and not self._write(given_up):
                return False
            self._aside.replace(self._path)
            return True
        except (OSError, MemoryError) as error:
            self._report(f"the cache cannot be written: {_reason(error)}")
            return False
        finally:
            self.drop()

    def drop(self) -> None:
        """Leave nothing of what is not kept."""
        with contextlib.suppress(OSError):
            self._aside.unlink(missing_ok=True)

    def _write(self, given_up: Callable[[], bool]) -> bool:
        with open(os.open(self._aside, _NEW | os.O_WRONLY, 0o600), "wb") as file:
            for piece in _pieces(self._whole):
                if given_up():
                    return False
                file.write(piece)
        return True


def _pieces(memory: memoryview) -> Iterator[memoryview]:
    for start in range(0, len(memory), _PIECE):
        yield memory[start : start + _PIECE]


def _file_memory(path: Path, size: int) -> mmap.mmap | None:
    """The memory of a new file of `size` bytes; None, and no file, where it cannot be had."""
    if not hasattr(os, "posix_fallocate"):
        return None
    descriptor = os.open(path, _NEW | os.O_RDWR, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, size)
        return mmap.mmap(descriptor, size)
    except OSError:  # no room, or a file system that cannot: writing tells which
        path.unlink(missing_ok=True)
        return None
    finally:
        os.close(descriptor)


def _read(
    file: Any, kind: str, key: Mapping[str, Any], versions: Mapping[str, str]
) -> tuple[Found | None, str]:
    """The entry in an open file, or what is wrong with it."""
    size = os.fstat(file.fileno()).st_size
    start = file.read(len(_MAGIC) + _DIGEST + _HEADER.size)
    if len(start) < len(_MAGIC) + _DIGEST + _HEADER.size or not start.startswith(_MAGIC):
        return None, "damaged"
    wanted = start[len(_MAGIC) : len(_MAGIC) + _DIGEST]
    length = start[len(_MAGIC) + _DIGEST :]
    (count,) = _HEADER.unpack(length)
    if count > min(_MAX_HEADER, size):
        return None, "damaged"
    text = file.read(count)
    try:
        header = json.loads(text)
        body = int(header["bytes"])
        known = (header["kind"], header["key"], header["versions"])
        meta = dict(header["meta"])
    except (ValueError, KeyError, TypeError):
        return None, "damaged"
    if size != len(start) + count + body:
        return None, "damaged"
    if known[:2] != (kind, json.loads(json.dumps(key))):
        return None, "another's"
    if known[2] != dict(versions):
        return None, "of another version"
    payload = memoryview(bytearray(body))
    if file.readinto(payload) != body:
        return None, "damaged"
    digest = hashlib.sha256(length + text)
    digest.update(payload)
    if digest.digest() != wanted:
        return None, "damaged"
    return Found(meta, payload), ""


def file_identity(path: Path) -> dict[str, Any]:
    """What tells one large file from another without reading it all.

    Size, time of change, and a digest of its beginning and of samples spread over the rest.
    """
    info = path.stat()
    digest = hashlib.sha256()
    with path.open("rb") as file:
        digest.update(file.read(1 << 20))
        for sample in range(64):
            file.seek(info.st_size * sample // 64)
            digest.update(file.read(1 << 16))
    return {"bytes": info.st_size, "changed": info.st_mtime_ns, "sample": digest.hexdigest()}


def _reason(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error or type(error).__name__)
