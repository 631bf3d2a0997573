"""Which pictures are captioned: folders, files, patterns, lists and webdataset tars.

Pictures are found one folder at a time and never opened here, so that a folder of any size starts
at once and takes no memory beyond the names of one folder.
"""

from __future__ import annotations

import glob
import os
import sys
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO

from llava_cli.errors import ImageError, UsageError
from llava_cli.images import MAX_BYTES, SUFFIXES, Image

_SIDECARS = frozenset((".txt", ".caption", ".xmp", ".json", ".jsonl", ".csv", ".html", ".tar"))
_UNREADABLE = frozenset(".heic .heif .hif .svg .jxl .psd .raw .cr2 .nef .arw .dng".split())
"""A camera's raw file beside its JPEG claims no caption of its own."""


@dataclass(frozen=True)
class Member:
    """A file inside an uncompressed tar."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class Item:
    """One picture to caption."""

    path: Path
    """The file, or the tar that holds it."""
    relative: str
    """Its place below the folder that was named, with slashes."""
    member: Member | None = None
    clash: str = ""
    """Name of a neighbour that would share its sidecar."""
    problem: str = ""
    """Why it cannot even be looked at: a folder without permission, a damaged tar."""

    @property
    def shown(self) -> str:
        """What a person calls it."""
        return f"{self.path}/{self.member.name}" if self.member else str(self.path)

    def read(self) -> bytes:
        """The encoded picture; ImageError for pipes, devices and whatever cannot be read."""
        if self.member is None:
            if self.path.exists() and not (self.path.is_file() or self.path.is_dir()):
                raise ImageError(f"{self.path}: is no regular file", "name the picture itself")
            return Image.from_path(self.path).read()
        if not 0 < self.member.size <= MAX_BYTES:
            raise ImageError(f"{self.shown}: is empty or too large", "leave it out of the tar")
        with self.path.open("rb") as file:
            file.seek(self.member.offset)
            return file.read(self.member.size)


Chosen = Callable[[Path, Path, list[str]], list[str]]
"""Some of a folder's pictures: the folder, its place below what was named, names."""


@dataclass(frozen=True)
class Sources:
    """What a person named, and which of it they want."""

    paths: tuple[str, ...]
    recursive: bool = False
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    list_file: str | None = None
    nul: bool = False
    """The list's names are separated by NUL bytes."""

    def check(self) -> None:
        """ImageError or UsageError where something that was named is not there."""
        for text in self.paths:
            if not os.path.lexists(text) and not glob.has_magic(text):
                raise ImageError(f"{text}: no such file or folder", "check the path")
        if self.list_file not in (None, "-") and not Path(str(self.list_file)).is_file():
            raise UsageError(f"{self.list_file}: no such list", "give a file of paths, or -")

    @property
    def countable(self) -> bool:
        """Whether the pictures can be listed twice."""
        return self.list_file is None or Path(self.list_file).is_file()

    @property
    def root(self) -> Path:
        """The folder that holds everything named, as far as that can be said."""
        folders = [_folder_of(text) for text in self.paths]
        if self.list_file is not None:
            stdin = self.list_file == "-"
            folders.append(Path.cwd() if stdin else Path(self.list_file).absolute().parent)
        try:
            return Path(os.path.commonpath(folders))
        except ValueError:  # drives of Windows
            return folders[0]

    def items(self) -> Iterator[Item]:
        """The pictures, in a fixed order; a clash of sidecars is marked where it can be seen."""
        for item in self._all():
            if self._wanted(item):
                yield item

    def some(self, chosen: Chosen) -> Iterator[Item]:
        """Pictures of the named folders that are chosen by their names alone.

        What is named in another way, or is to be refused, is left to `items`.
        """
        for text in self.paths:
            if os.path.isdir(text):
                for item in self._walk(Path(text), Path(text), chosen):
                    if not item.problem and not item.clash and self._wanted(item):
                        yield item

    def _all(self) -> Iterator[Item]:
        several = len(self.paths) > 1
        for text in self.paths:
            if glob.has_magic(text) and not os.path.lexists(text):
                for name in sorted(glob.iglob(text, recursive=True)):
                    if Path(name).suffix.lower() in SUFFIXES and not Path(name).is_dir():
                        yield Item(Path(name), Path(name).name)
            else:
                yield from self._named(Path(text), several)
        if self.list_file is not None:
            for text in _listed(self.list_file, self.nul):
                yield from self._named(Path(text), several=False)

    def _named(self, path: Path, several: bool) -> Iterator[Item]:
        if path.is_dir():
            yield from self._walk(path, path)
        elif path.suffix.lower() == ".tar":
            yield from _tar_members(path)
        elif not (several and path.suffix.lower() in _SIDECARS):  # `photos/*` names these, too
            yield Item(path, path.name)

    def _walk(self, folder: Path, top: Path, chosen: Chosen | None = None) -> Iterator[Item]:
        """Pictures of a folder by name, then its subfolders; hidden ones are left out."""
        files: list[str] = []
        folders: list[str] = []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if _is_folder(entry):
                        if self.recursive and not entry.is_symlink():
                            folders.append(entry.name)
                    elif _looks_like_picture(entry.name):
                        files.append(entry.name)
        except OSError as error:
            problem = f"cannot be read: {error.strerror or error}"
            yield Item(folder, folder.relative_to(top).as_posix(), problem=problem)
            return
        below = folder.relative_to(top)
        if chosen is not None and files:
            files = chosen(folder, below, files)
        files.sort()
        clashes = self._clashes(files, below)
        for name in files:
            relative = (below / name).as_posix()
            yield Item(folder / name, relative, clash=clashes.get(name, ""))
        for name in sorted(folders):
            yield from self._walk(folder / name, top, chosen)

    def _clashes(self, files: list[str], below: Path) -> dict[str, str]:
        """For each picture whose stem another one has too: the other's name."""
        stems = Counter(stem for name in files if (stem := _claimed_stem(name)))
        if all(count == 1 for count in stems.values()):
            return {}
        sharing: dict[str, list[str]] = {}
        for name in files:
            stem = _claimed_stem(name)
            if stems[stem] > 1 and self._passes((below / name).as_posix()):
                sharing.setdefault(stem, []).append(name)
        return {
            name: next(other for other in names if other != name)
            for names in sharing.values()
            if len(names) > 1
            for name in names
        }

    def _wanted(self, item: Item) -> bool:
        name = item.member.name if item.member else item.relative
        return bool(item.problem) or self._passes(name)

    def _passes(self, name: str) -> bool:
        return (not self.include or _matches(name, self.include)) and not _matches(
            name, self.exclude
        )


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    base = name.rsplit("/", 1)[-1]
    return any(fnmatchcase(name, p) or fnmatchcase(base, p) for p in patterns)


def _claimed_stem(name: str) -> str:
    """What a picture's sidecar is named after; empty for a raw file, which claims none."""
    stem, suffix = os.path.splitext(name)
    return "" if suffix.lower() in _UNREADABLE else stem


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself; reading it will say so
        return False


def _looks_like_picture(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES


def _folder_of(text: str) -> Path:
    """The folder that a PATH lies in, itself where it is one."""
    path = Path(text).absolute()
    if path.is_dir():
        return path
    parts = path.parts
    fixed = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    return Path(*parts[: min(fixed, len(parts) - 1)])


def _listed(list_file: str, nul: bool) -> Iterator[str]:
    """The paths in a list, bytes as they are."""
    if list_file == "-":
        if sys.stdin is None or sys.stdin.isatty():
            raise UsageError("the list should come from standard input", "pipe one in: find … |")
        yield from _split(sys.stdin.buffer, b"\0" if nul else b"\n")
        return
    with Path(list_file).open("rb") as file:
        yield from _split(file, b"\0" if nul else b"\n")


def _split(file: IO[bytes], separator: bytes) -> Iterator[str]:
    rest = b""
    while piece := file.read(65536):
        *whole, rest = (rest + piece).split(separator)
        yield from (_decoded(name, separator) for name in whole if name.strip(b"\r"))
    if rest.strip(b"\r"):
        yield _decoded(rest, separator)


def _decoded(name: bytes, separator: bytes) -> str:
    return os.fsdecode(name.rstrip(b"\r") if separator == b"\n" else name)


def _tar_members(path: Path) -> Iterator[Item]:
    """Pictures of a webdataset shard: where their bytes lie in the file."""
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]  # it would keep every one
                if member.isreg() and _looks_like_picture(member.name):
                    found = Member(member.name, member.offset_data, member.size)
                    yield Item(path, f"{path.name}/{member.name}", found)
    except (tarfile.TarError, OSError) as error:
        problem = f"is no uncompressed tar, or a damaged one: {error}"
        yield Item(path, path.name, problem=problem)
