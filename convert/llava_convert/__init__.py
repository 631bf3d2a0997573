"""Checkpoints in, GGUF out: `convert` is all that the rest of the project calls."""

from llava_convert.conversion import ConvertedFile, ConvertResult, convert

__all__ = ["ConvertResult", "ConvertedFile", "convert"]
