"""An OpenAI-compatible endpoint on the loopback interface that answers as a test tells it to."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

CONVERSATION = (
    "Question:\nWhat is in the picture?\n===\nAnswer:\nThere are some coloured shapes on a plain "
    "background.\n===\nQuestion:\nIs there a dog?\n===\nAnswer:\nNo, there is no dog."
)
REASONING = (
    "Question:\nWhy might somebody have drawn this?\n===\nAnswer:\n"
    + "Shapes of few colours are easy to tell apart, so the drawing may serve to teach "
    "children the names of colours and shapes, or to test whether somebody knows them."
)
DETAIL = "The picture shows several shapes on a plain background. " * 6


@dataclass(frozen=True)
class Reply:
    """What the endpoint does with one request."""

    text: str = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    """Sent in place of a chat completion."""
    cut: int | None = None
    """Reset the connection after so many bytes of the body."""
    delay: float = 0.0
    drip: float = 0.0
    """Seconds between pieces of a body that comes slowly."""
    finish: str = "stop"
    usage: tuple[int, int] | None = (1000, 100)


Script = Callable[[dict[str, Any], int], Reply]
"""From a request's body and how often it came before (0 the first time)."""


def well_behaved(body: dict[str, Any], times: int) -> Reply:
    """An answer in the form that the kind asks for."""
    return Reply(answer_for(body))


def answer_for(body: dict[str, Any]) -> str:
    """By what the system message asks for."""
    system = body["messages"][0]["content"]
    if "conversation between" in system:
        return CONVERSATION
    return REASONING if "one question" in system else DETAIL


class Server(ThreadingHTTPServer):
    """Counts what it was asked and what it answered whole."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, script: Script) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script = script
        self.lock = threading.Lock()
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.seen: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        """Requests that got a whole 200, by body."""
        self.flying = self.most_flying = 0

    @property
    def url(self) -> str:
        """The base URL."""
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients of these tests are killed; that is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        key = json.dumps(body, sort_keys=True)
        with self.server.lock:
            times = self.server.seen[key]
            self.server.seen[key] += 1
            self.server.asked.append(body)
            self.server.headers.append({k.lower(): v for k, v in self.headers.items()})
            self.server.times.append(time.monotonic())
            self.server.flying += 1
            self.server.most_flying = max(self.server.most_flying, self.server.flying)
        try:
            if self._reply(body, self.server.script(body, times)):
                with self.server.lock:
                    self.server.answered[key] += 1
        finally:
            with self.server.lock:
                self.server.flying -= 1

    def _reply(self, body: dict[str, Any], reply: Reply) -> bool:
        time.sleep(reply.delay)
        data = reply.body if reply.body is not None else _completion(body, reply)
        self.send_response(reply.status)
        for name, value in {"Content-Type": "application/json", **reply.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if reply.cut is not None:
            self.wfile.write(data[: reply.cut])
            self.wfile.flush()
            linger = struct.pack("ii", 1, 0)  # a reset, not an orderly end
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.close_connection = True
            with suppress(OSError):
                self.connection.close()
            return False
        pieces = [data] if not reply.drip else [data[i : i + 64] for i in range(0, len(data), 64)]
        for piece in pieces:
            self.wfile.write(piece)
            self.wfile.flush()
            time.sleep(reply.drip)
        return reply.status == 200

    def log_message(self, format: str, *args: Any) -> None:
        """Silence."""


def _completion(body: dict[str, Any], reply: Reply) -> bytes:
    if reply.status != 200:
        return json.dumps({"error": {"message": reply.text or "no", "type": "x"}}).encode()
    message = {"role": "assistant", "content": reply.text}
    document: dict[str, Any] = {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": body["model"],
        "choices": [{"index": 0, "message": message, "finish_reason": reply.finish}],
    }
    if reply.usage is not None:
        prompt, completion = reply.usage
        document["usage"] = {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }
    return json.dumps(document).encode()


@contextmanager
def serving(script: Script = well_behaved) -> Iterator[Server]:
    """An endpoint for the length of a block."""
    server = Server(script)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
