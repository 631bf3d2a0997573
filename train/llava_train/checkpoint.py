"""The state of a run on disk: written aside, synced, renamed; read back to the same bits.

A checkpoint is a folder `checkpoints/step-N` with the trained weights under their names in memory
(safetensors), the optimizer and the random state (torch, read with weights_only), and `state.json`.
The data position is the step itself, because the data plan is a pure function of it. Weights that
are not trained are not in it: they come from the sources, whose digest is part of the identity.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llava_cli.errors import LlavaError, UsageError
from llava_train.sharding import gathered, split_like, split_state

_NAME = re.compile(r"step-(\d+)")
_WHAT = {"recipe": "another recipe", "data": "other data", "source": "another model"}


@dataclass(frozen=True)
class Identity:
    """What a run is made of; a run can only be continued as the same."""

    recipe: str
    data: str
    source: str
    about: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Of `recipe` and `data`: what to compare where the digests differ."""

    def refuse(self, state: Mapping[str, Any], place: Path) -> None:
        """Raise where `state` belongs to something else, with the difference."""
        for key, what in _WHAT.items():
            if state["identity"].get(key) == getattr(self, key):
                continue
            then = dict(state.get("about", {}).get(key, {}))
            now = dict(self.about.get(key, {}))
            changes = [
                f"{name}: {now.get(name)!r} now, {then.get(name)!r} then"
                for name in sorted(now.keys() | then.keys())
                if then and now.get(name) != then.get(name)
            ]
            shown = f" ({'; '.join(changes[:8])})" if changes else ""
            raise UsageError(
                f"{place} was made with {what}{shown}",
                "continue with the same, begin again with --resume never, or use another --output",
            )


class Saver:
    """Writes checkpoints, beside the next steps if wanted; one at a time."""

    def __init__(
        self, folder: Path, identity: Identity, keep: int, *, beside: bool, writes: bool = True
    ) -> None:
        """beside: in a thread. writes: False for a process that only gives its share."""
        self._writes = writes
        self._folder = folder
        self._identity = identity
        self._keep = keep
        self._pool = ThreadPoolExecutor(1, "llava-save") if beside else None
        self._last: Future[Path] | None = None

    def save(
        self, step: int, weights: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
    ) -> None:
        """Take the state after `step` steps and write it; raises what the one before met."""
        self.wait()
        tensors, rest = snapshot(weights, optimizer)
        if not self._writes:
            return
        arguments = (self._folder, step, tensors, rest, self._identity, self._keep)
        if self._pool is None:
            write(*arguments)
        else:
            self._last = self._pool.submit(write, *arguments)

    def wait(self) -> None:
        """Until what was taken is on the disk."""
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def close(self) -> None:
        """End the thread; what it still wrote is whole or not there."""
        if self._pool is not None:
            self._pool.shutdown(wait=True)


def snapshot(
    weights: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Copies in memory of everything that a checkpoint holds."""
    tensors = {name: _copy(weight) for name, weight in weights.items()}
    return tensors, {"optimizer": _copies(optimizer.state_dict()), "rng": _rng()}


def _copies(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return _copy(value)
    if isinstance(value, dict):
        return {key: _copies(item) for key, item in value.items()}
    return [_copies(item) for item in value] if isinstance(value, list) else value


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return gathered(tensor.detach()).to("cpu", copy=True).contiguous()


def write(
    folder: Path,
    step: int,
    tensors: Mapping[str, torch.Tensor],
    rest: Mapping[str, Any],
    identity: Identity,
    keep: int,
) -> Path:
    """Write the state after `step` steps; older ones beyond `keep` are removed."""
    from safetensors.torch import save_file

    aside = folder / f".writing-{step}"
    with _room(aside):
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        save_file(dict(tensors), aside / "weights.safetensors")
        torch.save(dict(rest), aside / "optimizer.pt")
        sizes = {path.name: path.stat().st_size for path in sorted(aside.iterdir())}
        digests = {key: getattr(identity, key) for key in _WHAT}
        about = {key: dict(value) for key, value in identity.about.items()}
        state = {"step": step, "identity": digests, "about": about, "files": sizes}
        (aside / "state.json").write_text(json.dumps(state, indent=2) + "\n", "utf-8")
        for path in (*aside.iterdir(), aside):
            _sync(path)
    final = folder / f"step-{step}"
    if final.exists():  # the same step of the same run
        shutil.rmtree(final)
    aside.rename(final)
    _sync(folder)
    for old in steps(folder)[:-keep]:
        shutil.rmtree(folder / f"step-{old}")
    return final


@contextmanager
def _room(aside: Path) -> Iterator[None]:
    """What cannot be written, on a full disk for one, is one clear error and leaves nothing."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        reason = getattr(error, "strerror", None) or str(error).split("\n")[0]
        raise LlavaError(
            f"the checkpoint {aside.parent} cannot be written: {reason}",
            "make room; the same command goes on after the last checkpoint",
        ) from error


def steps(folder: Path) -> list[int]:
    """The steps of the checkpoints there, ascending."""
    if not folder.is_dir():
        return []
    found = (_NAME.fullmatch(path.name) for path in folder.iterdir())
    return sorted(int(match[1]) for match in found if match)


def choose(folder: Path, resume: str) -> int:
    """The step to go on from: `auto`, `never` or a number; 0 is the beginning."""
    there = steps(folder)
    if resume == "never":
        shutil.rmtree(folder, ignore_errors=True)
        return 0
    if resume == "auto":
        return next((step for step in reversed(there) if _whole(folder / f"step-{step}")), 0)
    if not resume.isdecimal() or int(resume) not in there:
        known = ", ".join(map(str, there)) or "none"
        raise UsageError(f"no checkpoint of step {resume}", f"checkpoints: {known}")
    for later in there:
        if later > int(resume):  # they belong to the future that is now trained anew
            shutil.rmtree(folder / f"step-{later}")
    return int(resume)


def restore(
    folder: Path,
    step: int,
    weights: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    identity: Identity,
) -> None:
    """Put the state after `step` steps back; refused where the run is not the same."""
    from safetensors.torch import load_file

    place = folder / f"step-{step}"
    state = _state(place)
    identity.refuse(state, place)
    try:
        tensors = load_file(place / "weights.safetensors")
        rest: dict[str, Any] = torch.load(place / "optimizer.pt", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError) as error:
        raise LlavaError(f"{place} cannot be read: {error}", "use an earlier step") from error
    if tensors.keys() != weights.keys():
        raise UsageError(f"{place} holds other weights than are trained", "use --resume never")
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(split_like(tensors[name], weight))
    optimizer.load_state_dict(rest["optimizer"])
    split_state(optimizer)
    torch.set_rng_state(rest["rng"]["cpu"])
    if torch.cuda.is_available() and "cuda" in rest["rng"]:
        torch.cuda.set_rng_state_all(rest["rng"]["cuda"])


def _whole(place: Path) -> bool:
    """Whether the files are there in the size that they were written in."""
    try:
        sizes = _state(place).get("files", {})
        return all((place / name).stat().st_size == size for name, size in sizes.items())
    except (LlavaError, OSError):
        return False


def _state(place: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads((place / "state.json").read_text("utf-8"))
        state["identity"].keys()
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise LlavaError(f"{place} cannot be read: {error}", "use an earlier step") from error
    return state


def _rng() -> dict[str, Any]:
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def _sync(path: Path) -> None:
    """Onto the disk, so that a rename never outlives what it names."""
    if os.name == "nt" and path.is_dir():  # Windows opens no folders
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
