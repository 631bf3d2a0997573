"""Pictures with their captions as webdataset shards: tars of NAME.jpg, NAME.txt, NAME.json.

Form: the webdataset README. Shards are written at the end of a run, from the journal.
"""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from llava_cli.captioning.journal import Entry
from llava_cli.captioning.sources import Item, Member
from llava_cli.errors import DataError, LlavaError
from llava_cli.writing import replacing

SHARD_SAMPLES = 1000
SHARD_BYTES = 1_000_000_000
_SHARD = re.compile(r"captions-\d{6}\.tar")


@dataclass(frozen=True)
class Shards:
    """A folder of captions-000000.tar, captions-000001.tar, …"""

    path: Path
    """The folder, absolute."""
    format: str = "webdataset"
    one_line: bool = False

    @classmethod
    def of(cls, root: Path, out: Path | None) -> Shards:
        """In the pictures' folder, or where -o says."""
        return cls(root / "webdataset" if out is None else out.absolute())

    @property
    def journal(self) -> Path:
        """Where the journal lies: with the shards."""
        return self.path / ".llava-caption.sqlite"

    def name(self, item: Item) -> str:
        """The picture's place, for the journal: where its bytes are found again."""
        if item.member is None:
            return os.path.abspath(item.path)
        where = f"{item.member.offset}:{item.member.size}"
        return "\0".join((os.path.abspath(item.path), where, item.member.name))

    def place(self, item: Item, data: bytes) -> None:
        """The pictures are copied when the shards are written."""

    def read(self) -> Iterator[Entry]:
        """What earlier shards hold, by what their .json says of the picture."""
        for shard in self._existing():
            try:
                with tarfile.open(shard, "r:") as archive:
                    for member in archive:
                        archive.members = []  # type: ignore[attr-defined]
                        if member.name.endswith(".json") and member.isreg():
                            stream = archive.extractfile(member)
                            row = json.loads(stream.read() if stream else b"")
                            yield Entry(row["source"], row["caption"], None)
            except (tarfile.TarError, OSError, ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"{shard}: is no shard of captions", "move it away, or write elsewhere with -o"
                ) from error

    def publish(self, entries: Iterable[Entry]) -> None:
        """Write all shards; earlier ones are replaced only by whole new ones."""
        self.path.mkdir(parents=True, exist_ok=True)
        pending = iter(entries)
        number = 0
        entry = next(pending, None)
        while entry is not None:
            shard = self.path / f"captions-{number:06d}.tar"
            with replacing(shard, shard.with_suffix(".tar.tmp")) as file:
                entry = _fill(file, entry, pending, number * SHARD_SAMPLES)
            number += 1
        for shard in self._existing()[number:]:  # of an earlier, larger output
            with suppress(OSError):
                shard.unlink()

    def _existing(self) -> list[Path]:
        if not self.path.is_dir():
            return []
        return sorted(p for p in self.path.iterdir() if _SHARD.fullmatch(p.name))


def _fill(file: IO[bytes], entry: Entry, rest: Iterator[Entry], first: int) -> Entry | None:
    """One shard, beginning with `entry`; the first entry that it has no room for."""
    following: Entry | None = entry
    count = 0
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        while following is not None and count < SHARD_SAMPLES and file.tell() < SHARD_BYTES:
            picture, suffix = _picture(following.name)
            key = f"{first + count:09d}"
            row = {
                "path": following.name.split("\0")[-1],
                "source": following.name,
                "caption": following.caption,
            }
            _add(archive, f"{key}{suffix}", picture)
            _add(archive, f"{key}.txt", following.caption.encode())
            _add(archive, f"{key}.json", json.dumps(row).encode())
            count += 1
            following = next(rest, None)
    return following


def _picture(name: str) -> tuple[bytes, str]:
    """A captioned picture's bytes and its suffix in lower case."""
    path, *inside = name.split("\0")
    if len(inside) == 2:
        offset, size = inside[0].split(":")
        item = Item(Path(path), path, Member(inside[1], int(offset), int(size)))
    else:
        item = Item(Path(name), name)
    try:
        return item.read(), Path(inside[-1] if inside else name).suffix.lower() or ".jpg"
    except LlavaError as error:
        raise LlavaError(
            f"{item.shown}: was captioned, but cannot be read now: {error.message}",
            "put it back: the captions are kept, and the same command goes on",
        ) from error


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))
