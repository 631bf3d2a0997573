"""Where captions go and what is there already: one way for sidecars, one for files of many.

Both write through the journal: a caption is in it before it is in its place.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from llava_cli.captioning.journal import Journal
from llava_cli.captioning.shards import Shards
from llava_cli.captioning.sidecars import Sidecars
from llava_cli.captioning.sources import Item
from llava_cli.captioning.tables import FILES, Table
from llava_cli.errors import LlavaError

Output = Sidecars | Table | Shards
FORMATS = ("txt", "caption", "json", "jsonl", "csv", "imagefolder", "webdataset", "kohya", "xmp")


@dataclass(frozen=True)
class Place:
    """Where a picture's caption belongs."""

    name: str
    """The picture, as the journal calls it."""
    key: bytes
    """The place, of which there is one for each picture."""
    shown: str
    """The place, as a person calls it."""


class Keeper(Protocol):
    """Keeps captions of one format."""

    journal: Journal
    one_line: bool

    def begin(self, fingerprint: str) -> bool:
        """Start; whether a killed run is continued."""
        ...

    def place(self, item: Item) -> Place:
        """The picture's place; LlavaError where the format has none for it."""
        ...

    def bare(self, folder: Path, below: Path, names: list[str]) -> list[str]:
        """Those of a folder's pictures that lack a caption, as far as names tell; quick."""
        ...

    def caption(self, item: Item) -> str | None:
        """The caption that the picture has."""
        ...

    def store(self, item: Item, caption: str, data: bytes, *, replace: bool) -> bool:
        """Keep a caption for good; False where another process was first and it shall stay."""
        ...

    def publish(self, *, whole: bool) -> None:
        """Write what is written at the end; `whole` where the run was not interrupted."""
        ...


def output_of(format: str, root: Path, out: Path | None) -> Output:
    """The output of a format, in the pictures' folder or where -o says."""
    if format in FILES:
        return Table.of(format, root, out)
    if format == "webdataset":
        return Shards.of(root, out)
    return Sidecars(format, root, None if out is None else out.absolute())


def keeper_of(output: Output, *, rehearsal: bool = False) -> Keeper:
    """Opens the journal: refuses where another process writes to the same output.

    A rehearsal looks at everything and writes nothing.
    """
    journal = Journal(output.journal, readonly=rehearsal)
    keeper: SidecarKeeper | FileKeeper
    if isinstance(output, Sidecars):
        keeper = SidecarKeeper(output, journal)
    else:
        keeper = FileKeeper(output, journal)
    return Rehearsal(keeper) if rehearsal else keeper


class SidecarKeeper:
    """A file for each picture; what is on the disk is the truth."""

    def __init__(self, output: Sidecars, journal: Journal) -> None:
        self.output = output
        self.journal = journal
        self.one_line = output.one_line

    def begin(self, fingerprint: str) -> bool:
        """Complete first what a kill left between journal and place."""
        for left in self.journal.unwritten():
            if left.content is not None:
                self.output.complete(left)
            self.journal.wrote(left.name)
        return self.journal.begin(fingerprint)

    def place(self, item: Item) -> Place:
        """The sidecar; LlavaError where a neighbour has the same claim to it."""
        target = os.path.abspath(self.output.target(item))
        if item.clash:
            shown = f"its caption {os.path.basename(target)} with {item.clash}"
            raise LlavaError(f"{item.shown}: would share {shown}")
        shown = os.path.abspath(item.shown)
        root = str(self.output.root).rstrip("/\\") + os.sep
        name = shown[len(root) :] if shown.startswith(root) else shown
        return Place(name, os.fsencode(target), target)

    def bare(self, folder: Path, below: Path, names: list[str]) -> list[str]:
        """Those without a sidecar."""
        output = self.output
        try:
            there = set(os.listdir(folder if output.out is None else output.out / below))
        except FileNotFoundError:  # nothing was written to it yet
            return names
        except OSError:  # whatever it is, it is said of each picture in its turn
            return []
        suffix = f".{output.format}"
        return [name for name in names if os.path.splitext(name)[0] + suffix not in there]

    def caption(self, item: Item) -> str | None:
        """What the sidecar says."""
        return self.output.caption(self.output.target(item))

    def store(self, item: Item, caption: str, data: bytes, *, replace: bool) -> bool:
        """Journal, sidecar, journal."""
        name = self.place(item).name
        target = self.output.target(item).absolute()
        content = self.output.content(target, caption)
        self.journal.ready(name, caption, target, content)
        try:
            written = self.output.write(target, content, replace=replace)
        except (OSError, LlavaError):
            self.journal.withdraw(name)
            raise
        self.journal.done(name, caption)
        return written

    def publish(self, *, whole: bool) -> None:
        """Everything is in its place."""


class FileKeeper:
    """Files of many captions; the journal is the truth until they are written."""

    def __init__(self, output: Table | Shards, journal: Journal) -> None:
        self.output = output
        self.journal = journal
        self.one_line = output.one_line

    def begin(self, fingerprint: str) -> bool:
        """Read what the file holds into the journal."""
        resumed = self.journal.begin(fingerprint)
        self.journal.keep(self.output.read())
        return resumed

    def place(self, item: Item) -> Place:
        """The picture's name in the file."""
        name = self.output.name(item)
        return Place(name, os.fsencode(name), str(self.output.path))

    def bare(self, folder: Path, below: Path, names: list[str]) -> list[str]:
        """Those that neither file nor journal knows."""
        one = names[0]
        try:
            called = self.output.name(Item(folder / one, (below / one).as_posix()))
        except LlavaError:
            return []
        head = called[: len(called) - len(one)]
        return [name for name in names if not self.journal.caption(head + name)]

    def caption(self, item: Item) -> str | None:
        """What file and journal say."""
        return self.journal.caption(self.output.name(item)) or None

    def store(self, item: Item, caption: str, data: bytes, *, replace: bool) -> bool:
        """The journal keeps it until the file is written."""
        self.output.place(item, data)
        self.journal.done(self.output.name(item), caption)
        return True

    def publish(self, *, whole: bool) -> None:
        """Write the file; shards, which hold the pictures, only at the end."""
        if whole or isinstance(self.output, Table):
            self.output.publish(self.journal.captioned())


class Rehearsal:
    """Knows what a keeper knows and keeps nothing."""

    def __init__(self, keeper: SidecarKeeper | FileKeeper) -> None:
        self._keeper = keeper
        self.journal = keeper.journal
        self.one_line = keeper.one_line

    def begin(self, fingerprint: str) -> bool:
        """As the real run would, on a copy of the journal."""
        resumed = self.journal.begin(fingerprint)
        if isinstance(self._keeper, FileKeeper):
            self.journal.keep(self._keeper.output.read())
        return resumed

    def place(self, item: Item) -> Place:
        """Where it would go."""
        return self._keeper.place(item)

    def bare(self, folder: Path, below: Path, names: list[str]) -> list[str]:
        """As the real run would look for them."""
        return self._keeper.bare(folder, below, names)

    def caption(self, item: Item) -> str | None:
        """What is there."""
        return self._keeper.caption(item)

    def store(self, item: Item, caption: str, data: bytes, *, replace: bool) -> bool:
        """Not here."""
        return True

    def publish(self, *, whole: bool) -> None:
        """Not here."""
