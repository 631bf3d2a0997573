"""How a model is loaded and run where the defaults are not wanted, and what was found to be best.

`llava doctor --tune` measures; what it finds is kept for this machine, this build of llama.cpp and
models of this kind. Not here: the measuring (`gguf/tune.py`).
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import secrets
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from llava_cli.models.files import ModelFiles

FILE = "tuning.json"


@dataclass(frozen=True)
class Tuning:
    """Settings of the GGUF engine; None leaves them to the engine."""

    ubatch: int | None = None
    """Positions computed in one go."""
    repack: bool | None = None
    """Rearrange the weights for this processor while loading."""
    mmap: bool | None = None
    """Read the weights where they lie in the file."""
    mlock: bool = False
    """Keep the weights from being swapped out."""
    gpu_layers: int | None = None
    """How many layers the device computes."""


@dataclass(frozen=True)
class Best:
    """What was measured to be quickest."""

    threads: int
    ubatch: int
    repack: bool
    flash_attention: bool

    def fill(self, tuning: Tuning) -> Tuning:
        """The settings that a person gave, completed."""
        ubatch = self.ubatch if tuning.ubatch is None else tuning.ubatch
        repack = self.repack if tuning.repack is None else tuning.repack
        return replace(tuning, ubatch=ubatch, repack=repack)


def remembered(home: Path, files: ModelFiles) -> Best | None:
    """What was found for this machine and such a model; None where nothing was, or not rightly."""
    found = _read(home).get(_key(files))
    if not isinstance(found, dict):
        return None
    wanted = {field.name: type(getattr(_ANY, field.name)) for field in fields(Best)}
    if any(type(found.get(name)) is not kind for name, kind in wanted.items()):
        return None
    if not (0 < found["threads"] <= 1024 and 0 < found["ubatch"] <= 8192):
        return None
    return Best(**{name: found[name] for name in wanted})


def remember(home: Path, files: ModelFiles, best: Best) -> Path:
    """Keep it beside what is known of other models; the file."""
    found = {**_read(home), _key(files): asdict(best)}
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    aside = home / f"{FILE}.{secrets.token_hex(8)}"
    with aside.open("x", encoding="utf-8") as file:
        json.dump(found, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(home / FILE)
    return home / FILE


def _read(home: Path) -> dict[str, Any]:
    try:
        found = json.loads((home / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _key(files: ModelFiles) -> str:
    """The machine, the build, and the kind and size of the model."""
    from importlib import metadata

    try:
        build = metadata.version("llama-cpp-python")
    except metadata.PackageNotFoundError:
        build = ""
    config = files.config
    kind = config.get("general.architecture"), config.get("general.file_type")
    parts = [_processor(), os.cpu_count(), build, *kind, files.path.stat().st_size]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:  # not Linux
        pass
    return f"{platform.machine()} {platform.processor()}"


_ANY = Best(threads=1, ubatch=1, repack=False, flash_attention=False)
