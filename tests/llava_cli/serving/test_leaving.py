"""Clients that leave while others are answered with them: a real engine, server and sockets."""

from __future__ import annotations

import base64
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llama_cpp")

from llava_cli import engines, models
from llava_cli.serving import worker
from tests.llava_cli.serving.conftest import Server, Start

EXAMPLE = Path(__file__).resolve().parents[3] / "docs" / "example.png"
QUESTIONS = ("Describe the picture in detail.", "Describe this picture.", "What is in the picture?")
LATE = "How many shapes are there?"
TOKENS = 24


class Rounds:
    """Lets the engine go on by one round of tokens at a time, and notes who is there at each."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.server: Server | None = None
        self.begun = 0
        self.seen: list[tuple[int, int]] = []
        """Requests that are being answered, and those that wait meanwhile."""
        self._permits = threading.Semaphore(0)
        self._freely = threading.Event()
        real = worker._Table.more

        def more(table: worker._Table) -> Any:
            self.begun += 1
            while not self._freely.is_set() and not self._permits.acquire(timeout=0.02):
                pass
            found = real(table)
            waiting = 0 if self.server is None else self.server.worker.waiting
            self.seen.append((len(table.jobs), waiting))
            return found

        monkeypatch.setattr(worker._Table, "more", more)

    def go(self) -> None:
        """One round; returns when the engine stands still in front of the next."""
        before = self.begun
        self._permits.release()
        assert self.server is not None
        self.server.wait_until(lambda: self.begun > before)

    def go_on_freely(self) -> None:
        self._freely.set()


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rounds]:
    found = Rounds(monkeypatch)
    yield found
    found.go_on_freely()


class Client:
    """One streamed request on a socket of its own."""

    def __init__(self, server: Server, question: str) -> None:
        body = json.dumps(request_of(question)).encode()
        head = "POST /v1/chat/completions HTTP/1.0\r\nHost: localhost\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self._socket = socket.create_connection(("127.0.0.1", server.port), timeout=200)
        self._received = b""
        self._socket.sendall(head.encode() + body)

    @property
    def text(self) -> str:
        """What was answered so far."""
        lines = self._received.decode().splitlines()
        events = [line[6:] for line in lines if line.startswith("data: {")]
        deltas = [c["delta"] for event in events for c in json.loads(event)["choices"]]
        return "".join(delta.get("content", "") for delta in deltas)

    def read_until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            piece = self._socket.recv(65536)
            assert piece, self._received
            self._received += piece

    def hear(self) -> None:
        """The first words."""
        self.read_until(lambda: self.text != "")

    def answer(self) -> str:
        """The whole of it."""
        self.read_until(lambda: b"[DONE]" in self._received)
        self.leave()
        return self.text

    def leave(self) -> None:
        self._socket.close()


def request_of(question: str) -> dict[str, Any]:
    picture = base64.b64encode(EXAMPLE.read_bytes()).decode()
    url = {"url": f"data:image/png;base64,{picture}"}
    parts = [{"type": "image_url", "image_url": url}, {"type": "text", "text": question}]
    messages = [{"role": "user", "content": parts}]
    return {"model": "llava-demo", "messages": messages, "max_tokens": TOKENS, "stream": True}


def load() -> Any:
    return engines.load(models.resolve(None), threads=1)


@pytest.mark.parametrize("leaving", [0, 1], ids=["the first", "one of the batch"])
def test_one_that_leaves_a_running_batch_frees_its_slot_and_ends_no_other(
    start: Start, rounds: Rounds, leaving: int
) -> None:
    server = rounds.server = start(load=load, together=3)
    clients = [Client(server, QUESTIONS[0])]
    server.wait_until(lambda: rounds.begun == 1)
    clients += [Client(server, question) for question in QUESTIONS[1:]]
    server.wait_until(lambda: server.worker.waiting == 2)
    rounds.go()  # one picture a round is read
    rounds.go()
    for client in clients:
        client.hear()
    late = Client(server, LATE)
    server.wait_until(lambda: server.worker.waiting == 1)
    rounds.go()
    assert rounds.seen[-1] == (3, 1)  # there are no more than three places
    clients.pop(leaving).leave()
    server.wait_until(lambda: "cancelled_total 1" in server.send("GET", "/metrics")[1])
    rounds.go()
    assert rounds.seen[-1] == (3, 0)  # the late one sits where the leaver sat
    late.hear()  # and is answered while the others are
    rounds.go_on_freely()
    found = [client.answer() for client in (*clients, late)]
    server.wait_until(lambda: server.worker.active == 0)
    stayed = [q for place, q in enumerate(QUESTIONS) if place != leaving]
    assert found == [Client(server, question).answer() for question in (*stayed, LATE)]
    assert all(len(answer.split()) > 3 for answer in found)
