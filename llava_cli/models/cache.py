"""The Hub's cache on this disk: where files lie, and putting one there.

This is the cache of huggingface_hub, whose layout is documented and shared by its other users:
`models--ORG--NAME/blobs/CHECKSUM` holds contents, `snapshots/COMMIT/NAME` are links to them and
`refs/REVISION` holds a commit. No second store, and nothing here that goes to the network.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from llava_cli.errors import ModelInvalid, ModelNotFound

COMMIT = re.compile(r"[0-9a-f]{40}")
_CHUNK = 1 << 20


def root() -> Path:
    """The cache folder: HF_HUB_CACHE, or `hub` in HF_HOME."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser()


def repo_folder(repo: str) -> Path:
    """Where a model repository lies, whether it is there or not."""
    return root() / ("models--" + repo.replace("/", "--"))


def snapshot(repo: str, revision: str | None) -> Path | None:
    """The folder of a revision that was fetched earlier; None where there is none."""
    folder, name = repo_folder(repo), revision or "main"
    commit = name
    if not COMMIT.fullmatch(name):
        try:
            commit = (folder / "refs" / name).read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            return None
    found = folder / "snapshots" / commit
    return found if COMMIT.fullmatch(commit) and found.is_dir() else None


def file_names(folder: Path) -> list[str]:
    """Names of a snapshot's files as the repository writes them; dead links are none."""
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )


def safe_name(name: str) -> str:
    """A file name from the Hub, refused where it would leave its folder."""
    parts = PurePosixPath(name).parts
    bad = (
        not parts or name.startswith("/") or ".." in parts or re.search(r'[\\:\0-\x1f"<>|?*]', name)
    )
    if bad:
        raise ModelInvalid(
            f"the Hub names a file that no download may have: {name!r}", "do not use this model"
        )
    return name


def place(repo: str, commit: str, name: str, checksum: str) -> Path:
    """Show a content that is among the blobs under its name in a snapshot."""
    folder = repo_folder(repo)
    blob, link = folder / "blobs" / checksum, folder / "snapshots" / commit / name
    link.parent.mkdir(parents=True, exist_ok=True)
    aside = link.with_name(f".{link.name}.{uuid.uuid4().hex[:8]}")
    try:
        aside.symlink_to(os.path.relpath(blob, link.parent))
    except OSError as error:
        if error.errno in (errno.EACCES, errno.ENOSPC, errno.EROFS):
            raise
        blob.replace(link)  # no links on this disk: the snapshot has the file itself
        return link
    aside.replace(link)
    return link


def write_ref(repo: str, revision: str | None, commit: str) -> None:
    """Remember which commit a branch or tag stood for."""
    name = revision or "main"
    if COMMIT.fullmatch(name):
        return
    ref = repo_folder(repo) / "refs" / safe_name(name)
    ref.parent.mkdir(parents=True, exist_ok=True)
    aside = ref.with_name(f".{ref.name}.{uuid.uuid4().hex[:8]}")
    aside.write_text(commit, encoding="ascii")
    aside.replace(ref)


def checksum(path: Path, like: str) -> str:
    """A file's checksum in the form of another: SHA-256, or git's SHA-1 of a blob."""
    with path.open("rb") as file:
        if len(like) == 64:
            digest = hashlib.sha256()
        else:
            size = os.fstat(file.fileno()).st_size
            digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def writing(repo: str) -> Iterator[None]:
    """Failures to write the cache, explained; use around everything that writes."""
    from huggingface_hub import constants

    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise disk_full(repo) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            where = error.filename or constants.HF_HUB_CACHE
            raise ModelNotFound(
                f"the model cache cannot be written: {where} ({error.strerror})",
                "set HF_HOME to a folder that you can write to",
            ) from error
        raise


def disk_full(repo: str, needed: str = "") -> ModelNotFound:
    """There is no room for a model."""
    wants = f" needs {needed} and" if needed else ""
    return ModelNotFound(
        f"the disk is full: {repo}{wants} could not be stored in {root()}",
        "free some space (see llava ls, llava rm), or set HF_HOME to a larger disk",
    )
