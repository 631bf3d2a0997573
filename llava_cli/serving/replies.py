"""What clients get: completions, streamed chunks, errors, in OpenAI's forms."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from llava_cli.engines.base import Stats
from llava_cli.errors import LlavaError, OutOfMemory
from llava_cli.serving.requests import BadRequest


@dataclass
class Reply:
    """One completion: what its parts have in common."""

    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, text: str, reason: str, stats: Stats) -> dict[str, Any]:
        """The one answer of a request that does not stream."""
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": None,
            "finish_reason": reason,
        }
        return {**self._head("chat.completion"), "choices": [choice], "usage": usage(stats)}

    def piece(self, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        """A piece of a streamed answer."""
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def last(self, stats: Stats) -> dict[str, Any]:
        """Counts, behind the pieces, for those who ask."""
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": usage(stats)}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def usage(stats: Stats) -> dict[str, Any]:
    """Counts; a picture's positions are prompt tokens, as everywhere."""
    prompt = stats.prompt_tokens + stats.image_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": stats.completion_tokens,
        "total_tokens": prompt + stats.completion_tokens,
        "prompt_tokens_details": {
            "cached_tokens": stats.prefix_tokens_reused,
            "image_tokens": stats.image_tokens,
        },
    }


def error_document(
    message: str, kind: str, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """The form of every error."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def of_bad_request(error: BadRequest) -> tuple[int, dict[str, Any]]:
    """Status and document for what a client did wrong."""
    return error.status, error_document(
        error.message, "invalid_request_error", error.param, error.code
    )


def of_engine(error: LlavaError) -> tuple[int, dict[str, Any]]:
    """Status and document for what the engine could not do."""
    message = f"{error.message} ({error.hint})" if error.hint else error.message
    if isinstance(error, OutOfMemory):
        return 503, error_document(message, "server_error", code="out_of_memory")
    if "tokens, but" in error.message or "context is full" in error.message:
        code = "context_length_exceeded"
        return 400, error_document(message, "invalid_request_error", "messages", code)
    return 500, error_document(message, "server_error")
