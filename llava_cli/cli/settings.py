"""Settings and where each comes from: flag > environment > llava.toml > user config > default.

Only settings that differ by machine or project; what an answer should be is said by flags.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_cli.errors import UsageError

PROJECT_FILE = "llava.toml"
SIZE = re.compile(r"\s*(\d{1,15}(?:\.\d{1,6})?)\s*((?:[KMGT](?:i?B)?)?)\s*", re.IGNORECASE)
"""4G and 4GiB count in 1024s, 4GB in 1000s."""


@dataclass(frozen=True)
class Setting:
    """One setting: its name in TOML, its variable, its check."""

    name: str
    variable: str
    expected: str
    parse: Callable[[str], str | int | None]
    """Gives the value, or None for a text that is none."""
    default: str | int | None = None


@dataclass(frozen=True)
class Value:
    """A setting's value and who said so."""

    value: str | int | None
    origin: str
    """flag, environment VARIABLE, project FILE, user FILE, or default."""


def _text(value: str) -> str | None:
    return value.strip() or None


def _engine(value: str) -> str | None:
    return value if value in ("auto", "gguf", "torch", "server") else None


def _device(value: str) -> str | None:
    return value if re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", value) else None


def _threads(value: str) -> int | None:
    return int(value) if re.fullmatch(r"\d{1,4}", value) and 1 <= int(value) <= 1024 else None


def _size(value: str) -> str | None:
    return value.strip() if SIZE.fullmatch(value) else None


def size_bytes(value: str) -> int:
    """Bytes of a size like 500M, 4GiB, 1.5 GB or 1000."""
    match = SIZE.fullmatch(value)
    if match is None:
        raise UsageError(f"{value} is not a size", "write it like 4GiB")
    unit = match[2].upper()
    base = 1000 if unit.endswith("B") and len(unit) == 2 else 1024
    return int(float(match[1]) * base ** " KMGT".index(unit[:1] or " "))


def _switch(value: str) -> int | None:
    """1 or 0 for what people write to turn something on or off."""
    known = {"1": 1, "true": 1, "yes": 1, "on": 1, "0": 0, "false": 0, "no": 0, "off": 0}
    return known.get(value.strip().lower())


SETTINGS = {
    setting.name: setting
    for setting in (
        Setting("model", "LLAVA_MODEL", "an alias, a Hub id, a folder or a .gguf file", _text),
        Setting("engine", "LLAVA_ENGINE", "auto, gguf, torch or server", _engine, "auto"),
        Setting("device", "LLAVA_DEVICE", "auto, cpu, cuda, cuda:N or mps", _device, "auto"),
        Setting("threads", "LLAVA_THREADS", "a number of 1 to 1024", _threads),
        Setting("home", "LLAVA_HOME", "a folder", _text),
        Setting("cache_size", "LLAVA_CACHE_SIZE", "a size like 4GiB, or 0", _size, "4GiB"),
        Setting("server", "LLAVA_SERVER", "the address of a llava serve", _text),
        Setting("no_log", "LLAVA_NO_LOG", "true or false", _switch, 0),
    )
}


def resolve(name: str, flag: str | int | None = None) -> Value:
    """The value of one setting by precedence; UsageError where somebody wrote nonsense."""
    setting = SETTINGS[name]
    if flag is not None:
        return Value(checked(setting, flag, f"--{name}"), "flag")
    written = os.environ.get(setting.variable, "")
    if written.strip():
        origin = f"environment {setting.variable}"
        return Value(checked(setting, written, setting.variable), origin)
    for kind, path in (("project", project_file()), ("user", user_file())):
        table = read_table(path) if path is not None else {}
        if path is not None and name in table:
            value = checked(setting, table[name], f"{path}: {name}")
            return Value(_beside(path, name, value), f"{kind} {path}")
    default = str(default_home()) if name == "home" else setting.default
    return Value(default, "default")


def project_file() -> Path | None:
    """llava.toml of the working directory or the nearest folder above it."""
    try:
        here = Path.cwd()
    except OSError:  # the directory was removed under us
        return None
    candidates = (folder / PROJECT_FILE for folder in (here, *here.parents))
    return next((path for path in candidates if path.is_file()), None)


def user_file() -> Path | None:
    """The user's config.toml, if there is one."""
    path = user_file_path()
    return path if path.is_file() else None


def user_file_path() -> Path:
    """Where the user's config.toml belongs on this system (XDG on Linux)."""
    import platformdirs

    return platformdirs.user_config_path("llava", appauthor=False) / "config.toml"


def default_home() -> Path:
    """Where history and caches live unless LLAVA_HOME says otherwise."""
    import platformdirs

    return platformdirs.user_data_path("llava", appauthor=False)


def checked(setting: Setting, value: object, where: str) -> str | int | None:
    """A value that the setting can have, or a UsageError that says where it was written."""
    if isinstance(value, bool):
        value = str(value).lower()
    if isinstance(value, str | int):
        parsed = setting.parse(str(value))
        if parsed is not None:
            return parsed
    shown = value if isinstance(value, str) else repr(value)
    raise UsageError(f"{where}: {shown!s} is not {setting.expected}", f"give {setting.expected}")


def _beside(path: Path, name: str, value: str | int | None) -> str | int | None:
    """A relative path in a file means relative to that file, where it says it is a path (./x)."""
    if name in ("model", "home") and isinstance(value, str) and re.match(r"\.{1,2}[/\\]", value):
        return str(path.parent / value)
    return value


def read_table(path: Path) -> Mapping[str, Any]:
    """The settings that a file gives, not yet their values checked; UsageError for nonsense."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise UsageError(
            f"{path}: not valid TOML: {error}", "correct or remove the file"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path}: cannot be read: {error}", "correct or remove the file"
        ) from error
    for key in table:
        if key not in SETTINGS:
            near = difflib.get_close_matches(key, SETTINGS, n=1)
            meant = f"did you mean {near[0]}?" if near else f"known: {', '.join(SETTINGS)}"
            raise UsageError(f"{path}: unknown setting {key!r}", meant)
    return table
