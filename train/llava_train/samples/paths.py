"""Where a sample's picture lies: inside the folder of pictures, or nowhere."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath, PureWindowsPath

from llava_cli.errors import DataError


def stays_inside(name: str) -> bool:
    """Whether a relative path cannot lead out of the folder it is relative to."""
    normal = os.path.normpath(name)
    return not (
        not name
        or "\0" in name
        or normal.split(os.sep)[0] == ".."
        or PurePosixPath(name).is_absolute()
        or PureWindowsPath(name).drive
    )


def picture_path(images: Path, name: str) -> Path:
    """The picture's file; DataError for a name that leads out of the folder."""
    if not stays_inside(name):
        raise DataError(
            f"{name!r} leaves the folder of pictures", "give paths relative to --images"
        )
    return images / name
