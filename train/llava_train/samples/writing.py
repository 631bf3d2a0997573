"""Samples into files: LLaVA's JSON, JSON Lines, parquet, webdataset; each appears whole.

Writers take rows one by one and hold at most a thousand of them. A webdataset is a folder of shards
with a sample's JSON and its picture side by side; it is put in place when it is complete.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

from llava_cli.errors import DataError, MissingDependency, UsageError
from llava_train.samples.files import whole
from llava_train.samples.paths import picture_path
from llava_train.samples.reading import Form, Row

PER_SHARD = 1000
_COLUMNS = ("id", "image", "kind", "conversations")
_SUFFIX = {"json": ".json", "jsonl": ".jsonl", "parquet": ".parquet", "webdataset": ""}


class Writer(Protocol):
    """Takes samples."""

    def add(self, sample: Row) -> None:
        """One more."""


def target(folder: Path, name: str, form: Form) -> Path:
    """Where samples of this name are written in this form."""
    return folder / f"{name}{_SUFFIX[form]}"


def form_of(path: Path) -> Form:
    """What a person asks for with the suffix of a file to be written; a folder for webdataset."""
    for form, suffix in _SUFFIX.items():
        if path.suffix.lower() == suffix and suffix:
            return form  # type: ignore[return-value]
    if path.suffix:
        raise UsageError(
            f"{path}: {path.suffix} is no form of data",
            "end the name with .json, .jsonl or .parquet; without a suffix it is a webdataset",
        )
    return "webdataset"


@contextmanager
def writer(path: Path, form: Form, images: Path | None = None) -> Iterator[Writer]:
    """A writer of one form; what it wrote appears when the block ends without an error."""
    if form == "webdataset":
        with _shards(path, images) as shards:
            yield shards
    elif form == "parquet":
        with _parquet(path) as table:
            yield table
    else:
        with whole(path) as file:
            lines = _Lines(file, form)
            yield lines
            lines.finish()


@contextmanager
def writers(paths: dict[Form, Path], images: Path | None = None) -> Iterator[Writer]:
    """One that hands every sample to a writer a form."""
    with ExitStack() as stack:
        yield _All(
            [stack.enter_context(writer(path, form, images)) for form, path in paths.items()]
        )


def write_all(path: Path, samples: Iterable[Row], images: Path | None = None) -> int:
    """Every sample into one file of the form that its name says; how many there were."""
    count = 0
    with writer(path, form_of(path), images) as out:
        for sample in samples:
            out.add(sample)
            count += 1
    return count


def line(row: Any) -> str:
    """A row as one line of JSON; letters as they are, lone surrogates escaped."""
    text = json.dumps(row, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(row)
    return text


class _All:
    def __init__(self, parts: list[Writer]) -> None:
        self._parts = parts

    def add(self, sample: Row) -> None:
        for part in self._parts:
            part.add(sample)


class _Lines:
    """JSON Lines, or the same with the brackets and commas of a JSON array."""

    def __init__(self, file: Any, form: Form) -> None:
        self._file = file
        self._array = form == "json"
        self._first = True

    def add(self, sample: Row) -> None:
        before = ("[\n" if self._first else ",\n") if self._array else ""
        self._file.write(before + line(sample) + ("" if self._array else "\n"))
        self._first = False

    def finish(self) -> None:
        if self._array:
            self._file.write("[]\n" if self._first else "\n]\n")


@contextmanager
def _parquet(path: Path) -> Iterator[Writer]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingDependency("parquet needs pyarrow", "pip install 'llava-cli[data]'") from error
    turn = pyarrow.struct([("from", pyarrow.string()), ("value", pyarrow.string())])
    schema = pyarrow.schema(
        [
            *((name, pyarrow.string()) for name in ("id", "image", "kind")),
            ("conversations", pyarrow.list_(turn)),
            ("extra", pyarrow.string()),
        ]
    )
    with whole(path, "wb") as file, pyarrow.parquet.ParquetWriter(file, schema) as table:
        held = _Table(table, schema)
        yield held
        held.flush()


class _Table:
    """Rows in groups of a thousand; keys without a column of their own go to `extra`, as JSON."""

    def __init__(self, table: Any, schema: Any) -> None:
        self._table = table
        self._schema = schema
        self._rows: list[Row] = []

    def add(self, sample: Row) -> None:
        row: Row = dict.fromkeys(_COLUMNS)
        extra = {}
        for key, value in sample.items():
            fits = isinstance(value, list if key == "conversations" else str)
            if key in _COLUMNS and fits:
                row[key] = value
            else:
                extra[key] = value
        row["extra"] = json.dumps(extra) if extra else None
        self._rows.append(row)
        if len(self._rows) >= PER_SHARD:
            self.flush()

    def flush(self) -> None:
        import pyarrow

        if self._rows:
            try:
                batch = pyarrow.RecordBatch.from_pylist(self._rows, schema=self._schema)
            except (pyarrow.ArrowException, UnicodeEncodeError) as error:
                raise DataError(
                    f"samples that parquet cannot hold: {error}", "see llava data validate"
                ) from error
            self._table.write_batch(batch)
        self._rows = []


@contextmanager
def _shards(folder: Path, images: Path | None) -> Iterator[Writer]:
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    if folder.exists() and any(not path.name.endswith(".tar") for path in folder.iterdir()):
        raise DataError(f"{folder} holds other things than shards", "name a new folder")
    aside.mkdir(parents=True)
    shards = _Shards(aside, images)
    try:
        try:
            yield shards
        finally:
            shards.finish()
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(aside, folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


class _Shards:
    """`NNNNNN.tar`, a thousand samples each: KEY.json, and KEY.jpg or what its picture is."""

    def __init__(self, folder: Path, images: Path | None) -> None:
        self._folder = folder
        self._images = images
        self._count = 0
        self._archive: tarfile.TarFile | None = None

    def add(self, sample: Row) -> None:
        if self._count % PER_SHARD == 0:
            self.finish()
            path = self._folder / f"{self._count // PER_SHARD:06d}.tar"
            self._archive = tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)
        key = f"{self._count:09d}"
        self._count += 1
        image = sample.get("image")
        if isinstance(image, str) and self._images is not None:
            path = picture_path(self._images, image)
            try:
                data = path.read_bytes()
            except OSError as error:
                raise DataError(
                    f"{path} cannot be read: {error.strerror}", "check --images"
                ) from error
            self._member(f"{key}{path.suffix.lower() or '.img'}", data)
        self._member(f"{key}.json", line(sample).encode())

    def finish(self) -> None:
        if self._archive is not None:
            self._archive.close()

    def _member(self, name: str, data: bytes) -> None:
        assert self._archive is not None  # `add` opened it
        info = tarfile.TarInfo(name)  # no owner, no time: the same bytes every time
        info.size = len(data)
        self._archive.addfile(info, io.BytesIO(data))
