"""A real server on the loopback interface, its engine a fake."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.llava_cli.cli.fake_llava import FakeEngine, Script, fake_files

uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("starlette")


@dataclass
class Server:
    """One that runs."""

    port: int
    engine: FakeEngine
    worker: Any

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def send(
        self,
        method: str,
        path: str,
        body: bytes | dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, Any]:
        """A plain HTTP request: status, and the document or text."""
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=100)
        try:
            given = {"Content-Type": "application/json", **(headers or {})}
            connection.request(method, path, data, given)
            response = connection.getresponse()
            text = response.read().decode("utf-8")
            is_json = "json" in (response.headers.get_content_type())
            return response.status, json.loads(text) if is_json else text
        finally:
            connection.close()

    def ask(self, **changes: Any) -> tuple[int, Any]:
        """A chat completion, of a question unless told otherwise."""
        messages = [{"role": "user", "content": "hi"}]
        body = {"model": "llava-demo", "messages": messages, **changes}
        return self.send("POST", "/v1/chat/completions", body)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 100
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.01)


Start = Callable[..., Server]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts servers; all are stopped afterwards."""
    from llava_cli.serving.app import Settings, build
    from llava_cli.serving.worker import MOST_TOGETHER, Worker

    running: list[tuple[Any, threading.Thread]] = []

    def go(
        script: Script = ("hello ", "there"),
        load: Callable[[], Any] | None = None,
        together: int = MOST_TOGETHER,
        **settings: Any,
    ) -> Server:
        worker = Worker(load or (lambda: FakeEngine(fake_files(None), script)), together)
        engine: Any = worker.start()
        app = build(Settings(model="llava-demo", **settings), worker)
        listening = socket.socket()
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="on"))
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        running.append((server, thread))
        found = Server(listening.getsockname()[1], engine, worker)
        found.wait_until(lambda: server.started)
        return found

    yield go
    for server, thread in running:
        server.should_exit = True
        thread.join(timeout=100)
        assert not thread.is_alive()
