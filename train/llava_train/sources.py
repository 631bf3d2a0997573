"""Training data as it lies on disk: LLaVA or ShareGPT records in JSON, JSON Lines, parquet or tar.

`records` finds out by content what a file is and gives its records with the pictures inside;
`Picture` says where a picture is and reads it when asked. `mixture` lists files with their weights.
Not here: whether a record is a good sample (`conversations.py`).
"""

from __future__ import annotations

import json
import os
import sys
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from llava_cli.errors import DataError, MissingDependency
from llava_cli.images import SUFFIXES, Image

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Record = tuple[Any, tuple["Picture", ...]]
"""What a file says of a sample, and the pictures that the file itself holds for it."""
_HINT = "give LLaVA JSON, JSON Lines, parquet, or an uncompressed webdataset tar"


@dataclass(frozen=True)
class Picture:
    """Where an encoded picture lies: a file, a part of a file, or a cell of a parquet table."""

    path: Path
    start: int = 0
    size: int = 0
    """Bytes from `start`; 0: the whole file."""
    column: str = ""
    """Of a parquet table; `start` is its row and `size` the place in a list of pictures."""

    def read(self) -> Image:
        """The picture, not yet decoded."""
        if self.column:
            return Image.from_bytes(_cell(self), str(self), "memory")
        if not self.size:
            return Image.from_path(self.path)
        with self.path.open("rb") as file:
            file.seek(self.start)
            return Image.from_bytes(file.read(self.size), str(self), "memory")

    def shape(self) -> tuple[int, int]:
        """Width and height, upright."""
        from llava_cli.decode import upright_size

        return upright_size(self.read().read(), str(self))

    def stat(self) -> os.stat_result:
        """Of the file that it lies in."""
        return self.path.stat()

    def __str__(self) -> str:
        if self.column:
            return f"{self.path}, row {self.start}"
        return f"{self.path}, byte {self.start}" if self.size else str(self.path)


@dataclass(frozen=True)
class Source:
    """One file of a mixture."""

    path: Path
    images: Path | None
    weight: float = 1.0
    """How often each of its samples is read in an epoch; 0.5: another half of them each epoch."""


def mixture(paths: Sequence[Path], images: Path | None) -> list[Source]:
    """The files; a TOML file among them stands for the files that it lists as [[data]].

    A folder stands for its webdataset shards.
    """
    sources: list[Source] = []
    for path in paths:
        if path.suffix != ".toml":
            sources += _shards(Source(path, images))
            continue
        try:
            entries = tomllib.loads(path.read_text("utf-8")).get("data", [])
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise DataError(f"{path} is not TOML: {error}", "list files as [[data]]") from error
        for entry in entries:
            sources += _shards(_entry(entry, path, images))
    return sources


def _shards(source: Source) -> list[Source]:
    if not source.path.is_dir():
        return [source]
    shards = sorted(source.path.glob("*.tar"))
    if not shards:
        raise DataError(f"{source.path} holds no webdataset shards (*.tar)", _HINT)
    return [replace(source, path=path) for path in shards]


def _entry(entry: Any, place: Path, images: Path | None) -> Source:
    """One [[data]] of a mixture: file, and where they are given images and weight."""
    known = {"file": str, "images": str, "weight": (int, float)}
    if not isinstance(entry, dict) or "file" not in entry or entry.keys() - known.keys():
        raise DataError(f"{place}: a [[data]] needs file, and may have images and weight")
    for key, value in entry.items():
        if not isinstance(value, known[key]) or isinstance(value, bool):  # type: ignore[arg-type]
            raise DataError(f"{place}: {key} = {value!r} is not understood")
    weight = float(entry.get("weight", 1.0))
    if not 0 < weight < 1e6:
        raise DataError(f"{place}: weight = {weight} of {entry['file']}", "give more than 0")
    folder = place.parent / entry["images"] if "images" in entry else images
    return Source(place.parent / entry["file"], folder, weight)


def records(path: Path) -> Iterator[Record]:
    """Records in order. What a file is, its first bytes say."""
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}", _HINT) from error
    if not head.strip():
        raise DataError(f"{path} is empty", _HINT)
    if head[:4] == b"PAR1":
        yield from _parquet(path)
    elif head[257:262] == b"ustar":
        yield from _tar(path)
    elif head[:2] == b"\x1f\x8b":
        raise DataError(f"{path} is compressed", "decompress it: pictures are read in any order")
    else:
        yield from _json(path)


def _json(path: Path) -> Iterator[Record]:
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}", _HINT) from error
    try:
        if text.lstrip().startswith("["):
            found = json.loads(text)
        else:
            found = [json.loads(line) for line in text.splitlines() if line.strip()]
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path} is not JSON: {error}", "give a list of samples, or one sample a line"
        ) from error
    yield from ((record, ()) for record in found)


def _tar(path: Path) -> Iterator[Record]:
    """webdataset: neighbouring members of one stem are a sample; .txt is a picture's caption."""
    stem, record = "", None
    pictures: list[Any] = []
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                folder, _, name = member.name.rpartition("/")
                key, _, kind = name.partition(".")
                if not member.isfile() or not key:
                    continue
                if f"{folder}/{key}" != stem:
                    if record is not None:
                        yield record, tuple(pictures)
                    stem, record, pictures = f"{folder}/{key}", None, []
                if "." + kind.lower().rpartition(".")[2] in SUFFIXES:
                    pictures.append(Picture(path, member.offset_data, member.size))
                elif kind in ("json", "txt"):
                    stream = archive.extractfile(member)
                    text = stream.read().decode("utf-8") if stream else ""
                    record = json.loads(text) if kind == "json" else _captioned(key, text)
        if record is not None:
            yield record, tuple(pictures)
    except (tarfile.TarError, OSError, ValueError) as error:
        raise DataError(f"{path} is not a readable tar: {error}", _HINT) from error


def _captioned(key: str, text: str) -> dict[str, Any]:
    turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": text.strip()}]
    return {"id": key, "conversations": turns}


def _parquet(path: Path) -> Iterator[Record]:
    """Rows; pictures in binary columns stay on disk, only their places are noted."""
    arrow, parquet = _pyarrow()
    try:
        with parquet.ParquetFile(path) as file:
            binary = [f.name for f in file.schema_arrow if _is_binary(f.type, arrow)]
            row = 0
            for batch in file.iter_batches(batch_size=256):
                plain = batch.select([n for n in batch.schema.names if n not in binary])
                counts = {name: _counts(batch.column(name), arrow) for name in binary}
                for position, record in enumerate(plain.to_pylist()):
                    pictures = tuple(
                        Picture(path, row, place, name)
                        for name in binary
                        for place in range(counts[name][position])
                    )
                    yield {k: v for k, v in record.items() if v is not None}, pictures
                    row += 1
    except (arrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is not readable parquet: {error}", _HINT) from error


def _is_binary(kind: Any, arrow: Any) -> bool:
    """Encoded pictures: bytes, the `datasets` library's {bytes, path}, or lists of either."""
    types = arrow.types
    if types.is_list(kind) or types.is_large_list(kind):
        return _is_binary(kind.value_type, arrow)
    if types.is_struct(kind):
        return any(field.name == "bytes" for field in kind)
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _counts(column: Any, arrow: Any) -> list[int]:
    """Pictures in each cell."""
    if arrow.types.is_list(column.type) or arrow.types.is_large_list(column.type):
        return [count or 0 for count in column.value_lengths().to_pylist()]
    return [int(valid) for valid in column.is_valid().to_pylist()]


def _cell(picture: Picture) -> bytes:
    """The bytes of a picture in a parquet table."""
    starts = _row_groups(picture.path)
    group = max(i for i, start in enumerate(starts) if start <= picture.start)
    value = _group(picture.path, group, picture.column)[picture.start - starts[group]].as_py()
    if isinstance(value, list):
        value = value[picture.size]
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes):
        raise DataError(f"{picture}: no bytes of a picture", "check the table")
    return data


@lru_cache(maxsize=64)
def _row_groups(path: Path) -> list[int]:
    _, parquet = _pyarrow()
    with parquet.ParquetFile(path) as file:
        sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    return [sum(sizes[:i]) for i in range(len(sizes))]


@lru_cache(maxsize=8)
def _group(path: Path, group: int, column: str) -> Any:
    _, parquet = _pyarrow()
    with parquet.ParquetFile(path) as file:
        return file.read_row_group(group, columns=[column]).column(column).combine_chunks()


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingDependency("parquet needs pyarrow", "pip install pyarrow") from error
    return pyarrow, pyarrow.parquet
