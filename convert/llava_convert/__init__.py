"""Checkpoints in, GGUF out: `convert` is all that the rest of the project calls."""

from llava_cli.engines.layouts.source import Extras
from llava_convert.conversion import convert
from llava_convert.result import ConvertedFile, ConvertResult

__all__ = ["ConvertResult", "ConvertedFile", "Extras", "convert"]
