"""A judge on the loopback that says what a test scripts."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = str | tuple[int, Any] | float
"""A text; a status with a body (bytes: sent as they are); seconds to wait before `8 6`."""


class LoopbackJudge:
    """Serves /v1/chat/completions; remembers requests."""

    def __init__(self, say: Callable[[int, dict[str, Any]], Reply]) -> None:
        self.requests: list[dict[str, Any]] = []
        self._say = say
        self._lock = threading.Lock()
        judge = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                request = json.loads(self.rfile.read(length))
                with judge._lock:
                    number = len(judge.requests)
                    judge.requests.append(request)
                judge._answer(self, judge._say(number, request))

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def _answer(self, handler: BaseHTTPRequestHandler, reply: Reply) -> None:
        status = 200
        body: Any = reply
        if isinstance(reply, tuple):
            status, body = reply
        elif isinstance(reply, float):
            time.sleep(reply)
            body = "8 6\nslow"
        if isinstance(body, str) and status == 200:
            body = {
                "id": "x", "object": "chat.completion", "created": 1, "model": "judge-0001",
                "choices": [{"index": 0, "finish_reason": "stop",
                             "message": {"role": "assistant", "content": body}}],
                "usage": {"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10},
            }  # fmt: skip
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        try:
            handler.send_response(status)
            handler.send_header("Content-Type", "application/json")
            handler.send_header("Content-Length", str(len(data)))
            if status == 429:
                handler.send_header("Retry-After", "0")
            handler.end_headers()
            handler.wfile.write(data)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client did not wait

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
