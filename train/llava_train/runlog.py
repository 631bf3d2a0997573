"""What a run writes about itself: a line a step, and what it was made of.

`StepLog` is a line of RUN/log.jsonl, `provenance` the content of RUN/run.json: versions, revision
of the source, command, data. Not here: weights and state (`checkpoint.py`).
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import llava_cli
from llava_cli.errors import LlavaError

_PACKAGES = ("torch", "transformers", "peft", "tokenizers", "safetensors", "numpy", "pillow")


@dataclass(frozen=True)
class StepLog:
    """One line of RUN/log.jsonl."""

    step: int
    """Steps done, this one included."""
    loss: float
    """Mean over the batch's answer tokens, before the step."""
    lr: float
    tokens: int
    answer_tokens: int
    grad_norm: float
    """Before it is clipped."""
    seconds: float
    data_wait: float = 0.0
    """Seconds that the step waited for its batch, not part of `seconds`."""
    flops: float = 0.0
    """Of the step's samples, see `flops.py`."""
    mfu: float | None = None
    """Share of the devices' peak; None where it is not known."""


class Log:
    """RUN/log.jsonl; lines after the step resumed from are dropped."""

    def __init__(self, path: Path, after: int) -> None:
        kept = []
        if after and path.is_file():
            for text in path.read_text("utf-8").splitlines():
                try:
                    if json.loads(text)["step"] <= after:
                        kept.append(text + "\n")
                except (ValueError, KeyError, TypeError):
                    continue  # a line cut short by a kill
        aside = path.with_name(f".{path.name}-writing")
        aside.write_text("".join(kept), "utf-8")
        aside.replace(path)
        self._file = path.open("a", encoding="utf-8")

    def write(self, line: Any) -> None:
        """Append a line, at once; a full disk is one clear error."""
        try:
            self._file.write(json.dumps(asdict(line)) + "\n")
            self._file.flush()
        except OSError as error:
            raise LlavaError(
                f"{self._file.name} cannot be written: {error.strerror}",
                "make room; the same command goes on after the last checkpoint",
            ) from error

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self._file.close()
        except OSError:  # said by `write` already
            pass


def provenance(data: Sequence[Path], images: Path | None, world: int) -> dict[str, Any]:
    """What a run was made of, for people and for a later look."""
    versions = {"llava": llava_cli.__version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "versions": versions,
        "git": _revision(Path(llava_cli.__file__).parent),
        "machine": f"{platform.system()} {platform.machine()}",
        "processes": world,
        "command": sys.argv,
        "data": [str(path.resolve()) for path in data],
        "images": None if images is None else str(images.resolve()),
    }


def _revision(folder: Path) -> str | None:
    """The commit of a checkout of this package, with `+changes` where it was edited."""
    command = ["git", "-C", str(folder), "describe", "--always", "--abbrev=40"]
    command += ["--match=", "--dirty=+changes"]
    try:
        inside = subprocess.run(
            ["git", "-C", str(folder), "ls-files", "--error-unmatch", "__init__.py"],
            capture_output=True, timeout=10, check=False,
        )  # fmt: skip
        if inside.returncode:  # installed into somebody else's checkout
            return None
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None
