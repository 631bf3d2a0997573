"""The ASGI application: routes, who may ask, how large a request is, streaming, counters.

Starlette's routing and responses; one engine behind it, through `worker`.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.resources import files

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import (
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Route

from llava_cli.engines.base import Sampling, Token
from llava_cli.errors import LlavaError
from llava_cli.serving import replies
from llava_cli.serving.requests import Asked, BadRequest, Limits, parse
from llava_cli.serving.worker import Full, Job, Worker

LOOK_S = 0.5
"""How often a waiting request looks whether its client is still there."""


@dataclass(frozen=True)
class Settings:
    """What a server is started with."""

    model: str
    sampling: Sampling = Sampling()
    api_key: str | None = None
    max_body: int = 64 * 1024 * 1024
    limits: Limits = Limits()
    hosts: tuple[str, ...] = ("*",)
    """Names that a browser may call the server by; protects a server without a key from pages of
    other sites."""


@dataclass
class Counters:
    """What /metrics shows."""

    requests: Counter[int] = field(default_factory=Counter)
    """By status."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cancelled: int = 0
    started: float = field(default_factory=time.time)


def build(settings: Settings, worker: Worker) -> Starlette:
    """The application around a worker that was started; it is closed with the application."""
    server = _Server(settings, worker)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(worker.close)

    routes = [
        Route("/", server.page),
        Route("/health", server.health),
        Route("/metrics", server.guarded(server.metrics)),
        Route("/v1/models", server.guarded(server.models)),
        Route("/v1/models/{name:path}", server.guarded(server.model)),
        Route("/v1/chat/completions", server.guarded(server.complete), methods=["POST"]),
    ]
    return Starlette(
        routes=routes,
        lifespan=lifespan,
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(settings.hosts))],
        exception_handlers={HTTPException: _http_error},
    )


Handler = Callable[[Request], Awaitable[Response]]


class _Server:
    """The routes."""

    def __init__(self, settings: Settings, worker: Worker) -> None:
        self._settings = settings
        self._worker = worker
        self._counters = Counters()
        self._page, self._policy = page()

    def guarded(self, handler: Handler) -> Handler:
        """Only for those who have the key, where there is one."""

        async def check(request: Request) -> Response:
            if not self._may(request):
                self._counters.requests[401] += 1
                document = replies.error_document(
                    "the API key is missing or wrong: send it as Authorization: Bearer KEY",
                    "invalid_request_error",
                    code="invalid_api_key",
                )
                return JSONResponse(document, 401, {"WWW-Authenticate": "Bearer"})
            return await handler(request)

        return check

    def _may(self, request: Request) -> bool:
        if self._settings.api_key is None:
            return True
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        wanted = self._settings.api_key.encode("utf-8")
        right = hmac.compare_digest(given.strip().encode("utf-8", "replace"), wanted)
        return scheme.lower() == "bearer" and right

    async def page(self, request: Request) -> Response:
        """The chat page: one file that loads nothing else."""
        return HTMLResponse(
            self._page,
            headers={
                "Content-Security-Policy": self._policy,
                "X-Content-Type-Options": "nosniff",
                "Referrer-Policy": "no-referrer",
                "Cache-Control": "no-store",
            },
        )

    async def health(self, request: Request) -> Response:
        """Whether requests are answered; says nothing else, so needs no key."""
        alive = self._worker.alive
        return JSONResponse({"status": "ok" if alive else "stopped"}, 200 if alive else 503)

    async def models(self, request: Request) -> Response:
        """The one model."""
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        """The one model, by name."""
        name = request.path_params["name"]
        if name != self._settings.model:
            document = replies.error_document(
                f"there is no model {name!r} here", "invalid_request_error", code="model_not_found"
            )
            return JSONResponse(document, 404)
        return JSONResponse(self._model())

    def _model(self) -> dict[str, object]:
        created = int(self._counters.started)
        name = self._settings.model
        return {"id": name, "object": "model", "created": created, "owned_by": "llava"}

    async def metrics(self, request: Request) -> Response:
        """Counters in Prometheus' text form."""
        counters = self._counters
        lines = ["# TYPE llava_requests_total counter"]
        lines += [
            f'llava_requests_total{{status="{status}"}} {count}'
            for status, count in sorted(counters.requests.items())
        ]
        for name, kind, value in (
            ("llava_prompt_tokens_total", "counter", counters.prompt_tokens),
            ("llava_completion_tokens_total", "counter", counters.completion_tokens),
            ("llava_requests_cancelled_total", "counter", counters.cancelled),
            ("llava_requests_waiting", "gauge", self._worker.waiting),
            ("llava_requests_active", "gauge", self._worker.active),
            ("process_start_time_seconds", "gauge", round(counters.started, 3)),
        ):
            lines += [f"# TYPE {name} {kind}", f"{name} {value}"]
        return PlainTextResponse("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4")

    async def complete(self, request: Request) -> Response:
        """Answer one conversation."""
        try:
            response = await self._complete(request)
        except BadRequest as error:
            status, document = replies.of_bad_request(error)
            response = JSONResponse(document, status)
        except Full as error:
            document = replies.error_document(str(error), "server_error", code="overloaded")
            response = JSONResponse(document, 503, {"Retry-After": "2"})
        except LlavaError as error:
            status, document = replies.of_engine(error)
            response = JSONResponse(document, status)
        except ClientDisconnect:
            self._counters.cancelled += 1
            response = Response(status_code=499)
        self._counters.requests[response.status_code] += 1
        return response

    async def _complete(self, request: Request) -> Response:
        if request.headers.get("content-type", "").split(";")[0].strip() != "application/json":
            raise BadRequest("send application/json", status=415)  # a page elsewhere cannot
        body = await self._body(request)
        settings = self._settings
        asked = await run_in_threadpool(
            parse, body, settings.model, settings.sampling, settings.limits
        )
        job = Job(asked.conversation, asked.sampling, asyncio.get_running_loop())
        self._worker.submit(job)
        reply = replies.Reply(settings.model)
        if asked.stream:
            first = await self._next(job, request)  # errors before the first token have a status
            stream = self._stream(job, reply, asked, first)
            headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
            return StreamingResponse(stream, media_type="text/event-stream", headers=headers)
        text = []
        looked = time.monotonic()
        while True:
            token = await self._next(job, request)
            if time.monotonic() - looked > LOOK_S:  # tokens come quicker than `_next` would look
                looked = time.monotonic()
                if await request.is_disconnected():
                    self._worker.cancel(job)
                    raise ClientDisconnect
            text.append(token.text)
            if token.finish_reason is not None and token.stats is not None:
                self._count(token)
                answer = reply.whole("".join(text), token.finish_reason, token.stats)
                return JSONResponse(answer)

    async def _body(self, request: Request) -> bytes:
        """The body, never more of it than allowed."""
        limit = self._settings.max_body
        too_large = BadRequest(
            f"the body is larger than {limit // 1024 // 1024} MiB", status=413, code="too_large"
        )
        announced = request.headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > limit:
            raise too_large
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > limit:
                raise too_large
        return bytes(body)

    async def _next(self, job: Job, request: Request) -> Token:
        """The next token; a client that has gone frees its place."""
        try:
            while True:
                try:
                    found = await asyncio.wait_for(job.tokens.get(), LOOK_S)
                    break
                except asyncio.TimeoutError:
                    if await request.is_disconnected():
                        raise ClientDisconnect from None
        except BaseException:
            self._worker.cancel(job)
            raise
        if isinstance(found, LlavaError):
            raise found
        return found

    async def _stream(
        self, job: Job, reply: replies.Reply, asked: Asked, first: Token
    ) -> AsyncIterator[str]:
        """Server-sent events; starlette ends this where the client goes away."""
        ended = False
        try:
            yield _event(reply.piece({"role": "assistant", "content": ""}))
            token: Token | LlavaError = first
            while isinstance(token, Token):
                if token.text:
                    yield _event(reply.piece({"content": token.text}))
                if token.finish_reason is not None and token.stats is not None:
                    ended = True
                    self._count(token)
                    yield _event(reply.piece({}, token.finish_reason))
                    if asked.include_usage:
                        yield _event(reply.last(token.stats))
                    break
                token = await job.tokens.get()
            if isinstance(token, LlavaError):
                ended = True
                yield _event(replies.of_engine(token)[1])
            yield "data: [DONE]\n\n"
        finally:
            if not ended:
                self._counters.cancelled += 1
                self._worker.cancel(job)

    def _count(self, token: Token) -> None:
        if token.stats is not None:
            self._counters.prompt_tokens += token.stats.prompt_tokens + token.stats.image_tokens
            self._counters.completion_tokens += token.stats.completion_tokens


def page() -> tuple[str, str]:
    """The chat page and the policy under which only its own script and style run."""
    text = (files(__package__) / "page.html").read_text(encoding="utf-8")
    sources = {}
    for kind in ("script", "style"):
        match = re.search(rf"<{kind}>(.*?)</{kind}>", text, re.DOTALL)
        inside = match[1] if match else ""
        digest = base64.b64encode(hashlib.sha256(inside.encode("utf-8")).digest()).decode("ascii")
        sources[kind] = f"{kind}-src 'sha256-{digest}'"
    policy = (
        f"default-src 'none'; {sources['script']}; {sources['style']}; img-src blob: data:;"
        " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text, policy


async def _http_error(request: Request, error: Exception) -> Response:
    """404 and 405 in the form of all errors."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    detail = error.detail if isinstance(error, HTTPException) else "internal error"
    headers = error.headers if isinstance(error, HTTPException) else None
    document = replies.error_document(str(detail), "invalid_request_error")
    return JSONResponse(document, status, dict(headers) if headers else None)


def _event(document: dict[str, object]) -> str:
    return f"data: {json.dumps(document, ensure_ascii=False)}\n\n"
