"""One file from the Hub into the cache: resumed where it stopped, checked before it counts.

huggingface_hub (2.4) begins anew after every interruption and does not compare checksums on this
way, so the bytes are fetched here, with its session, its headers and its lock. A part that came
stays as `CHECKSUM.incomplete`, the name by which `hf cache prune` knows it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from llava_cli.errors import ModelInvalid
from llava_cli.models import cache
from llava_cli.models.listing import RemoteFile, patiently, quiet_hub, refusal_passes
from llava_cli.models.refusals import explained

OnBytes = Callable[[int], None]
"""Told how many bytes of the file are there, each time there are more (or, after damage, fewer)."""
WAITS_S = (0.2, 0.5, 1.0, 2.0, 4.0)
"""Between attempts that bring not one byte; every byte that comes starts them over."""


def fetch_blob(repo: str, commit: str, file: RemoteFile, on_bytes: OnBytes) -> Path:
    """Have a file's content among the repository's blobs; its path.

    Raises ModelNotFound where the Hub does not give it, ModelInvalid where what it gives is not
    the file that it announced.
    """
    from huggingface_hub.utils._fixes import WeakFileLock

    folder = cache.repo_folder(repo)
    blob = folder / "blobs" / file.checksum
    lock = cache.root() / ".locks" / folder.name / f"{file.checksum}.lock"
    with cache.writing(repo):
        blob.parent.mkdir(parents=True, exist_ok=True)
        lock.parent.mkdir(parents=True, exist_ok=True)
        with quiet_hub(), WeakFileLock(lock):
            if blob.is_file() and blob.stat().st_size == file.size:
                return blob  # another process was faster
            part = blob.with_name(f"{blob.name}.incomplete")
            _complete(repo, commit, file, part, on_bytes)
            part.replace(blob)
    return blob


def fetch_into(
    folder: Path, repo: str, commit: str, file: RemoteFile, on_bytes: OnBytes, kind: str
) -> Path:
    """Have a file in a person's folder, under its own name once it is whole and right; its path.

    Until then a part lies beside, hidden, from which the next call goes on. kind: model or dataset.
    """
    from huggingface_hub.utils._fixes import WeakFileLock

    target = folder / file.name
    part = target.with_name(f".{target.name}.{file.checksum[:16]}.incomplete")
    lock = cache.root() / ".locks" / "llava-folders" / f"{file.checksum}.lock"
    target.parent.mkdir(parents=True, exist_ok=True)
    lock.parent.mkdir(parents=True, exist_ok=True)
    with quiet_hub(), WeakFileLock(lock):
        _complete(repo, commit, file, part, on_bytes, kind)
        part.replace(target)
    return target


def _complete(
    repo: str, commit: str, file: RemoteFile, part: Path, on_bytes: OnBytes, kind: str = "model"
) -> None:
    """Fetch what is missing of a part, and check the whole; old bytes that are bad go once."""
    resumed = part.is_file() and part.stat().st_size > 0
    for again in (resumed, False):
        _fill(repo, commit, file, part, on_bytes, kind)
        found = cache.checksum(part, file.checksum)
        if found == file.checksum:
            return
        part.unlink()
        on_bytes(0)
        if not again:
            raise ModelInvalid(
                f"{file.name} of {repo} arrived damaged: its checksum is {found[:12]}…, "
                f"not {file.checksum[:12]}…",
                "try again; if it stays so, something between here and the Hub changes the file",
            )


def _fill(
    repo: str, commit: str, file: RemoteFile, part: Path, on_bytes: OnBytes, kind: str
) -> None:
    """Append to the part until it is as long as the file."""
    waits = iter(WAITS_S)
    with explained(repo, commit, kind), part.open("ab") as out:
        if out.seek(0, os.SEEK_END) > file.size:
            _restart(out)
        on_bytes(out.tell())
        while (before := out.tell()) < file.size:
            try:
                patiently(lambda: _stream(repo, commit, file, out, on_bytes, kind), refusal_passes)
            except Exception as error:
                if not _passes(error):
                    raise
                if out.tell() > before:
                    waits = iter(WAITS_S)
                wait = next(waits, None)
                if wait is None:
                    raise
                time.sleep(wait)
        out.flush()
        os.fsync(out.fileno())


def _stream(
    repo: str, commit: str, file: RemoteFile, out: BinaryIO, on_bytes: OnBytes, kind: str
) -> None:
    """One request for what is missing; the Hub's signed address is asked for anew each time."""
    from huggingface_hub import constants, get_session, hf_hub_url
    from huggingface_hub.utils._headers import build_hf_headers
    from huggingface_hub.utils._http import hf_raise_for_status

    start = out.tell()
    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    url = hf_hub_url(repo, file.name, repo_type=kind, revision=commit)
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with get_session().stream(
        "GET", url, headers=headers, timeout=timeout, follow_redirects=True
    ) as response:
        if response.status_code == 416:  # what is here is no beginning of what is there
            _restart(out)
            raise _Cut(f"{file.name}: the part on this disk does not fit")
        hf_raise_for_status(response)
        if start and not _continues(response, start):
            _restart(out)
            on_bytes(0)
        for chunk in response.iter_bytes():
            if out.tell() + len(chunk) > file.size:
                _restart(out)
                raise ModelInvalid(
                    f"{file.name} of {repo} is longer than the Hub announced",
                    "try again later; something between here and the Hub changes the file",
                )
            out.write(chunk)
            on_bytes(out.tell())
    if out.tell() < file.size:
        raise _Cut(f"{file.name} ended after {out.tell()} of {file.size} bytes")


def _restart(out: BinaryIO) -> None:
    out.truncate(0)
    out.seek(0)


class _Cut(ConnectionError):
    """A transfer that ended early."""


def _continues(response: Any, start: int) -> bool:
    """Whether the answer is the rest that was asked for, not the whole file again."""
    told = str(response.headers.get("Content-Range", ""))
    return response.status_code == 206 and told.startswith(f"bytes {start}-")


def _passes(error: Exception) -> bool:
    """A cut line, silence, a refused connection: worth another attempt."""
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, _Cut):
        return True
    http_error = HfHubHTTPError.__bases__[0]
    return isinstance(error, http_error) and not isinstance(error, HfHubHTTPError)
