"""A LoRA adapter for the GGUF engine: llama.cpp's own file, or peft's folder made into one.

What is made lies in a temporary folder until llama.cpp has read it. Not here: the conversion
(`llava_cli.engines.layouts.gguf_lora`), putting it on a model (`language.py`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llava_cli.errors import LlavaError, ModelInvalid, ModelNotFound
from llava_cli.models.files import ModelFiles
from llava_cli.models.gguf_header import read_header
from llava_cli.models.originals import ADAPTER


@contextmanager
def gguf_adapter(given: Path | None, files: ModelFiles) -> Iterator[Path | None]:
    """The adapter as a GGUF file for this model; checked before any weights are loaded."""
    if given is None:
        yield None
    elif given.is_file():
        _check(given, files)
        yield given
    elif (given / ADAPTER).is_file():
        with tempfile.TemporaryDirectory(prefix="llava-", ignore_cleanup_errors=True) as aside:
            yield _made(given, Path(aside) / "adapter.gguf", files)
    else:
        raise ModelNotFound(
            f"{given} is no LoRA adapter: neither a .gguf nor a folder with {ADAPTER}",
            "give the folder that training or peft wrote, or what llava convert --to adapter made",
        )


def _check(path: Path, files: ModelFiles) -> None:
    """A LoRA for a model of this architecture, by what the file says."""
    header = read_header(path)
    kind = header.metadata.get("adapter.type")
    if header.metadata.get("general.type") != "adapter" or kind != "lora":
        raise ModelInvalid(f"{path} is a GGUF file, but no LoRA adapter", "give an adapter")
    if header.metadata.get("adapter.alora.invocation_tokens"):
        raise ModelInvalid(f"{path} is an adapter that waits for certain tokens (aLoRA)",
                           "use a plain LoRA adapter")  # fmt: skip
    wanted = files.config.get("general.architecture")
    if header.architecture != wanted:
        raise ModelInvalid(
            f"{path} is for a {header.architecture} model, and {files.reference} is {wanted}",
            "give the model that it was trained on with -m",
        )


def _made(folder: Path, target: Path, files: ModelFiles) -> Path:
    from llava_cli.engines.layouts.gguf_lora import language_of_gguf, open_lora, write_lora

    try:
        write_lora(open_lora(folder, language_of_gguf(files.config)), target)
    except OSError as error:
        raise LlavaError(
            f"the adapter {folder} cannot be written aside: {error.strerror or error}",
            "make room in the folder for temporary files (TMPDIR)",
        ) from error
    return target
