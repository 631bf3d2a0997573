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
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llava_cli.errors import LlavaError, UsageError

_NAME = re.compile(r"step-(\d+)")
_WHAT = {"recipe": "another recipe", "data": "other data", "source": "another model"}


@dataclass(frozen=True)
class Identity:
    """What a run is made of; a run can only be continued as the same."""

    recipe: str
    data: str
    source: str


def save(
    folder: Path,
    step: int,
    weights: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    identity: Identity,
    keep: int,
) -> Path:
    """Write the state after `step` steps; older ones beyond `keep` are removed."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f".writing-{step}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    tensors = {name: weight.detach().cpu().contiguous() for name, weight in weights.items()}
    save_file(tensors, aside / "weights.safetensors")
    torch.save({"optimizer": optimizer.state_dict(), "rng": _rng()}, aside / "optimizer.pt")
    state = {"step": step, "identity": vars(identity)}
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
        return there[-1] if there else 0
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
    for key, value in vars(identity).items():
        if state["identity"].get(key) != value:
            raise UsageError(
                f"{place} was made with {_WHAT[key]}",
                "continue with the same, begin again with --resume never, or use another --output",
            )
    try:
        tensors = load_file(place / "weights.safetensors")
        rest: dict[str, Any] = torch.load(place / "optimizer.pt", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError) as error:
        raise LlavaError(f"{place} cannot be read: {error}", "use an earlier step") from error
    if tensors.keys() != weights.keys():
        raise UsageError(f"{place} holds other weights than are trained", "use --resume never")
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(tensors[name])
    optimizer.load_state_dict(rest["optimizer"])
    torch.set_rng_state(rest["rng"]["cpu"])
    if torch.cuda.is_available() and "cuda" in rest["rng"]:
        torch.cuda.set_rng_state_all(rest["rng"]["cuda"])


def _state(place: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads((place / "state.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
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
