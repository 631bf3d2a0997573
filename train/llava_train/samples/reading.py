"""Samples from files of every form that LLaVA's data has: JSON, JSON Lines, parquet, webdataset.

The form is found in the first bytes, never in a name. Rows come one by one, as dictionaries in
LLaVA's layout; whether they are good ones, `validate` says.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from llava_cli.errors import DataError, MissingDependency
from llava_train.samples.json_stream import MAX_ELEMENT, items, opens_with

Form = Literal["json", "jsonl", "parquet", "webdataset"]
Row = dict[str, Any]
_HINT = "give LLaVA JSON, JSON Lines, parquet, or webdataset shards"


def form(path: Path) -> Form:
    """What a file, or a folder of shards, holds."""
    if path.is_dir():
        shards = sorted(path.glob("*.tar"))
        if not shards:
            raise DataError(f"{path} holds no webdataset shards (*.tar)", _HINT)
        return "webdataset"
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}", _HINT) from error
    if head.startswith(b"PAR1"):
        return "parquet"
    if head[257:262] == b"ustar":
        return "webdataset"
    return "json" if opens_with(path) == "[" else "jsonl"


def rows(path: Path) -> Iterator[Any]:
    """The rows of a file, in order; memory does not grow with their number."""
    found = form(path)
    if found == "parquet":
        yield from _parquet(path)
    elif found == "webdataset":
        for shard in sorted(path.glob("*.tar")) if path.is_dir() else [path]:
            yield from _shard(shard)
    else:
        yield from items(path)


def samples(path: Path) -> Iterator[Row]:
    """The rows, each a dictionary; an error names the first that is none."""
    for position, row in enumerate(rows(path)):
        if not isinstance(row, dict):
            raise DataError(f"{path.name}[{position}] is not an object", _HINT)
        yield row


def some(found: Iterable[Any], message: str, hint: str) -> Iterator[Any]:
    """The rows as they are; DataError if there are none, before an empty file is put in place."""
    empty = True
    for row in found:
        empty = False
        yield row
    if empty:
        raise DataError(message, hint)


def _parquet(path: Path) -> Iterator[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingDependency("parquet needs pyarrow", "pip install 'llava-cli[data]'") from error
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    yield _merged(row)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} is not readable parquet: {error}", _HINT) from error


def _merged(row: Row) -> Row:
    """As it was before it was written: other keys from their column, no empty columns."""
    extra = row.pop("extra", None)
    found = {key: value for key, value in row.items() if value is not None}
    if isinstance(extra, str):
        others = json.loads(extra)
        found.update(others if isinstance(others, dict) else {})
    return found


def _shard(path: Path) -> Iterator[Row]:
    """The JSON members of a shard; pictures beside them are passed over."""
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                if not member.isfile() or not member.name.endswith(".json"):
                    continue
                if member.size > MAX_ELEMENT:
                    raise DataError(f"{path}: {member.name} is too large for a sample", _HINT)
                if stream := archive.extractfile(member):
                    yield json.loads(stream.read())
    except (tarfile.TarError, OSError, ValueError) as error:
        raise DataError(f"{path} is not a readable shard: {error}", _HINT) from error
