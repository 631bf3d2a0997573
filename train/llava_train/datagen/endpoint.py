"""One request to an OpenAI-compatible endpoint, through the official client.

`Endpoint.ask` gives the answer or raises `Refused`, which says whether another attempt makes sense,
after how long, and whether the request may have been paid for. Attempts, budget and journal are the
caller's (`sending.py`).
"""

from __future__ import annotations

import asyncio
import json
import re
from typing import TYPE_CHECKING, Any

from llava_cli.errors import MissingDependency
from llava_train.datagen.journal import Answer
from llava_train.datagen.pacing import retry_after
from llava_train.datagen.prices import estimate_tokens, prompt_tokens

if TYPE_CHECKING:
    from openai import AsyncAPIResponse, AsyncOpenAI

MAX_BYTES = 8 << 20
"""Of an answer; a longer one is no answer to our requests."""
_AGAIN = frozenset({408, 409, 423, 425, 429})
_HOPELESS = {
    401: "the endpoint refuses the API key",
    402: "the account has no credit left",
    403: "the endpoint does not allow this",
    404: "the endpoint has no such model or address",
}
_TOO_LONG = re.compile(
    r"context_length_exceeded|exceed_context_size|context (?:length|size|window)"
    r"|prompt is too long|prompt takes \d+ tokens|reduce the length of"
    r"|input token count .*exceeds|too many input tokens",
    re.IGNORECASE,
)
"""How endpoints say that a context does not hold a request: OpenAI, llama.cpp, vLLM, ours, …"""


class Refused(Exception):
    """No answer came."""

    def __init__(
        self,
        why: str,
        *,
        again: bool = True,
        after_s: float | None = None,
        maybe_paid: bool = False,
        limited: bool = False,
        hopeless: bool = False,
        too_long: bool = False,
    ) -> None:
        super().__init__(why)
        self.why = why
        self.again = again
        """Whether the same request may succeed later."""
        self.after_s = after_s
        """The pause that the endpoint asked for."""
        self.maybe_paid = maybe_paid
        """Whether the endpoint may have done the work."""
        self.limited = limited
        """Whether it was too many requests: no fault of this one."""
        self.hopeless = hopeless
        """Whether every other request will fare the same."""
        self.too_long = too_long
        """Whether the model's context does not hold it."""


class Endpoint:
    """A model behind an address."""

    def __init__(self, base_url: str | None, api_key: str, *, timeout_s: float) -> None:
        try:
            import openai
        except ImportError as error:
            raise MissingDependency(
                "asking a language model needs the openai package", "pip install 'llava-cli[data]'"
            ) from error
        self._openai = openai
        self._timeout_s = timeout_s
        self.client: AsyncOpenAI = openai.AsyncOpenAI(
            base_url=base_url, api_key=api_key, max_retries=0, timeout=timeout_s
        )
        at = self.client.base_url
        port = f":{at.port}" if at.port else ""
        self.url = f"{at.scheme}://{at.host}{port}{at.path}"
        """Without a password or a query, for the card."""

    async def ask(self, body: dict[str, Any], key: str) -> Answer:
        """The answer to a request body; `key` lets an endpoint know a repeated request."""
        try:
            data = await asyncio.wait_for(self._exchange(body, key), self._timeout_s)
        except asyncio.TimeoutError as error:
            why = f"no whole answer within {self._timeout_s:g} s"
            raise Refused(why, maybe_paid=True) from error
        return read_answer(data, body)

    async def close(self) -> None:
        """Close connections."""
        await self.client.close()

    async def _exchange(self, body: dict[str, Any], key: str) -> bytes:
        import httpx2  # what the official client is made of; its errors come through while reading

        openai = self._openai
        create = self.client.chat.completions.with_streaming_response.create
        try:
            async with create(**body, extra_headers={"Idempotency-Key": key}) as response:
                return await _bounded(response)
        except openai.APIStatusError as error:
            said = f"{error.code or ''} {error.type or ''}"
            raise _of_status(
                error.status_code, error.message, error.response.headers, said
            ) from error
        except openai.APIConnectionError as error:
            cause = error.__cause__
            never_left = isinstance(
                cause,
                httpx2.ConnectError
                | httpx2.ConnectTimeout
                | httpx2.PoolTimeout
                | httpx2.ProxyError
                | httpx2.UnsupportedProtocol,
            )
            why = f"{type(cause).__name__}: {cause}" if cause else str(error)
            raise Refused(why.rstrip(": "), maybe_paid=not never_left) from error
        except httpx2.HTTPError as error:
            why = f"the connection broke off: {type(error).__name__}"
            raise Refused(why, maybe_paid=True) from error


async def _bounded(response: AsyncAPIResponse[Any]) -> bytes:
    data = bytearray()
    async for chunk in response.iter_bytes():
        data += chunk
        if len(data) > MAX_BYTES:
            raise Refused("the answer is larger than 8 MiB", again=False, maybe_paid=True)
    return bytes(data)


def _of_status(status: int, message: str, headers: Any, said: str = "") -> Refused:
    """What an HTTP status other than success means; said: the error's own code and type."""
    message = " ".join(message.split()).removeprefix(f"Error code: {status} - ")
    why = _clean(f"{status} {message[:300]}")
    after = retry_after({key.lower(): value for key, value in headers.items()})
    if status == 429 and "insufficient_quota" in message:
        return Refused(f"the account has no credit left ({why})", again=False, hopeless=True)
    if status in _HOPELESS:
        return Refused(f"{_HOPELESS[status]} ({why})", again=False, hopeless=True)
    if status != 429 and _TOO_LONG.search(f"{said} {message}"):  # 429: too many tokens a minute
        return Refused(why, again=False, too_long=True)
    again = status in _AGAIN or status >= 500
    return Refused(why, again=again, after_s=after, limited=status == 429)


def read_answer(data: bytes, body: dict[str, Any]) -> Answer:
    """The body of a response, taken apart; Refused for one that is no chat completion."""
    try:
        found = json.loads(data)
        choice = found["choices"][0]
        message = choice["message"]
        text = _joined(message.get("content"))
        finish = _clean(choice.get("finish_reason") or "stop")
        if message.get("refusal"):
            text, finish = message["refusal"], "content_filter"
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise Refused("the answer is no chat completion", maybe_paid=True) from error
    if text is None:
        text = ""
    if not isinstance(text, str):
        raise Refused("the answer's content is no text", maybe_paid=True)
    usage = found.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    return Answer(
        text=_clean(text),
        finish=finish,
        prompt_tokens=_count(usage.get("prompt_tokens"), prompt_tokens(body["messages"])),
        completion_tokens=_count(usage.get("completion_tokens"), estimate_tokens(text)),
        model=_clean(found.get("model") or body["model"])[:200],
    )


def _joined(content: Any) -> Any:
    """A message's text, which some endpoints give in parts; anything else as it is."""
    if isinstance(content, list) and all(
        isinstance(part, dict) and isinstance(part.get("text"), str) for part in content
    ):
        return "".join(part["text"] for part in content)
    return content


def _clean(value: Any) -> str:
    """Text that every file can hold: JSON may carry lone surrogates."""
    return str(value).encode("utf-8", "replace").decode("utf-8")


def _count(value: Any, otherwise: int) -> int:
    """A count that the endpoint gave, or our estimate where it gave none, or 0: a budget holds."""
    given = isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 40
    return value if given else otherwise
