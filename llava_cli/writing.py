"""Files that are whole or absent: written aside, synced, renamed. Knows no formats."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def replacing(path: Path, aside: Path | None = None) -> Iterator[IO[bytes]]:
    """A binary file that takes the place of `path` when the block ends without an error.

    `aside` is where it is written meanwhile: in the same folder, by default beside `path`.
    """
    aside = aside or path.with_name(f".{path.name[:100]}.{os.getpid()}.tmp")
    try:
        with aside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise


def write_bytes(path: Path, data: bytes, aside: Path | None = None) -> None:
    """Put `data` in place of the file, or make it."""
    with replacing(path, aside) as file:
        file.write(data)


def create_bytes(path: Path, data: bytes, aside: Path) -> bool:
    """Make the file if there is none; False where another process was first."""
    try:
        with aside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(aside, path)  # unlike a rename, refuses to take a file's place
        except FileExistsError:
            return False
        except OSError:  # a file system without links (FAT)
            os.replace(aside, path)
        return True
    finally:
        with contextlib.suppress(OSError):
            aside.unlink()
