"""Models from the Hugging Face Hub, through huggingface_hub: into its cache, never a pickle.

First form: a repository's GGUF files (a text model and its mmproj) or its safetensors snapshot.
Every failure becomes a `ModelNotFound` that says whether to go online, log in or mend the cache.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llava_cli.errors import ModelInvalid, ModelNotFound

_SNAPSHOT = (".json", ".safetensors", ".model", ".jinja", ".txt")
_TEXT_QUANTS = ("q4_k_m", "q8_0", "q5_k_m", "q4_k_s", "q6_k", "f16", "bf16", "f32")
_MMPROJ_QUANTS = ("f16", "bf16", "f32", "q8_0")
"""Taken in this order where none is named."""


@dataclass(frozen=True)
class Fetched:
    """What a Hub id stands for on this disk."""

    path: Path
    """A text .gguf, or a snapshot folder."""
    mmproj: Path | None = None


def fetch(
    repo: str, revision: str | None, quant: str | None, engine: str, *, offline: bool
) -> Fetched:
    """A repository's model files, downloaded where they are not in the cache yet."""
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    # the base classes are the HTTP library's own error, whichever it is, and OSError
    failures: tuple[type[Exception], ...] = (*HfHubHTTPError.__bases__, HFValidationError, OSError)
    if offline or constants.HF_HUB_OFFLINE:
        return _cached(repo, revision, quant, engine, None)
    try:
        names = HfApi().list_repo_files(repo, revision=revision)
        wanted = choose(repo, names, quant, engine)
        folder = snapshot_download(repo, revision=revision, allow_patterns=list(wanted))
    except failures as error:
        if isinstance(error, HfHubHTTPError) and error.response is not None:
            raise _refused(repo, revision, error) from error
        if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise _unwritable(error) from error
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise ModelNotFound(
                f"the disk is full: {repo} could not be stored", "free some space, or set HF_HOME"
            ) from error
        return _cached(repo, revision, quant, engine, error)
    return _placed(Path(folder), wanted)


def choose(repo: str, names: Iterable[str], quant: str | None, engine: str) -> Sequence[str]:
    """Which of a repository's files make the model; before a download names are all there is."""
    names = list(names)
    ggufs = [name for name in names if name.lower().endswith(".gguf")]
    if engine != "torch" and ggufs:
        projectors = [name for name in ggufs if "mmproj" in name.lower()]
        texts = [name for name in ggufs if name not in projectors]
        if not projectors:
            raise ModelInvalid(
                f"{repo} has no mmproj, so the model cannot look at pictures",
                "choose a repository that has the model's mmproj too",
            )
        text = _pick(repo, texts, quant, _TEXT_QUANTS)
        if "-of-0" in text:
            raise ModelInvalid(
                f"{repo} has this model in several pieces, which is not supported",
                "choose a smaller quantisation: org/name:Q4_K_M",
            )
        return text, _pick(repo, projectors, None, _MMPROJ_QUANTS)
    if quant is not None:
        raise ModelNotFound(f"{repo} has no GGUF files", f"leave out :{quant}")
    if not any(name.endswith(".safetensors") for name in names):
        raise ModelNotFound(
            f"{repo} has no model that can be used: neither GGUF nor safetensors files",
            "choose another repository",
        )
    return [name for name in names if "/" not in name and name.endswith(_SNAPSHOT)]


def _pick(repo: str, names: Sequence[str], quant: str | None, order: Sequence[str]) -> str:
    """The file of the quantisation that was named, or of the first that there is."""
    for wanted in [quant.lower()] if quant else order:
        for name in sorted(names):
            if wanted in name.lower():
                return name
    if quant is None and names:
        return sorted(names)[0]
    there = ", ".join(sorted(names)) or "none"
    raise ModelNotFound(f"{repo} has no {quant or 'text'} model; its GGUF files: {there}")


def _cached(
    repo: str, revision: str | None, quant: str | None, engine: str, cause: Exception | None
) -> Fetched:
    """What an earlier download left in the cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repo, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, OSError, HFValidationError) as error:
        partial = getattr(error, "snapshot_path", None)  # a snapshot of chosen files only
        if partial is None:
            why = f"the Hub cannot be reached ({cause})" if cause else "llava is offline"
            raise ModelNotFound(
                f"model {repo} is not on this disk, and {why}",
                "check the network and the name, or go online to download it once",
            ) from error
        folder = Path(partial)
    names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    return _placed(folder, choose(repo, names, quant, engine))


def _placed(folder: Path, wanted: Sequence[str]) -> Fetched:
    if wanted[0].lower().endswith(".gguf"):
        return Fetched(folder / wanted[0], folder / wanted[1])
    return Fetched(folder)


def _refused(repo: str, revision: str | None, error: Exception) -> ModelNotFound:
    """The Hub answered, but not with the model."""
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, GatedRepoError):
        return ModelNotFound(
            f"model {repo} is gated: its owner wants you to agree to its terms",
            f"agree at https://huggingface.co/{repo}, then log in: hf auth login",
        )
    if isinstance(error, RevisionNotFoundError):
        return ModelNotFound(f"model {repo} has no revision {revision}", "check what follows the @")
    if isinstance(error, RepositoryNotFoundError):
        return ModelNotFound(
            f"there is no model {repo} on the Hub, or it is private",
            "check the name; for a private model log in: hf auth login",
        )
    return ModelNotFound(f"the Hub did not give {repo}: {error}", "try again later")


def _unwritable(error: OSError) -> ModelNotFound:
    from huggingface_hub import constants

    where = error.filename or constants.HF_HUB_CACHE
    return ModelNotFound(
        f"the model cache cannot be written: {where} ({error.strerror})",
        "set HF_HOME to a folder that you can write to",
    )
