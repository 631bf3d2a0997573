"""Which prompt format a loaded model speaks: the one that was asked for, else its own."""

from __future__ import annotations

from llava_cli.errors import ModelInvalid, UsageError
from llava_cli.models.files import ModelFiles
from llava_cli.prompts import FORMATS, PromptFormat


def choose_format(files: ModelFiles, wanted: str | None = None) -> PromptFormat:
    """By exact name; nothing is guessed where neither the person nor the model says one."""
    known = ", ".join(sorted(FORMATS))
    if wanted is not None:
        if wanted not in FORMATS:
            raise UsageError(f"unknown prompt format: {wanted}", f"known: {known}")
        return FORMATS[wanted]
    if files.prompt_format is None:
        raise ModelInvalid(
            f"{files.reference} does not say which prompt format it was trained with",
            f"name it with --prompt-format; known: {known}",
        )
    if files.prompt_format not in FORMATS:
        raise ModelInvalid(
            f"{files.reference} was trained with the unknown prompt format {files.prompt_format!r}",
            f"try a near one with --prompt-format; known: {known}",
        )
    return FORMATS[files.prompt_format]
