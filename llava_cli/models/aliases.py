"""Short names of models: those that come with the package (aliases.toml), and a person's own.

An own one stands for any model reference and goes before one of the package. Names are data:
nothing about a model is concluded from them.
"""

from __future__ import annotations

import json
import os
import re
import sys
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from llava_cli.errors import UsageError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_WRITTEN = re.compile(
    r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)(?:@(?P<revision>[^\s:@]+))?(?::(?P<quant>[\w.-]+))?"
)


@dataclass(frozen=True)
class Alias:
    """A model that the package knows by name."""

    name: str
    about: str
    engines: tuple[str, ...]
    """Engines that run it; the first is the one to take."""
    license: str
    gguf: str | None = None
    """Repository of its GGUF pair."""
    hf: str | None = None
    """Repository of its safetensors."""
    text: str | None = None
    """File of the text model in `gguf`, where names do not tell."""
    mmproj: str | None = None
    prompt_format: str | None = None
    gated: bool = False
    memory_gb: Mapping[str, int] = field(default_factory=dict)
    """Engine -> GB."""
    known_from: str = ""

    def repository(self, engine: str, quant: str | None) -> tuple[str, str]:
        """Where to get it for an engine (`auto` too), and the engine that is."""
        wanted = engine
        if engine == "auto":
            wanted = "gguf" if quant is not None and self.gguf else self.engines[0]
        repo = self.gguf if wanted == "gguf" else self.hf
        if repo is None:
            raise UsageError(
                f"{self.name} is not known in a form for the {wanted} engine",
                f"leave out --engine {wanted}",
            )
        return repo, wanted


@dataclass(frozen=True)
class Use:
    """An alias as somebody wrote it: `name[@revision][:quant]`."""

    alias: Alias
    revision: str | None
    quant: str | None


@cache
def package_aliases() -> Mapping[str, Alias]:
    """The package's own table."""
    path = Path(__file__).with_name("aliases.toml")
    table = _parse(path.read_text(encoding="utf-8"))
    found = {}
    for name, entry in table.items():
        found[name] = Alias(name=name, **{**entry, "engines": tuple(entry["engines"])})
    return found


def user_file() -> Path:
    """Where a person's own aliases lie."""
    import platformdirs

    return platformdirs.user_config_path("llava", appauthor=False) / "aliases.toml"


def user_aliases() -> dict[str, str]:
    """Name -> reference; UsageError where the file is not readable."""
    path = user_file()
    try:
        table = _parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path}: cannot be read: {error}", "correct or remove the file"
        ) from error
    for name, reference in table.items():
        if not isinstance(reference, str):
            raise UsageError(f"{path}: {name} is not a text", 'write NAME = "REFERENCE"')
    return table


def set_user_alias(name: str, reference: str | None) -> None:
    """Write one of the person's own aliases; None takes it away."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be an alias", "use letters, digits, dot, dash and underscore"
        )
    table = user_aliases()
    if reference is None:
        if name not in table:
            own = ", ".join(sorted(table)) or "none"
            raise UsageError(f"there is no alias {name} of your own", f"yours: {own}")
        del table[name]
    else:
        if reference == name:
            raise UsageError(f"the alias {name} would stand for itself", "name another model")
        table[name] = reference
    lines = (f"{json.dumps(key)} = {json.dumps(table[key])}\n" for key in sorted(table))
    path = user_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    with aside.open("w", encoding="utf-8") as file:
        file.write("# llava alias NAME REFERENCE writes this file\n" + "".join(lines))
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def expand(reference: str) -> str:
    """A person's own alias replaced by what it stands for; once, so that none runs in a ring."""
    return user_aliases().get(reference, reference)


def lookup(reference: str) -> Use | None:
    """The package's alias that a reference names."""
    match = _WRITTEN.fullmatch(reference)
    alias = package_aliases().get(match["name"]) if match else None
    if alias is None or match is None:
        return None
    return Use(alias, match["revision"], match["quant"])


def _parse(text: str) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    return tomllib.loads(text)
