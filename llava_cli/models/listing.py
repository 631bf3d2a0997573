"""What a repository on the Hub holds, asked for in one request."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from llava_cli.errors import ModelInvalid, ModelNotFound
from llava_cli.models.cache import COMMIT, safe_name
from llava_cli.models.refusals import explained, wait_asked

Result = TypeVar("Result")
RETRY_WAITS_S = (0.5, 1.0, 2.0)
"""Between attempts where the Hub is slow, overloaded or broken."""
LONGEST_WAIT_S = 10
"""A longer wait than this, asked for by the Hub, is the person's to decide."""
_TRANSIENT = (408, 429, 500, 502, 503, 504)
_CHECKSUM = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True)
class RemoteFile:
    """One file of a repository."""

    name: str
    size: int
    """Bytes."""
    checksum: str
    """SHA-256 of a large file, git's SHA-1 of a small one; also its name in the cache."""


@dataclass(frozen=True)
class Listing:
    """A repository at one commit."""

    repo: str
    commit: str
    files: tuple[RemoteFile, ...]
    license: str | None = None
    gated: bool = False


def list_repo(repo: str, revision: str | None, kind: str = "model") -> Listing:
    """Ask the Hub; every failure is a `ModelNotFound` with a remedy. kind: model or dataset."""
    from huggingface_hub import HfApi, constants

    def ask() -> Any:
        timeout = max(constants.HF_HUB_ETAG_TIMEOUT, 1)
        try:
            return HfApi().repo_info(
                repo, revision=revision, repo_type=kind, files_metadata=True, timeout=timeout
            )
        except (json.JSONDecodeError, TypeError, KeyError, AttributeError) as error:
            raise ModelNotFound(
                f"what answers at {constants.ENDPOINT} is no answer of a Hub",
                "check HF_ENDPOINT, or log in to the network you are in",
            ) from error

    with explained(repo, revision, kind), quiet_hub():
        info = patiently(ask)
    if not isinstance(info.sha, str) or not COMMIT.fullmatch(info.sha):
        raise ModelInvalid(f"the Hub names no commit of {repo}", "check HF_ENDPOINT")
    card = info.card_data
    return Listing(
        repo=repo,
        commit=info.sha,
        files=tuple(_file(repo, entry) for entry in info.siblings or ()),
        license=_text(getattr(card, "license_name", None)) or _text(getattr(card, "license", None)),
        gated=bool(info.gated),
    )


def patiently(
    attempt: Callable[[], Result], passes: Callable[[Exception], bool] | None = None
) -> Result:
    """Try again where the Hub asks to, or fails in a way that passes."""
    passes = passes or _failure_passes
    waits = iter(RETRY_WAITS_S)
    while True:
        try:
            return attempt()
        except Exception as error:
            wait = next(waits, None)
            asked = wait_asked(getattr(error, "response", None)) or 0
            if wait is None or asked > LONGEST_WAIT_S or not passes(error):
                raise
            time.sleep(max(wait, asked))


def refusal_passes(error: Exception) -> bool:
    """The Hub is overloaded or broken for the moment."""
    return getattr(getattr(error, "response", None), "status_code", 0) in _TRANSIENT


def _failure_passes(error: Exception) -> bool:
    """That, a cut line or silence; a refused connection would be refused again."""
    silent = type(error).__name__ in ("ReadTimeout", "RemoteProtocolError", "ReadError")
    return silent or refusal_passes(error)


@contextlib.contextmanager
def quiet_hub() -> Iterator[None]:
    """Without huggingface_hub's remarks about its retries: we say ourselves what failed."""
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    if before > logging.DEBUG or before == logging.NOTSET:  # HF_DEBUG wants them
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def _file(repo: str, entry: Any) -> RemoteFile:
    lfs = entry.lfs
    checksum = getattr(lfs, "sha256", None) or entry.blob_id
    size = getattr(lfs, "size", None) if lfs else entry.size
    if not isinstance(checksum, str) or not _CHECKSUM.fullmatch(checksum):
        raise ModelInvalid(
            f"the Hub gives no checksum of {entry.rfilename!r} in {repo}", "check HF_ENDPOINT"
        )
    if not isinstance(size, int) or size < 0:
        raise ModelInvalid(f"the Hub gives no size of {entry.rfilename!r} in {repo}", "try later")
    return RemoteFile(safe_name(entry.rfilename), size, checksum)


def _text(value: object) -> str | None:
    if isinstance(value, (list, tuple)):
        value = ", ".join(map(str, value))
    return value if isinstance(value, str) and value else None
