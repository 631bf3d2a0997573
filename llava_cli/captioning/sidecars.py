"""Captions in a file beside each picture: .txt, .caption for trainers, .xmp for photo programs."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from llava_cli.captioning import xmp
from llava_cli.captioning.journal import Unwritten
from llava_cli.captioning.sources import Item
from llava_cli.errors import DataError, LlavaError, UsageError
from llava_cli.writing import create_bytes, write_bytes

MAX_BYTES = 4 * 1024 * 1024
"""Largest text file that is taken for a caption."""
_MOSTLY = 64 * 1024
"""Bytes that hold nearly every sidecar."""


@dataclass(frozen=True)
class Sidecars:
    """One file a picture, named like it."""

    format: str
    """txt, caption or xmp: the suffix."""
    root: Path
    """What journal and shown paths are relative to."""
    out: Path | None = None
    """A folder that takes the sidecars, in the pictures' own order of folders."""

    @property
    def journal(self) -> Path:
        """Where the journal lies: with the sidecars."""
        return (self.out or self.root) / f".llava-caption-{self.format}.sqlite"

    @property
    def one_line(self) -> bool:
        """Trainers read the first line only."""
        return self.format != "xmp"

    def target(self, item: Item) -> Path:
        """The picture's sidecar."""
        if item.member is not None:
            raise UsageError(
                f"{item.path.name}: pictures in a tar have no files beside them",
                "use --format webdataset, jsonl, json or csv",
            )
        picture = item.path if self.out is None else self.out / item.relative
        return picture.with_suffix(f".{self.format}")

    def caption(self, target: Path) -> str | None:
        """The caption that is there; None without one (no file, an empty one, a bare XMP)."""
        try:
            with target.open("rb") as file:
                data = file.read(_MOSTLY)  # room for the largest would cost more than reading
                if len(data) == _MOSTLY:
                    data += file.read(xmp.MAX_BYTES + 1 - _MOSTLY)
        except FileNotFoundError:
            return None
        except OSError as error:
            reason = error.strerror or str(error)
            raise LlavaError(f"{target}: cannot be read: {reason}", "check it") from error
        if self.format == "xmp":
            try:
                return xmp.read_description(data) or None if data.strip() else None
            except DataError as error:
                raise DataError(f"{target}: {error.message}", error.hint) from error
        if len(data) > MAX_BYTES:
            raise DataError(f"{target}: is too large for a caption", "move it away")
        return data.decode("utf-8-sig", "replace").strip() or None

    def content(self, target: Path, caption: str) -> bytes:
        """The bytes of a sidecar with this caption."""
        if self.format != "xmp":
            return f"{caption}\n".encode()
        data = target.read_bytes() if target.exists() else b""
        return xmp.with_description(data if data.strip() else None, caption)

    def write(self, target: Path, content: bytes, *, replace: bool) -> bool:
        """Put it there; False where `replace` is not wanted and another process was first."""
        if self.out is not None:
            target.parent.mkdir(parents=True, exist_ok=True)
        if replace or target.exists():
            write_bytes(target, content, self._aside(target))
            return True
        return create_bytes(target, content, self._aside(target))

    def complete(self, left: Unwritten) -> None:
        """Write what a killed run had ready, over the half that it may have left aside."""
        self.write(left.target, left.content, replace=True)

    def _aside(self, target: Path) -> Path:
        """The same name each time, so that what a kill leaves is written over by the next run."""
        mine = hashlib.sha256(str(self.journal).encode("utf-8", "surrogateescape")).hexdigest()
        return target.with_name(f".llava-caption-{mine[:12]}.tmp")
