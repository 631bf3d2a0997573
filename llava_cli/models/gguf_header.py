"""The header of a GGUF file: metadata and tensor list, read and checked before anything loads it.

llama.cpp aborts the process on some damaged files, and the `gguf` package takes seconds for a large
vocabulary; this reads what a decision needs in milliseconds and turns damage into `ModelInvalid`.
Not here: tensor data, writing (`llava_convert`).
"""

from __future__ import annotations

import functools
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_cli.errors import ModelInvalid, ModelNotFound

_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9
_LONG_ARRAY = 4096
"""Longer arrays (vocabularies, merges) are skipped."""
_MAX_COUNT = 1 << 24
"""More entries than this are damage, not content."""

BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34),
    9: (32, 36), 10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210),
    15: (256, 292), 16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18),
    21: (256, 110), 22: (256, 82), 23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8),
    28: (1, 8), 29: (256, 56), 30: (1, 2), 34: (256, 54), 35: (256, 66), 39: (32, 17),
}  # fmt: skip
"""ggml type -> (elements, bytes) of a block."""
F32, F16, BF16 = 0, 1, 30


@dataclass(frozen=True)
class TensorInfo:
    """One tensor as the header lists it."""

    shape: tuple[int, ...]
    """ggml order: the fastest dimension first."""
    type: int
    offset: int
    """From the start of the file."""


@dataclass(frozen=True)
class GGUFHeader:
    """What a GGUF file says about itself."""

    path: Path
    metadata: Mapping[str, Any]
    """Arrays of more than 4096 entries are left out."""
    tensors: Mapping[str, TensorInfo]

    @property
    def architecture(self) -> str:
        """`llama`, `clip`, ...: content, not the file's name."""
        return str(self.metadata.get("general.architecture", ""))

    @property
    def is_mmproj(self) -> bool:
        """Holds an image encoder and projector, not a language model."""
        return self.architecture == "clip" or self.metadata.get("general.type") == "mmproj"


def read_header(path: Path) -> GGUFHeader:
    """Read and check a header; damage is a `ModelInvalid` that says where.

    A file that has not changed since is not read again.
    """
    try:
        info = path.stat()
        return _read_header(path, (info.st_ino, info.st_size, info.st_mtime_ns))
    except FileNotFoundError as error:
        raise ModelNotFound(f"no such model file: {path}", "check the path") from error
    except OSError as error:
        raise ModelInvalid(f"cannot read {path}: {error.strerror or error}") from error


@functools.lru_cache(16)
def _read_header(path: Path, _state: tuple[int, int, int]) -> GGUFHeader:
    try:
        with path.open("rb") as file:
            start = file.read(64)
            if start[:4] != b"GGUF":
                raise _not_gguf(path, start)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Reader(path, data).header()
    except (struct.error, UnicodeDecodeError, IndexError, OverflowError, MemoryError) as error:
        raise _damaged(path, "its header is cut off or garbled") from error


class _Reader:
    """Walks through the header once."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.at = path, data, 4

    def header(self) -> GGUFHeader:
        version = self.scalar("I")
        if version not in (2, 3):
            swapped = int.from_bytes(int(version).to_bytes(4, "little"), "big")
            kind = "a big-endian GGUF file" if swapped in (2, 3) else f"GGUF version {version}"
            raise ModelInvalid(
                f"{self.path} is {kind}, which is not supported", "convert the model again"
            )
        n_tensors, n_keys = self.count(), self.count()
        metadata: dict[str, Any] = {}
        for _ in range(n_keys):
            key = self.string()
            if key == "tokenizer.ggml.tokens":
                self.check_tokens()
            value = self.value(self.scalar("I"))
            if value is not None:
                metadata[key] = value
        listed = [self.tensor() for _ in range(n_tensors)]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise _damaged(self.path, "its alignment is not a positive number")
        base = -(-self.at // alignment) * alignment
        tensors = {n: TensorInfo(t.shape, t.type, base + t.offset) for n, t in listed}
        self.check_extent(tensors)
        return GGUFHeader(self.path, metadata, tensors)

    def scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from("<" + code, self.data, self.at)
        self.at += struct.calcsize("<" + code)
        return value

    def count(self) -> int:
        value = int(self.scalar("Q"))
        if value > _MAX_COUNT:
            raise _damaged(self.path, f"its header announces {value} entries")
        return value

    def string(self) -> str:
        length = int(self.scalar("Q"))
        raw = self.data[self.at : self.at + length]
        if len(raw) != length:
            raise _damaged(self.path, "a text in its header runs over the end of the file")
        self.at += length
        return raw.decode("utf-8", errors="replace")

    def value(self, kind: int) -> Any:
        """A metadata value; None for a long array."""
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            raise _damaged(self.path, f"its header holds a value of unknown kind {kind}")
        of, length = int(self.scalar("I")), self.count()
        if of in _SCALARS:
            code = f"{length}{_SCALARS[of]}"
            values = None
            if length <= _LONG_ARRAY:
                values = list(struct.unpack_from("<" + code, self.data, self.at))
            self.at += struct.calcsize("<" + code)
            return values
        if length > _LONG_ARRAY and of == _STRING:
            self.skip_strings(length)
            return None
        return [self.value(of) for _ in range(length)]

    def check_tokens(self) -> None:
        """No token twice: llama.cpp would end the process. Reads ahead, and comes back."""
        start = self.at
        kind, of, length = self.scalar("I"), self.scalar("I"), self.count()
        if (kind, of) != (_ARRAY, _STRING):
            raise _damaged(self.path, "its vocabulary is not a list of texts")
        data, at, unpack = self.data, self.at, struct.Struct("<Q").unpack_from
        seen: set[bytes] = set()
        for _ in range(length):
            end = at + 8 + unpack(data, at)[0]
            seen.add(data[at + 8 : end].partition(b"\0")[0])  # as far as C reads it
            at = end
        if len(seen) != length:
            raise _damaged(self.path, "its vocabulary has a token twice")
        self.at = start

    def skip_strings(self, length: int) -> None:
        data, at, unpack = self.data, self.at, struct.Struct("<Q").unpack_from
        for _ in range(length):
            at += 8 + unpack(data, at)[0]
        self.at = at

    def tensor(self) -> tuple[str, TensorInfo]:
        name = self.string()
        dimensions = int(self.scalar("I"))
        if dimensions > 4:
            raise _damaged(self.path, f"tensor {name!r} has {dimensions} dimensions")
        shape = tuple(int(self.scalar("Q")) for _ in range(dimensions))
        return name, TensorInfo(shape, int(self.scalar("I")), int(self.scalar("Q")))

    def check_extent(self, tensors: Mapping[str, TensorInfo]) -> None:
        """Every tensor of a known type ends inside the file."""
        size = len(self.data)
        for name, tensor in tensors.items():
            elements = 1
            for dimension in tensor.shape:
                elements *= dimension
            block, width = BLOCKS.get(tensor.type, (1, 0))
            if tensor.offset + elements // block * width > size:
                raise _damaged(
                    self.path, f"it ends before its tensor {name}", "the download was cut off"
                )


def _not_gguf(path: Path, start: bytes) -> ModelInvalid:
    if not start:
        return ModelInvalid(f"{path} is empty", "download or convert the model again")
    if start.startswith(b"version https://git-lfs"):
        return ModelInvalid(f"{path} is a Git LFS pointer, not the model", "run `git lfs pull`")
    if start.lstrip()[:1] == b"<":
        return ModelInvalid(f"{path} is a web page, not a GGUF file", "download the file itself")
    return ModelInvalid(f"{path} is not a GGUF file", "give a .gguf file or a model folder")


def _damaged(path: Path, where: str, why: str = "") -> ModelInvalid:
    hint = "download or convert it again"
    return ModelInvalid(f"{path} is damaged: {where}", f"{why}: {hint}" if why else hint)
