"""A judge behind an OpenAI-compatible endpoint: one request, its retries, its budget.

The official client waits and tries again after rate limits, time-outs and server errors; what is
left after that fails the one item. What no retry can mend (a wrong key, an unknown model) ends the
run. Not here: what a judge is asked, and how its reply is read.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from llava_cli.errors import LlavaError, MissingDependency, UsageError

Message = dict[str, str]
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class ItemFailed(Exception):
    """The judge gave no usable reply to one item."""


class BudgetSpent(Exception):
    """The requests or tokens that were allowed are used up."""


@dataclass(frozen=True)
class Reply:
    """What a judge said."""

    text: str
    model: str
    """As the endpoint names it; judges of other versions give other scores."""


@dataclass(frozen=True)
class Endpoint:
    """Where the judge is, and how patiently it is asked."""

    url: str
    model: str
    key_variable: str = "OPENAI_API_KEY"
    timeout_s: float = 120.0
    retries: int = 5
    """After rate limits, time-outs and server errors."""
    max_requests: int | None = None
    max_total_tokens: int | None = None

    def check(self, offline: bool) -> None:
        """Refuse what cannot work before anything is sent."""
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"{self.url}: no http(s) address", "like http://127.0.0.1:8080/v1")
        if offline and parts.hostname not in _LOOPBACK:
            raise UsageError(f"{self.url}: needs the network", "leave out --offline")
        if not os.environ.get(self.key_variable) and parts.hostname not in _LOOPBACK:
            raise UsageError(
                f"no key for {self.url}", f"put it into the variable {self.key_variable}"
            )


class Judge:
    """Asks one endpoint; safe to share between threads."""

    def __init__(self, endpoint: Endpoint) -> None:
        try:
            import openai
        except ModuleNotFoundError as error:
            raise MissingDependency(
                "asking a judge needs the openai client", "pip install 'llava-cli[eval]'"
            ) from error
        self._openai = openai
        self.endpoint = endpoint
        self._client = openai.OpenAI(
            base_url=endpoint.url,
            api_key=os.environ.get(endpoint.key_variable) or "none",
            timeout=endpoint.timeout_s,
            max_retries=endpoint.retries,
        )
        self._lock = threading.Lock()
        self.requests = 0
        self.tokens = 0

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def ask(self, messages: Sequence[Message], temperature: float, max_tokens: int) -> Reply:
        """One request. ItemFailed, BudgetSpent, or a LlavaError that concerns all items."""
        self._spend()
        try:
            answer: Any = self._client.chat.completions.create(
                model=self.endpoint.model,
                messages=list(messages),  # type: ignore[arg-type]
                temperature=temperature,
                max_tokens=max_tokens,
            )
        except (
            self._openai.AuthenticationError,
            self._openai.PermissionDeniedError,
            self._openai.NotFoundError,
        ) as error:
            raise LlavaError(
                f"{self.endpoint.url}: {_line(error)}",
                f"check --url, --judge-model and the key in {self.endpoint.key_variable}",
            ) from error
        except (self._openai.OpenAIError, ValueError) as error:
            raise ItemFailed(_line(error)) from error
        return self._read(answer)

    def _spend(self) -> None:
        limits = self.endpoint
        with self._lock:
            if limits.max_requests is not None and self.requests >= limits.max_requests:
                raise BudgetSpent(f"{limits.max_requests} requests")
            if limits.max_total_tokens is not None and self.tokens >= limits.max_total_tokens:
                raise BudgetSpent(f"{limits.max_total_tokens} tokens")
            self.requests += 1

    def _read(self, answer: Any) -> Reply:
        used = getattr(getattr(answer, "usage", None), "total_tokens", None)
        with self._lock:
            self.tokens += used if isinstance(used, int) and used > 0 else 0
        choices = getattr(answer, "choices", None)
        message = getattr(choices[0], "message", None) if choices else None
        text = getattr(message, "content", None)
        if not isinstance(text, str):
            raise ItemFailed("the reply has no text")
        model = getattr(answer, "model", None)
        return Reply(text, model if isinstance(model, str) and model else self.endpoint.model)


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300]
