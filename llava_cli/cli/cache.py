"""`llava cache`: what is kept between runs so that no picture is read twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from llava_cli.cli.groups import Command, LazyGroup
from llava_cli.cli.options import common

if TYPE_CHECKING:
    from llava_cli.cache import DiskCache

KINDS = {"picture": "a picture's features", "state": "a prompt, read up to its picture"}


@click.group(
    "cache",
    cls=LazyGroup,
    examples=(("llava cache ls", "what is kept"), ("llava cache clear", "remove it all")),
)
def cache() -> None:
    """Show or clear what is kept between runs.

    A large model takes seconds to read a picture, so what it made of it is kept: at most
    LLAVA_CACHE_SIZE (4GiB), what was used longest ago goes first. Nothing in it is needed.
    """


@cache.command("ls", cls=Command, examples=(("llava cache ls --json", "for a program"),))
def ls() -> None:
    """List what is kept, the last used first."""
    import time

    from llava_cli.terminal.documents import write_document
    from llava_cli.terminal.streams import write

    store = _store()
    entries = store.entries()
    total = sum(entry.bytes for entry in entries)
    if common().json:
        write_document(
            {
                "folder": str(store.folder),
                "limit": store.limit,
                "bytes": total,
                "entries": [
                    {"name": e.path.name, "kind": e.kind, "bytes": e.bytes, "used": e.used}
                    for e in entries
                ],
            }
        )
        return
    for entry in entries:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
        kind = KINDS.get(entry.kind, entry.kind)
        write(f"{entry.path.stem[-12:]}  {_mb(entry.bytes):>10}  {used}  {kind}\n")
    write(f"{len(entries)} entries, {_mb(total)} of {_mb(store.limit)} in {store.folder}\n")


@cache.command("clear", cls=Command, examples=(("llava cache clear", "remove all of it"),))
def clear() -> None:
    """Remove everything that is kept."""
    from llava_cli.terminal.documents import write_document
    from llava_cli.terminal.streams import write

    count, size = _store().clear()
    if common().json:
        write_document({"removed": count, "bytes": size})
        return
    write(f"removed {count} entries, {_mb(size)}\n")


def _store() -> DiskCache:
    from llava_cli.cache import DiskCache
    from llava_cli.cli.models import cache_folder
    from llava_cli.cli.settings import resolve, size_bytes
    from llava_cli.terminal.streams import note

    limit = size_bytes(str(resolve("cache_size").value))
    return DiskCache(cache_folder(), limit, report=note)


def _mb(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
