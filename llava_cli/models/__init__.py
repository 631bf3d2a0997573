"""Model references -> the files of a model on this disk."""

from __future__ import annotations

from llava_cli.models.files import ModelFiles
from llava_cli.models.resolve import BUNDLED, resolve

__all__ = ["BUNDLED", "ModelFiles", "resolve"]
