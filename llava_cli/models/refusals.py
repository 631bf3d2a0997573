"""Every way in which the Hub fails to give a model -> one `ModelNotFound` with a remedy."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

from llava_cli.errors import ModelNotFound


class Unreachable(ModelNotFound):
    """No answer from the Hub: what is on this disk may still do."""


@contextlib.contextmanager
def explained(repo: str, revision: str | None, kind: str = "model") -> Iterator[None]:
    """Turn what huggingface_hub and its HTTP library raise into our own errors."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    # the base classes are the HTTP library's own error, whichever it is, and OSError
    foreign: tuple[type[Exception], ...] = HfHubHTTPError.__bases__
    http_error = next(base for base in foreign if not issubclass(base, OSError))
    try:
        yield
    except HfHubHTTPError as error:
        raise refused(repo, revision, error, kind) from error
    except HFValidationError as error:
        raise ModelNotFound(
            f"{repo!r} cannot be a {kind}'s name on the Hub", "a Hub id is org/name"
        ) from error
    except (http_error, ConnectionError, TimeoutError) as error:
        raise unreachable(repo, error) from error
    except Exception as error:
        if type(error).__name__ not in ("InvalidURL", "OfflineModeIsEnabled"):
            raise
        raise unreachable(repo, error) from error


def unreachable(repo: str, error: BaseException) -> Unreachable:
    """There was no answer, or not a whole one."""
    from huggingface_hub import constants

    reason = " ".join(str(error).split()) or type(error).__name__
    return Unreachable(
        f"the Hub ({constants.ENDPOINT}) cannot be reached for {repo}: {reason}",
        "check the network (HF_ENDPOINT, proxy) and try again; with --offline only this disk "
        "is searched",
    )


def refused(repo: str, revision: str | None, error: Any, kind: str = "model") -> ModelNotFound:
    """The Hub answered, but not with the model (or another kind of repository)."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    status = getattr(error.response, "status_code", 0)
    said = (getattr(error.response, "headers", None) or {}).get("X-Error-Message", "")
    if isinstance(error, GatedRepoError):
        return ModelNotFound(
            f"{kind} {repo} is gated: its owner wants you to agree to its terms",
            f"agree at {constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{repo}, "
            "then log in: hf auth login (or set HF_TOKEN)",
        )
    if isinstance(error, RevisionNotFoundError):
        return ModelNotFound(
            f"{kind} {repo} has no revision {revision}", "check what follows the @"
        )
    if status == 401 and "Invalid credentials" in said:
        return ModelNotFound(
            "the Hub does not accept your access token",
            "log in again: hf auth login; or correct or unset HF_TOKEN",
        )
    if isinstance(error, RepositoryNotFoundError) or status in (401, 404):
        return ModelNotFound(
            f"there is no {kind} {repo} on the Hub, or it is private",
            f"check the name; for a private {kind} log in: hf auth login (or set HF_TOKEN)",
        )
    if status == 403:
        return ModelNotFound(
            f"the Hub forbids the download of {repo}" + (f": {said}" if said else ""),
            "log in with a token that may read it: hf auth login (or set HF_TOKEN)",
        )
    if status == 429:
        return ModelNotFound(
            f"the Hub gives nothing for now: too many requests ({repo})",
            f"try again {_after(error)}; a logged-in user may ask more often: hf auth login",
        )
    if status >= 500:
        return ModelNotFound(
            f"the Hub has a problem of its own (HTTP {status}) and did not give {repo}",
            "try again later",
        )
    reason = " ".join(str(error).split())
    return ModelNotFound(f"the Hub did not give {repo}: {reason}", "try again later")


def _after(error: Any) -> str:
    """When to come back, as the Hub says it."""
    seconds = wait_asked(error.response)
    return "later" if seconds is None else f"in {seconds} s"


def wait_asked(response: Any) -> int | None:
    """Seconds that the Hub wants us to wait: Retry-After, or the end of the rate limit."""
    headers = getattr(response, "headers", None) or {}
    after = headers.get("Retry-After", "").strip()
    if after.isdigit():
        return int(after)
    limit = re.search(r"r\s*=\s*0\s*;\s*t\s*=\s*(\d+)", headers.get("RateLimit", ""))
    return int(limit[1]) if limit else None
