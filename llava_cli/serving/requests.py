"""A chat completion request: checked field by field, then a conversation and how to sample.

Form: OpenAI's API reference, "Create chat completion". What is not supported is refused, never
ignored; fields that change nothing about the answer (user, metadata, store) are let pass.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

from llava_cli.conversation import Conversation
from llava_cli.engines.base import Sampling
from llava_cli.errors import LlavaError
from llava_cli.images import MAX_BYTES, Image, from_data_url

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
MAX_PICTURES = 32
MAX_MESSAGES = 1000
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "modalities": (["text"],),
}
"""Fields that are understood only with these values; null is always one of them."""


class BadRequest(Exception):
    """What a client sent wrong, for a 4xx answer."""

    def __init__(
        self, message: str, param: str | None = None, *, status: int = 400, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.status = status
        self.code = code


@dataclass(frozen=True)
class Asked:
    """A request that can be answered."""

    conversation: Conversation
    sampling: Sampling
    stream: bool
    include_usage: bool


@dataclass(frozen=True)
class Limits:
    """What one request may hold."""

    fetch: Callable[[str], bytes] | None = None
    """Gets a picture from a URL; None where that is not allowed."""
    pictures: int = MAX_PICTURES


def parse(body: bytes, model: str, sampling: Sampling, limits: Limits) -> Asked:
    """Decodes pictures, too: runs in a thread. Raises BadRequest."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise BadRequest("the body is not a JSON object")
    named = document.get("model")
    if named != model:
        raise BadRequest(
            f"there is no model {named!r} here; this server answers with {model!r}",
            "model",
            status=404,
            code="model_not_found",
        )
    for name, values in _NEUTRAL.items():
        if document.get(name) is not None and document[name] not in values:
            raise BadRequest(f"{name} is not supported", name, code="unsupported_parameter")
    options = document.get("stream_options")
    usage = isinstance(options, dict) and options.get("include_usage") is True
    return Asked(
        conversation=_conversation(document.get("messages"), limits),
        sampling=_sampling(document, sampling),
        stream=_boolean(document, "stream"),
        include_usage=usage,
    )


def _conversation(messages: Any, limits: Limits) -> Conversation:
    if not isinstance(messages, list) or not messages:
        raise BadRequest("messages must be a list with at least one message", "messages")
    if len(messages) > MAX_MESSAGES:
        raise BadRequest(f"more than {MAX_MESSAGES} messages", "messages")
    conversation = Conversation()
    pictures = 0
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            known = ", ".join(ROLES)
            raise BadRequest(f"{where}: role must be one of {known}", where)
        parts = _parts(message.get("content"), where, limits)
        role = ROLES[message["role"]]
        pictures += sum(isinstance(part, Image) for part in parts)
        if pictures > limits.pictures:
            raise BadRequest(f"more than {limits.pictures} pictures", where)
        if role != "user" and any(isinstance(part, Image) for part in parts):
            raise BadRequest(f"{where}: only user messages hold pictures", where)
        if role == "system" and number > 0:
            raise BadRequest(f"{where}: a system message comes first", where)
        conversation = conversation.add(role, *parts)  # type: ignore[arg-type]
    if not any(message.role == "user" for message in conversation.messages):
        raise BadRequest("there is no user message", "messages")
    return conversation


def _parts(content: Any, where: str, limits: Limits) -> list[str | Image]:
    if isinstance(content, str):
        return [_clean(content, where)]
    if not isinstance(content, list) or not content:
        raise BadRequest(f"{where}: content must be a text or a list of parts", where)
    parts: list[str | Image] = []
    for number, part in enumerate(content):
        at = f"{where}.content[{number}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            parts.append(_clean(part["text"], at))
        elif kind == "image_url":
            url = part.get("image_url")
            url = url.get("url") if isinstance(url, dict) else url
            if not isinstance(url, str):
                raise BadRequest(f"{at}: image_url needs a url", at)
            parts.append(_picture(url, at, limits))
        else:
            raise BadRequest(f"{at}: type must be text or image_url", at)
    return parts


def _picture(url: str, where: str, limits: Limits) -> Image:
    """A picture, decoded: what cannot be is the client's error, before any queue."""
    try:
        if re.match(r"https?://", url, re.IGNORECASE):
            if limits.fetch is None:
                raise BadRequest(
                    f"{where}: pictures are not fetched from URLs here; send a data: URL", where
                )
            return Image.from_bytes(limits.fetch(url), where, "url").loaded()
        if not url[:5].lower() == "data:":  # never a path on the server's disk
            raise BadRequest(f"{where}: give a data: URL", where)
        if len(url) > 2 * MAX_BYTES:
            raise BadRequest(f"{where}: is too large", where, status=413)
        return replace(from_data_url(url), source=where).loaded()
    except LlavaError as error:
        raise BadRequest(f"{error.message} ({error.hint})", where, code="invalid_image") from error


def _clean(text: str, where: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRequest(f"{where}: is not valid Unicode", where) from error
    return text


def _sampling(document: dict[str, Any], base: Sampling) -> Sampling:
    """The server's settings, changed by the request's."""
    changes: dict[str, Any] = {}
    for name, low, high in (("temperature", 0.0, 2.0), ("top_p", 0.0, 1.0)):
        value = document.get(name)
        if value is not None:
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise BadRequest(f"{name} must be a number", name)
            if not low <= value <= high or (name == "top_p" and value == 0):
                raise BadRequest(f"{name} must lie between {low} and {high}", name)
            changes[name] = float(value)
    for name, least in (("min_p", 0.0), ("repeat_penalty", 1e-6)):  # beside OpenAI's
        value = document.get(name)
        if value is not None:
            if isinstance(value, bool) or not isinstance(value, int | float) or value < least:
                raise BadRequest(f"{name} must be a number of at least {least}", name)
            changes[name] = float(value)
    top_k = document.get("top_k")
    if top_k is not None:
        if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 0:
            raise BadRequest("top_k must be a whole number of at least 0", "top_k")
        changes["top_k"] = top_k
    for name in ("max_tokens", "max_completion_tokens"):
        value = document.get(name)
        if value is not None:
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise BadRequest(f"{name} must be a whole number of at least 1", name)
            changes["max_tokens"] = min(value, 1_000_000)
    seed = document.get("seed")
    if seed is not None:
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise BadRequest("seed must be a whole number", "seed")
        changes["seed"] = seed % 2**63
    stop = document.get("stop")
    if stop is not None:
        stops = [stop] if isinstance(stop, str) else stop
        if not isinstance(stops, list) or not all(isinstance(s, str) and s for s in stops):
            raise BadRequest("stop must be a text or a list of texts", "stop")
        changes["stop"] = tuple(stops[:16])
    return _with_format(replace(base, **changes), document.get("response_format"))


def _with_format(sampling: Sampling, wanted: Any) -> Sampling:
    """JSON of any kind, or by a schema, where the engine can be held to it."""
    if wanted is None or (isinstance(wanted, dict) and wanted.get("type") == "text"):
        return sampling
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if kind == "json_object":
        schema: Any = {"type": "object"}
    elif kind == "json_schema" and isinstance(wanted.get("json_schema"), dict):
        schema = wanted["json_schema"].get("schema")
        if not isinstance(schema, dict):
            raise BadRequest("json_schema needs a schema", "response_format")
    else:
        known = "text, json_object or json_schema"
        raise BadRequest(f"response_format must be of type {known}", "response_format")
    if "schema" not in {field.name for field in fields(sampling)}:
        raise BadRequest("response_format is not supported by this engine", "response_format")
    changes: dict[str, Any] = {"schema": json.dumps(schema)}
    return replace(sampling, **changes)


def _boolean(document: dict[str, Any], name: str) -> bool:
    value = document.get(name, False)
    if value is not None and not isinstance(value, bool):
        raise BadRequest(f"{name} must be true or false", name)
    return bool(value)
