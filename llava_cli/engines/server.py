"""The engine of a `llava serve` that runs already, behind the `Engine` protocol.

Speaks HTTP to it and computes nothing; also answers from other servers of OpenAI's chat completion
form, as far as these understand pictures.
"""

from __future__ import annotations

import base64
import http.client
import json
import queue
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from llava_cli.conversation import Conversation, Message
from llava_cli.engines.base import Audience, ImageInfo, Sampling, Stats, Token
from llava_cli.errors import LlavaError, ModelNotFound, UsageError
from llava_cli.images import Image
from llava_cli.models.files import ModelFiles

DEFAULT_URL = "http://127.0.0.1:8080"
TOGETHER = 8
"""Requests at a time for `generate_batch`: the server answers them together."""
_CONNECT_S, _SILENCE_S = 30.0, 600.0
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class ServerEngine:
    """A connection to a server."""

    name = "server"
    device = "server"
    prompt_format = "server"

    def __init__(self, url: str, *, model: str | None = None, api_key: str | None = None) -> None:
        """Asks the server which model it has; `model` must be it where it is given."""
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"{url}: is no address of a server", f"like {DEFAULT_URL}")
        self.url = url.rstrip("/").removesuffix("/v1")
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        near = parts.hostname in _LOOPBACK  # a proxy would look for it on its own machine
        handlers = [urllib.request.ProxyHandler({})] if near else []
        self._opener = urllib.request.build_opener(*handlers)
        started = time.perf_counter()
        names = [str(found["id"]) for found in self._models()]
        self._load_s = time.perf_counter() - started
        if model is not None and model not in names:
            raise ModelNotFound(
                f"the server at {self.url} has no model {model}", f"it has: {', '.join(names)}"
            )
        reference = model or names[0]
        self.files = ModelFiles(reference=reference, format="gguf", path=Path(reference))

    def _models(self) -> list[dict[str, Any]]:
        with self._open("/v1/models", None, _CONNECT_S) as response:
            try:
                found = json.loads(response.read())["data"]
                return [{"id": model["id"]} for model in found] or [{"id": "default"}]
            except (ValueError, KeyError, TypeError) as error:
                raise LlavaError(
                    f"what answers at {self.url} is no server of this kind", "check the address"
                ) from error

    def generate(self, conversation: Conversation, sampling: Sampling) -> Iterator[Token]:
        """Stream the answer; ending the iteration early ends it on the server, too."""
        started = time.perf_counter()
        body = {
            "model": self.files.reference,
            "messages": [_message(message) for message in conversation.messages],
            "stream": True,
            "stream_options": {"include_usage": True},
            **_sampling(sampling),
        }
        first: float | None = None
        reason = ""
        usage: dict[str, Any] = {}
        with self._open("/v1/chat/completions", body, _SILENCE_S) as response:
            for event in _events(response, self.url):
                usage = event.get("usage") or usage
                for choice in event.get("choices") or ():
                    text = (choice.get("delta") or {}).get("content") or ""
                    reason = choice.get("finish_reason") or reason
                    if text:
                        first = first or time.perf_counter()
                        yield Token(text)
        if not reason:
            raise LlavaError(f"the server at {self.url} broke off its answer", "ask again")
        now = time.perf_counter()
        stats = _stats(
            usage, conversation, self._load_s, (first or now) - started, now - (first or now)
        )
        yield Token("", finish_reason="length" if reason == "length" else "stop", stats=stats)

    def generate_batch(
        self,
        conversations: Sequence[Conversation],
        sampling: Sampling,
        audience: Audience | None = None,
    ) -> Iterator[tuple[int, Token]]:
        """Several requests at a time; tokens as they come."""
        found: queue.Queue[tuple[int, Token | LlavaError]] = queue.Queue()
        stop = threading.Event()

        def ask(index: int) -> None:
            try:
                for token in self.generate(conversations[index], sampling):
                    found.put((index, token))
                    if stop.is_set():
                        return
            except LlavaError as error:
                found.put((index, error))

        pool = ThreadPoolExecutor(TOGETHER, thread_name_prefix="server")
        try:
            for index in range(len(conversations)):
                pool.submit(ask, index)
            left = len(conversations)
            while left:
                index, token = found.get()
                if isinstance(token, LlavaError):
                    raise token
                left -= token.finish_reason is not None
                yield index, token
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)

    def prompt_ids(self, conversation: Conversation) -> list[int | str]:
        """The server keeps them to itself."""
        raise LlavaError("a server does not tell its prompts' ids", "use --engine gguf or torch")

    def close(self) -> None:
        """Every request has a connection of its own: nothing is held."""

    def _open(self, path: str, body: dict[str, Any] | None, timeout: float) -> Any:
        """A response that is no error; LlavaError with the server's own words otherwise."""
        data = None if body is None else json.dumps(body).encode("utf-8", "replace")
        request = urllib.request.Request(self.url + path, data, self._headers)
        try:
            return self._opener.open(request, timeout=timeout)
        except urllib.error.HTTPError as error:
            with error:
                said = _error_text(error.read(100_000))
            if error.code in (401, 403):
                raise LlavaError(
                    f"the server at {self.url} wants its API key", "set LLAVA_API_KEY"
                ) from error
            raise LlavaError(
                f"the server at {self.url} answered {error.code}: {said or error.reason}",
                "see what the server says, or use another --engine",
            ) from error
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            reason = getattr(reason, "strerror", None) or reason
            raise LlavaError(
                f"no server answers at {self.url}: {reason}",
                "start one with: llava serve; or name another with LLAVA_SERVER",
            ) from error


def _events(response: Any, url: str) -> Iterator[dict[str, Any]]:
    """The documents of server-sent events."""
    try:
        for line in response:
            if not line.startswith(b"data:"):
                continue
            data = line[5:].strip()
            if data == b"[DONE]":
                return
            event = json.loads(data)
            if "error" in event:
                raise LlavaError(f"the server at {url}: {event['error'].get('message')}")
            yield event
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise LlavaError(
            f"the server at {url} broke off its answer: {error}", "ask again"
        ) from error


def _message(message: Message) -> dict[str, Any]:
    if not message.images:
        return {"role": message.role, "content": message.text}
    parts = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image_url", "image_url": {"url": _data_url(part)}}
        for part in message.content
    ]
    return {"role": message.role, "content": parts}


def _data_url(image: Image) -> str:
    """The picture as it is; without transparency where the background matters."""
    if image.background == "white" and image.kind != "memory":
        data = image.read()
    else:
        import io

        packed = io.BytesIO()
        image.open().save(packed, "PNG")
        data = packed.getvalue()
    return "data:image/png;base64," + base64.b64encode(data).decode("ascii")


def _sampling(sampling: Sampling) -> dict[str, Any]:
    """The request's fields; what the protocol has no field for is refused."""
    if sampling.top_logprobs > 0 or bool(getattr(sampling, "choices", None)):
        raise UsageError("a server gives no probabilities", "use --engine gguf or torch")
    fields: dict[str, Any] = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_tokens,
    }
    if sampling.stop:
        fields["stop"] = list(sampling.stop)
    if sampling.seed is not None:
        fields["seed"] = sampling.seed
    for name, neutral in (("top_k", 0), ("min_p", 0.0), ("repeat_penalty", 1.0)):
        if getattr(sampling, name) != neutral:
            fields[name] = getattr(sampling, name)
    schema = getattr(sampling, "schema", None)
    if schema is not None:
        wanted = {"name": "answer", "schema": json.loads(schema)}
        fields["response_format"] = {"type": "json_schema", "json_schema": wanted}
    return fields


def _stats(
    usage: dict[str, Any], conversation: Conversation, load_s: float, ttft_s: float, decode_s: float
) -> Stats:
    """Counts by the server, seconds as seen from here."""
    details = usage.get("prompt_tokens_details") or {}
    image_tokens = int(details.get("image_tokens") or 0)
    images = conversation.images
    each = image_tokens // len(images) if images else 0
    sizes = [(image.source, *image.open().size) for image in images]
    return Stats(
        prompt_tokens=int(usage.get("prompt_tokens") or 0) - image_tokens,
        image_tokens=image_tokens,
        completion_tokens=int(usage.get("completion_tokens") or 0),
        load_s=load_s,
        ttft_s=ttft_s,
        decode_s=decode_s,
        prefix_tokens_reused=int(details.get("cached_tokens") or 0),
        images=tuple(ImageInfo(source, w, h, each) for source, w, h in sizes),
    )


def _error_text(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return ""
