"""`llava serve` as clients see it: OpenAI's client, and clients that do everything wrong."""

from __future__ import annotations

import base64
import io
import json
import socket
import threading
from dataclasses import fields
from typing import Any

import pytest
from PIL import Image as PIL

from llava_cli.engines.base import Sampling
from llava_cli.serving.requests import Limits
from tests.llava_cli.serving.conftest import Server, Start


def data_url(format: str = "PNG") -> str:
    packed = io.BytesIO()
    PIL.new("RGB", (40, 30), "red").save(packed, format)
    return f"data:image/{format.lower()};base64," + base64.b64encode(packed.getvalue()).decode()


def with_picture(url: str) -> list[dict[str, Any]]:
    parts = [{"type": "text", "text": "what?"}, {"type": "image_url", "image_url": {"url": url}}]
    return [{"role": "user", "content": parts}]


# ---- the official client


def test_the_official_client(start: Start) -> None:
    openai = pytest.importorskip("openai")
    server = start()
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0)
    with client:
        (model,) = client.models.list().data
        assert client.models.retrieve(model.id).id == "llava-demo"
        answer = client.chat.completions.create(
            model=model.id,
            messages=[{"role": "system", "content": "be brief"}, *with_picture(data_url())],
            temperature=0.5,
            max_completion_tokens=7,
            stop=["END"],
            seed=3,
        )
        assert answer.choices[0].message.content == "hello there"
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage.prompt_tokens == 5 + 16
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + 2
        conversation, sampling = server.engine.asked[-1]
        assert [(m.role, m.text) for m in conversation.messages] == [
            *(("system", "be brief"), ("user", "what?")),
        ]
        assert conversation.images[0].open().size == (40, 30)
        assert (sampling.temperature, sampling.max_tokens) == (0.5, 7)
        assert (sampling.stop, sampling.seed) == (("END",), 3)
        stream = client.chat.completions.create(
            model=model.id,
            messages=[{"role": "user", "content": "hi"}],
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = list(stream)
        pieces = [c.choices[0].delta.content for c in chunks if c.choices]
        assert pieces == ["", "hello ", "there", None]
        assert chunks[0].choices[0].delta.role == "assistant"
        assert chunks[-2].choices[0].finish_reason == "stop"
        assert chunks[-1].usage.completion_tokens == 2
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="gpt", messages=[{"role": "user", "content": "x"}])
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(model=model.id, messages=[])


@pytest.mark.skipif(
    "schema" not in {field.name for field in fields(Sampling)}, reason="no schemas in this engine"
)
def test_a_json_schema_reaches_the_engine(start: Start) -> None:
    server = start()
    schema = {"type": "object", "properties": {"x": {"type": "integer"}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    assert server.ask(response_format=wanted)[0] == 200
    sampling: Any = server.engine.asked[-1][1]
    assert json.loads(sampling.schema) == schema


# ---- who may ask, and how much


def test_without_the_key_nothing_is_answered(start: Start) -> None:
    server = start(api_key="s3cret")
    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Basic s3cret"},
        {"Authorization": "Bearer s3crets"},
    ):
        for method, path in (
            *(("GET", "/v1/models"), ("GET", "/metrics"), ("GET", "/v1/models/llava-demo")),
            ("POST", "/v1/chat/completions"),
        ):
            status, document = server.send(method, path, {"model": "llava-demo"}, headers)
            assert status == 401
            assert document["error"]["code"] == "invalid_api_key"
    assert server.engine.asked == []
    assert server.send("GET", "/health") == (200, {"status": "ok"})
    assert server.send("GET", "/v1/models", headers={"Authorization": "Bearer s3cret"})[0] == 200


def test_too_large_a_body_is_413(start: Start) -> None:
    server = start(max_body=1000)
    assert server.send("POST", "/v1/chat/completions", b"x" * 2000)[0] == 413
    connection = socket.create_connection(("127.0.0.1", server.port))
    with connection:  # in pieces, of unannounced number
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
        head += "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head.encode() + b"400\r\n" + b"x" * 1024 + b"\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 413")
    assert server.engine.asked == []


BAD: list[tuple[Any, int]] = [
    (b"", 400),
    (b"not json", 400),
    (b"[" * 100_000, 400),
    (b"\xff\xfe", 400),
    (b"[]", 400),
    ({}, 404),
    ({"model": "other"}, 404),
    ({"messages": "hi"}, 400),
    ({"messages": []}, 400),
    ({"messages": [{"role": "tool", "content": "x"}]}, 400),
    ({"messages": [{"role": "user"}]}, 400),
    ({"messages": [{"role": "user", "content": [{"type": "file"}]}]}, 400),
    ({"messages": [{"role": "user", "content": [7]}]}, 400),
    ({"messages": [{"role": "assistant", "content": "x"}]}, 400),
    ({"messages": with_picture("/etc/passwd")}, 400),
    ({"messages": with_picture("file:///etc/passwd")}, 400),
    ({"messages": with_picture("data:*")}, 400),
    ({"messages": with_picture("data:image/png;base64,%%%")}, 400),
    ({"messages": with_picture("data:image/png;base64,aGVsbG8=")}, 400),
    ({"messages": with_picture("http://127.0.0.1/x.png")}, 400),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, 400),
    ({"temperature": "hot"}, 400),
    ({"temperature": -1}, 400),
    ({"temperature": True}, 400),
    ({"top_p": 0}, 400),
    ({"max_tokens": 0}, 400),
    ({"stop": [""]}, 400),
    ({"n": 2}, 400),
    ({"logprobs": True}, 400),
    ({"tools": [{"type": "function"}]}, 400),
    ({"stream": "yes"}, 400),
    ({"response_format": {"type": "xml"}}, 400),
]


def test_what_is_wrong_is_a_4xx_and_reaches_no_engine(start: Start) -> None:
    server = start()
    for body, status in BAD:
        if isinstance(body, bytes):
            found = server.send("POST", "/v1/chat/completions", body)
        elif body == {}:
            found = server.send("POST", "/v1/chat/completions", {})
        else:
            found = server.ask(**body)
        assert found[0] == status, (body, found)
        assert found[1]["error"]["message"]
    assert server.engine.asked == []
    plain = {"Content-Type": "text/plain"}  # what a page of another site may send unasked
    body = {"model": "llava-demo", "messages": [{"role": "user", "content": "hi"}]}
    assert server.send("POST", "/v1/chat/completions", body, plain)[0] == 415
    assert server.send("GET", "/v1/chat/completions")[0] == 405
    assert server.send("GET", "/nowhere")[0] == 404


def test_a_page_of_another_site_cannot_call_it_by_another_name(start: Start) -> None:
    server = start(hosts=("localhost", "127.0.0.1"))
    assert server.send("GET", "/v1/models")[0] == 200
    assert server.send("GET", "/v1/models", headers={"Host": "evil.example"})[0] == 400


def test_urls_are_fetched_only_with_the_flag(start: Start) -> None:
    packed = io.BytesIO()
    PIL.new("RGB", (9, 8)).save(packed, "PNG")
    asked: list[str] = []

    def fetch(url: str) -> bytes:
        asked.append(url)
        return packed.getvalue()

    server = start(limits=Limits(fetch=fetch))
    assert server.ask(messages=with_picture("https://pictures.example/x.png"))[0] == 200
    assert asked == ["https://pictures.example/x.png"]
    assert server.engine.asked[-1][0].images[0].open().size == (9, 8)


# ---- many at once, and some who leave


def test_many_at_once_all_are_answered(start: Start) -> None:
    server = start(script=(0.01, "yes"))
    found: list[int] = []

    def ask(temperature: float) -> None:
        found.append(server.ask(temperature=temperature)[0])

    threads = [threading.Thread(target=ask, args=(n % 3 / 2,)) for n in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=100)
    assert found == [200] * 32
    assert len(server.engine.asked) == 32
    metrics = server.send("GET", "/metrics")[1]
    assert 'llava_requests_total{status="200"} 32' in metrics
    assert "llava_requests_active 0" in metrics


def leave_early(server: Server, stream: bool) -> None:
    """Ask, wait until it is being answered, and hang up."""
    body = {"model": "llava-demo", "messages": [{"role": "user", "content": "x"}], "stream": stream}
    data = json.dumps(body).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(head.encode() + data)
        server.wait_until(lambda: server.worker.active == 1)
        if stream:
            assert connection.recv(100)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_vanishes_frees_its_place(start: Start, stream: bool) -> None:
    server = start(script=[*[0.02, "more "] * 5000])
    leave_early(server, stream)
    server.wait_until(lambda: server.worker.active == 0)
    assert server.worker.waiting == 0
    assert "llava_requests_cancelled_total 1" in server.send("GET", "/metrics")[1]


def test_one_that_breaks_does_not_take_the_others_with_it(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llava_cli.errors import LlavaError

    server = start()
    real = server.engine.generate

    def generate(conversation: Any, sampling: Sampling) -> Any:
        if conversation.messages[-1].text == "break":
            raise LlavaError("the prompt takes 9 tokens, but llava-demo reads at most 8", "less")
        return real(conversation, sampling)

    monkeypatch.setattr(server.engine, "generate", generate)
    found: dict[str, int] = {}

    def ask(text: str) -> None:
        found[text] = server.ask(messages=[{"role": "user", "content": text}])[0]

    threads = [threading.Thread(target=ask, args=(t,)) for t in ("a", "break", "b", "c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=100)
    assert found == {"a": 200, "break": 400, "b": 200, "c": 200}


# ---- the page


def test_the_page_loads_nothing_from_elsewhere(start: Start) -> None:
    import http.client
    import re

    server = start(api_key="key")
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=100)
    connection.request("GET", "/")
    response = connection.getresponse()
    policy = response.headers["Content-Security-Policy"]
    text = response.read().decode()
    connection.close()
    assert response.status == 200
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert re.findall(r"(?:src|href)=\"", text) == []
    assert "://" not in text
