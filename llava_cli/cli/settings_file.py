"""Changing a settings file by hand's standards: one line at a time, comments and order kept."""

from __future__ import annotations

import difflib
import json
import os
import re
from pathlib import Path

from llava_cli.cli.settings import SETTINGS, checked, read_table
from llava_cli.errors import UsageError


def write(path: Path, name: str, value: str | None) -> None:
    """Set a setting in a file, or take it away (None); UsageError where the value is none."""
    if name not in SETTINGS:
        near = difflib.get_close_matches(name, SETTINGS, n=1)
        meant = f"did you mean {near[0]}?" if near else f"known: {', '.join(SETTINGS)}"
        raise UsageError(f"there is no setting {name!r}", meant)
    text = ""
    if path.is_file():
        check(path)  # a broken file is not made worse
        text = path.read_text(encoding="utf-8")
    line = None
    if value is not None:
        parsed = checked(SETTINGS[name], value, name)
        line = f"{name} = {parsed if isinstance(parsed, int) else json.dumps(parsed)}\n"
    _replace(path, _changed(text, name, line))


def create(path: Path) -> None:
    """A file with every setting as a comment, where there is none."""
    if path.exists():
        return
    lines = [f"# {s.name} =  # {s.expected}\n" for s in SETTINGS.values()]
    _replace(
        path,
        "# Settings of llava; `llava config show --origin` says what counts.\n" + "".join(lines),
    )


def check(path: Path) -> None:
    """UsageError where the file is no TOML, or says something that is no setting or no value."""
    for name, value in read_table(path).items():
        checked(SETTINGS[name], value, f"{path}: {name}")


def _changed(text: str, name: str, line: str | None) -> str:
    """The text with this line in place of the setting's own; every setting is one line of TOML."""
    own = re.compile(rf"""^[ \t]*(["']?){re.escape(name)}\1[ \t]*=.*(?:\n|\Z)""", re.MULTILINE)
    if own.search(text):
        return own.sub(lambda _: line or "", text, count=1)
    gap = "" if not text or text.endswith("\n") else "\n"
    return text + gap + (line or "")


def _replace(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with aside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
