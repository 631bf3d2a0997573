"""What a shell is offered while somebody types: models, pictures, the words of an option.

Runs at every press of TAB, so it reads folders and one small table, and imports no library.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import click
from click.shell_completion import CompletionItem

Items = list["CompletionItem[str]"]
PICTURES = (
    ".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif",
)  # fmt: skip
_MOST = 500
"""A folder of 100,000 pictures is not offered whole."""


def models(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    """Aliases, models in the Hub's cache, .gguf files and folders."""
    from llava_cli.errors import UsageError
    from llava_cli.models import aliases
    from llava_cli.models.resolve import BUNDLED

    items = {BUNDLED: "comes with llava"}
    items |= {name: entry.about for name, entry in aliases.package_aliases().items()}
    try:
        items |= {name: f"= {ref}" for name, ref in aliases.user_aliases().items()}
    except UsageError:  # a broken file: its own commands say so
        pass
    items |= dict.fromkeys(_cached_repos(), "on this disk")
    named = [
        CompletionItem(name, help=about)
        for name, about in items.items()
        if name.startswith(incomplete)
    ]
    return named + paths(incomplete, (".gguf",))


def pictures(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    """Picture files, and folders that may hold some."""
    return paths(incomplete, PICTURES)


def captioned(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    """What `llava caption` takes: folders, pictures, tars."""
    return paths(incomplete, (*PICTURES, ".tar"))


def metavar_words(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    """The words that an option's help names: auto|cpu|cuda."""
    words = (param.metavar or "").split("|") if isinstance(param, click.Option) else []
    plain = (word for word in words if word.islower())
    return [CompletionItem(word) for word in plain if word.startswith(incomplete)]


def paths(incomplete: str, suffixes: Iterable[str]) -> Items:
    """Files with one of the endings, and folders, that go on from what was typed."""
    typed, slash, start = incomplete.rpartition("/")
    folder = Path(f"{typed}{slash}" or ".").expanduser()
    wanted = tuple(suffixes)
    found = []
    for entry in _entries(folder):
        name = entry.name
        if not name.startswith(start) or (name.startswith(".") and not start.startswith(".")):
            continue
        if "\n" in name or "," in name:  # the shells' scripts divide lines at these
            continue
        try:
            is_folder = entry.is_dir()
        except OSError:
            continue
        if is_folder or name.lower().endswith(wanted):
            found.append(f"{typed}{slash}{name}" + ("/" if is_folder else ""))
            if len(found) >= _MOST:
                break
    return [CompletionItem(name, type="path") for name in sorted(found)]


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except OSError:
        return


def _cached_repos() -> Iterator[str]:
    """Hub ids of models in the cache, without the Hub's library."""
    home = os.environ.get("HF_HOME") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface"
    )
    root = Path(os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub")).expanduser()
    for entry in _entries(root):
        if entry.name.startswith("models--") and Path(entry.path, "snapshots").is_dir():
            yield entry.name.removeprefix("models--").replace("--", "/")
