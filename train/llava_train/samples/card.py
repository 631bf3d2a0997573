"""The card beside every output: where the data comes from and what was done to it.

`OUT.card.json` and `OUT.card.md` beside a file; `card.json` and `card.md` inside a folder.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llava_cli import __version__
from llava_train.samples.files import file_sha256, whole, write_json

Card = dict[str, Any]


def source(path: Path) -> Card:
    """A file that went in: its name, size and digest; a folder by its name."""
    if path.is_dir():
        return {"name": path.name, "files": sum(1 for _ in path.iterdir())}
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": file_sha256(path)}


def write_card(
    out: Path,
    title: str,
    content: Mapping[str, Any],
    *,
    folder: bool = False,
    dated: bool = True,
) -> None:
    """Both forms of a card for `out`; `folder` puts them inside.

    Without `dated` the same content gives the same bytes.
    """
    made = {"made_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())} if dated else {}
    card: Card = {"title": title, "made_by": f"llava {__version__}", **made, **content}
    data, text = (
        (out / "card.json", out / "card.md")
        if folder
        else (out.with_name(f"{out.name}.card.json"), out.with_name(f"{out.name}.card.md"))
    )
    write_json(data, card)
    with whole(text) as file:
        file.write(markdown(card))


def markdown(card: Card) -> str:
    """The card as a page: a heading, then a table a group of values."""
    lines = [f"# {card['title']}", ""]
    plain = {k: v for k, v in card.items() if k != "title" and not isinstance(v, dict | list)}
    lines += _table(plain)
    for key, value in card.items():
        if isinstance(value, dict):
            lines += ["", f"## {_words(key)}", ""]
            lines += _table(value) if value else ["none"]
        elif isinstance(value, list):
            lines += ["", f"## {_words(key)}", ""]
            lines += [f"- {_cell(item)}" for item in value] or ["none"]
    return "\n".join(lines) + "\n"


def _table(values: Mapping[str, Any]) -> list[str]:
    rows = [f"| {_words(key)} | {_cell(value)} |" for key, value in values.items()]
    return ["| | |", "|---|---|", *rows]


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{_words(key)}: {_cell(part)}" for key, part in value.items())
    if isinstance(value, list):
        return ", ".join(map(_cell, value))
    text = "–" if value is None else str(value)
    return " ".join(text.replace("|", "\\|").split())


def _words(key: str) -> str:
    return str(key).replace("_", " ")
