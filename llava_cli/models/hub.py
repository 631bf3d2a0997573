"""Models from the Hugging Face Hub: found in its cache, or fetched into it.

`find` looks on this disk only; `plan` asks the Hub what a model is made of and what is missing;
`download` fetches that. Never a pickle, never a file whose checksum is not the announced one.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from llava_cli.errors import LlavaError, ModelNotFound
from llava_cli.models import cache
from llava_cli.models.choose import choose
from llava_cli.models.folders import check_weights, is_hf_folder
from llava_cli.models.listing import Listing, RemoteFile, list_repo
from llava_cli.models.transfer import fetch_blob


@dataclass(frozen=True)
class HubModel:
    """What is wanted from the Hub."""

    repo: str
    """org/name."""
    revision: str | None = None
    """A branch, tag or commit; None is the repository's main branch."""
    quant: str | None = None
    """Of a GGUF model; None takes a good one."""
    engine: str = "auto"
    text: str | None = None
    """Known name of the text .gguf."""
    mmproj: str | None = None
    """Known name of its mmproj."""
    asked: str = ""
    """What the person wrote, where that is another name."""

    def chosen(self, names: list[str]) -> tuple[str, ...]:
        """Which of these files make this model."""
        return choose(self.repo, names, self.quant, self.engine, text=self.text, mmproj=self.mmproj)

    def __str__(self) -> str:
        if self.asked:
            return self.asked
        revision = f"@{self.revision}" if self.revision else ""
        return f"{self.repo}{revision}" + (f":{self.quant}" if self.quant else "")


@dataclass(frozen=True)
class Found:
    """What a Hub id stands for on this disk."""

    path: Path
    """A text .gguf, or a snapshot folder."""
    mmproj: Path | None = None


@dataclass(frozen=True)
class Plan:
    """What a download will fetch."""

    model: HubModel
    listing: Listing
    files: tuple[RemoteFile, ...]
    """All that the model needs."""
    missing: tuple[RemoteFile, ...]
    """Those that are not on this disk, or damaged."""

    @property
    def bytes(self) -> int:
        """Size of the whole model."""
        return sum(file.size for file in self.files)

    @property
    def missing_bytes(self) -> int:
        """What is still to come, parts that came before left out."""
        blobs = cache.repo_folder(self.model.repo) / "blobs"
        parts = (blobs / f"{file.checksum}.incomplete" for file in self.missing)
        there = sum(part.stat().st_size for part in parts if part.is_file())
        return max(sum(file.size for file in self.missing) - there, 0)


OnProgress = Callable[[RemoteFile, int], None]
"""Told of each file how many of its bytes are there."""
Consent = Callable[[Plan], None]
"""Asked before anything is fetched; raises where it must not be."""


def find(model: HubModel) -> Found | None:
    """The model as an earlier download left it; None where it is not complete."""
    folder = cache.snapshot(model.repo, model.revision)
    if folder is None:
        return None
    try:
        wanted = model.chosen(cache.file_names(folder))
        if not wanted[0].lower().endswith(".gguf"):
            check_weights(folder)
            if not is_hf_folder(folder):
                return None
    except LlavaError:
        return None
    return _placed(folder, wanted)


def plan(model: HubModel, *, check: bool = False) -> Plan:
    """Ask the Hub what the model is made of; `check` reads what is on this disk to its last byte.

    Raises ModelNotFound where the Hub has no such model or does not answer.
    """
    listing = list_repo(model.repo, model.revision)
    files = {file.name: file for file in listing.files}
    wanted = tuple(files[name] for name in model.chosen(list(files)))
    missing = tuple(file for file in wanted if not _is_there(listing, file, check))
    return Plan(model, listing, wanted, missing)


def download(plan: Plan, on_progress: OnProgress | None = None) -> Found:
    """Fetch what is missing; whatever ends it, the next call goes on where it stopped."""
    repo, commit = plan.model.repo, plan.listing.commit
    told = on_progress or _untold
    _check_room(plan)
    for file in plan.files:
        if file in plan.missing:
            fetch_blob(repo, commit, file, partial(told, file))
        else:
            told(file, file.size)
    with cache.writing(repo):
        for file in plan.files:
            if not _link(plan, file).is_file():
                cache.place(repo, commit, file.name, file.checksum)
        cache.write_ref(repo, plan.model.revision, commit)
    folder = cache.repo_folder(repo) / "snapshots" / commit
    return _placed(folder, tuple(file.name for file in plan.files))


def fetch(
    model: HubModel,
    *,
    offline: bool,
    consent: Consent | None = None,
    on_progress: OnProgress | None = None,
) -> Found:
    """The model from this disk; where it is not there yet, from the Hub."""
    from huggingface_hub import constants

    found = find(model)
    if found is not None:
        return found
    if offline or constants.HF_HUB_OFFLINE:
        raise ModelNotFound(
            f"model {model} is not on this disk, and llava is offline",
            f"go online to fetch it once: llava pull {model}",
        )
    needed = plan(model)
    if consent is not None and needed.missing:
        consent(needed)
    return download(needed, on_progress)


def _is_there(listing: Listing, file: RemoteFile, check: bool) -> bool:
    """Whether a file's content is in the cache; where it is damaged, it is taken out."""
    folder = cache.repo_folder(listing.repo)
    blob = folder / "blobs" / file.checksum
    link = folder / "snapshots" / listing.commit / file.name
    for path in (blob, link):
        if path.is_file() and path.stat().st_size == file.size:
            if not check or cache.checksum(path, file.checksum) == file.checksum:
                return True
            path.unlink()
    return False


def _untold(file: RemoteFile, there: int) -> None:
    """Nobody watches."""


def _check_room(plan: Plan) -> None:
    place = cache.root()
    while not place.exists() and place != place.parent:
        place = place.parent
    if shutil.disk_usage(place).free < plan.missing_bytes:
        raise cache.disk_full(plan.model.repo, f"{plan.missing_bytes / 1e9:.1f} GB")


def _link(plan: Plan, file: RemoteFile) -> Path:
    folder = cache.repo_folder(plan.model.repo)
    return folder / "snapshots" / plan.listing.commit / file.name


def _placed(folder: Path, wanted: tuple[str, ...]) -> Found:
    if wanted[0].lower().endswith(".gguf"):
        return Found(folder / wanted[0], folder / wanted[1])
    return Found(folder)
