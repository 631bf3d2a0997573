"""GGUF files written tensor by tensor, several at once, that appear whole or not at all.

`Sink` is one file in the making: its header is built in memory, tensors are appended in the order
of the plan, and `commit` gives it its final name after the last byte is on the disk. Until then it
lies beside it under a name that starts with a dot, which a killed run leaves behind and the next
run removes. Not here: what stands in the header (`text.py`, `mmproj.py`).
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, cast

import numpy as np
import numpy.typing as npt
from gguf import GGUFWriter
from gguf.gguf_writer import WriterState

from llava_cli.engines.layouts.tensors import Tensor
from llava_cli.errors import LlavaError
from llava_convert.ggml import Kind, kind_bytes

SUFFIX = ".partial"
PADDED_TO = 32
"""GGUF's alignment of tensors, in bytes."""
_FLOAT = np.dtype(np.float32)
"""Any dtype but uint8, which the writer would take for quantised rows."""


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of an output file, whatever its type will be."""

    name: str
    values: Tensor
    """In the order of dimensions that torch has; its name is for messages."""
    full: bool = False
    """Always float32."""

    @property
    def shape(self) -> tuple[int, ...]:
        """In torch's order."""
        return self.values.shape


class Sink:
    """One GGUF file in the making."""

    def __init__(
        self,
        path: Path,
        writer: GGUFWriter,
        tensors: Sequence[PlannedTensor],
        kinds: Mapping[str, Kind],
        label: str,
    ) -> None:
        self.path = path
        self.label = label
        self.kinds = dict(kinds)
        for tensor in tensors:
            kind = self.kinds[tensor.name]
            size = kind_bytes(kind, tensor.shape)
            writer.add_tensor_info(tensor.name, tensor.shape, _FLOAT, size, raw_dtype=kind)
        self._header = _header(writer)
        data = sum(_padded(kind_bytes(self.kinds[t.name], t.shape)) for t in tensors)
        self.bytes = len(self._header) + data
        self.written = 0
        self.sha256 = ""
        self._aside = path.with_name(f".{path.name}.{os.getpid()}{SUFFIX}")
        self._file: BinaryIO | None = None
        self._hash = hashlib.sha256()

    def __enter__(self) -> Sink:
        remove_leftovers(self.path)
        with disk_errors(self.path):
            self._file = self._aside.open("wb")
        self._write(self._header)
        return self

    def append(self, data: npt.NDArray[np.uint8]) -> None:
        """The next bytes of a tensor."""
        self._write(data.data)

    def end_tensor(self, tensor: PlannedTensor) -> None:
        """After its last rows."""
        size = kind_bytes(self.kinds[tensor.name], tensor.shape)
        self._write(bytes(_padded(size) - size))

    def flush(self) -> None:
        """Every byte onto the disk."""
        if self._file is None:
            raise RuntimeError("the file is not open")
        if self.written != self.bytes:
            raise RuntimeError(f"{self.path.name}: {self.written} bytes, not {self.bytes}")
        with disk_errors(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        self.sha256 = self._hash.hexdigest()

    def commit(self) -> None:
        """Give the file its name, in place of what had it before."""
        with disk_errors(self.path):
            os.replace(self._aside, self.path)
            sync_folder(self.path.parent)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None and not self._file.closed:
            _close_quietly(self._file)
        self._aside.unlink(missing_ok=True)

    def _write(self, data: bytes | memoryview) -> None:
        if self._file is None:
            raise RuntimeError("the file is not open")
        with disk_errors(self.path):
            self._file.write(data)
        self._hash.update(data)
        self.written += len(data)


def prepare_folder(folder: Path, needed: int) -> None:
    """Make the output folder, and refuse at once where the files cannot fit."""
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    if needed > free:
        raise LlavaError(
            f"{folder} has {free / 1e9:.2f} GB free, the files need {needed / 1e9:.2f} GB",
            "make room, choose a smaller --outtype, or write elsewhere",
        )


def _header(writer: GGUFWriter) -> bytes:
    """All that stands before the first tensor."""
    raw = io.BytesIO()
    buffer = cast("io.BufferedWriter", io.BufferedWriter(raw))
    writer.fout, writer.state = [buffer], WriterState.EMPTY
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    buffer.flush()
    header = raw.getvalue()
    return header + bytes(_padded(len(header)) - len(header))


def _padded(size: int) -> int:
    return GGUFWriter.ggml_pad(size, PADDED_TO)


def remove_leftovers(path: Path) -> None:
    """What killed runs left of this file; a run that is still alive keeps its own."""
    pattern = re.compile(re.escape(f".{path.name}.") + r"(\d+)" + re.escape(SUFFIX))
    for other in path.parent.glob(f".*{SUFFIX}"):
        match = pattern.fullmatch(other.name)
        if match and not is_alive(int(match.group(1))):
            other.unlink(missing_ok=True)


def is_alive(pid: int) -> bool:
    """Whether a process that writes is still there; this one itself does not count."""
    if pid == os.getpid():
        return False
    if os.name == "nt":  # where signal 0 is Ctrl-C
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def sync_folder(folder: Path) -> None:
    """The new name itself onto the disk, where the system can do that."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _close_quietly(file: BinaryIO) -> None:
    """Close after a failure, which is the error to report, not a second one from the buffer."""
    try:
        file.close()
    except OSError:
        return


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """What the operating system refuses, as one line with the file's name."""
    try:
        yield
    except OSError as error:
        raise LlavaError(
            f"{path} cannot be written: {error.strerror or error}",
            "make room there, or choose another folder",
        ) from error
