"""URLs that strangers name are fetched from the public internet alone."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from llava_cli import web
from llava_cli.errors import ImageError


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.0.0.1", "192.168.1.1", "172.16.0.1", "169.254.169.254", "0.0.0.0"),
        *("100.64.0.1", "224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1%eth0", "fc00::1"),
        *("::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "ff02::1"),
    ],
)
def test_private_addresses_in_every_form(address: str) -> None:
    assert not web.is_public(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "2606:4700:4700::1111", "::ffff:8.8.8.8"])
def test_public_addresses(address: str) -> None:
    assert web.is_public(address)


@pytest.fixture
def loopback() -> Iterator[tuple[int, list[str]]]:
    """A server that must not be asked."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port, asked
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1"])
def test_nothing_is_sent_to_a_private_address(
    loopback: tuple[int, list[str]], host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, asked = loopback
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
    with pytest.raises(ImageError, match="no public address"):
        web.fetch(f"http://{host}:{port}/x.png", 1000, public_only=True)
    assert asked == []


def test_a_name_with_one_private_address_among_public_ones(
    loopback: tuple[int, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    port, asked = loopback
    found = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
        for address in ("1.1.1.1", "127.0.0.1")
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(ImageError, match="no public address"):
        web.fetch(f"http://pictures.example:{port}/x.png", 1000, public_only=True)
    assert asked == []
