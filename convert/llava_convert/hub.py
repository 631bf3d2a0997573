"""Sources from the Hugging Face Hub, and results to it, through huggingface_hub.

A repository's folder is fetched into the Hub's cache with all that a conversion reads: safetensors
where there are any, else torch's .bin files, which are only ever read as tensors. Not here: models
that answer (`llava_cli.models`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from llava_cli.errors import LlavaError, ModelNotFound, UsageError

HUB_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^\s:@]+))?")
_PICKLES = ["pytorch_model*.bin", "adapter_model.bin"]
_SMALL = ("*.json", "*.model", "*.jinja", "*.txt", "README.md")


def is_hub_id(reference: str) -> bool:
    """Whether a reference is meant as org/name and not as a path."""
    meant = not reference.startswith((".", "/", "~")) and not Path(reference).exists()
    return meant and HUB_ID.fullmatch(reference) is not None


def fetch_folder(reference: str, *, offline: bool, wanted: Sequence[str] | None = None) -> Path:
    """The files of a Hub id on this disk; only those that are `wanted`, or all that are read."""
    match = HUB_ID.fullmatch(reference)
    if match is None:
        raise ModelNotFound(f"{reference} is no folder and no Hub id (org/name)")
    from huggingface_hub import HfApi, constants, snapshot_download

    repo, revision = match["repo"], match["revision"]
    local = offline or bool(constants.HF_HUB_OFFLINE)
    with _hub_errors(repo):
        if local:
            return Path(snapshot_download(repo, revision=revision, local_files_only=True))
        if wanted is not None:
            return Path(snapshot_download(repo, revision=revision, allow_patterns=list(wanted)))
        names = HfApi().list_repo_files(repo, revision=revision)
        read = [*_SMALL, "mm_projector.bin", "non_lora_trainables.bin"]
        has_safetensors = any(name.endswith(".safetensors") for name in names)
        read += ["*.safetensors"] if has_safetensors else _PICKLES
        return Path(snapshot_download(repo, revision=revision, allow_patterns=read))


def check_target(repo: str, *, offline: bool) -> None:
    """Refuse early what could not be uploaded at the end."""
    from huggingface_hub import constants

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise UsageError(f"{repo!r} is no Hub id", "write it as org/name")
    if offline or constants.HF_HUB_OFFLINE:
        raise UsageError("--push-to-hub needs the network", "leave out --offline")


def push(repo: str, folder: Path, files: Sequence[Path]) -> str:
    """Upload these files, and nothing else of the folder; gives the address of the repository."""
    from huggingface_hub import HfApi

    api = HfApi()
    with _hub_errors(repo):
        url = api.create_repo(repo, exist_ok=True)
        api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            allow_patterns=[str(file.relative_to(folder)) for file in files],
            commit_message="Converted by llava convert",
        )
    return str(url)


@contextmanager
def _hub_errors(repo: str) -> Iterator[None]:
    """What the Hub or the network refuses, in two lines."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    # the base classes are the HTTP library's own error, whichever it is, and OSError
    failures: tuple[type[Exception], ...] = (*HfHubHTTPError.__bases__, HFValidationError, OSError)
    try:
        yield
    except LocalEntryNotFoundError as error:
        raise ModelNotFound(
            f"{repo} is not on this disk, and the Hub cannot be asked",
            "go online to fetch it once, or give a folder",
        ) from error
    except failures as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            raise ModelNotFound(
                f"the Hub refuses {repo}: it is private, gated or not yours",
                "log in: hf auth login",
            ) from error
        if status == 404:
            raise ModelNotFound(f"there is no {repo} on the Hub", "check the name") from error
        raise LlavaError(f"the Hub did not take part with {repo}: {error}", "try again") from error
