"""Pictures from URLs: a loopback server stands for the web and for all that goes wrong there."""

from __future__ import annotations

import io
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image as PIL

from llava_cli import web
from llava_cli.errors import ImageError
from llava_cli.images import MAX_BYTES, locate

PICTURE = io.BytesIO()
PIL.new("RGB", (40, 30), "red").save(PICTURE, "PNG")


class Handler(BaseHTTPRequestHandler):
    """Answers by path."""

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the test's output is not a log."""

    def _answer(self, code: int, body: bytes, **headers: str) -> None:
        self.send_response(code)
        headers = {"Content-Type": "image/png", "Content-Length": str(len(body)), **headers}
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        getattr(self, "get_" + self.path.strip("/").split("/")[0].split("?")[0], self.get_404)()

    def get_404(self) -> None:
        self._answer(404, b"no")

    def get_photo(self) -> None:
        self._answer(200, PICTURE.getvalue())

    def get_untyped(self) -> None:
        self._answer(200, PICTURE.getvalue(), **{"Content-Type": "application/octet-stream"})

    def get_page(self) -> None:
        self._answer(200, b"<!doctype html><title>x</title>", **{"Content-Type": "text/html"})

    def get_disguised(self) -> None:
        self._answer(200, b"<!doctype html><title>x</title>")

    def get_moved(self) -> None:
        self._answer(302, b"", Location="/photo")

    def get_around(self) -> None:
        self._answer(302, b"", Location="/around/" + "x" * (len(self.path) % 50))

    def get_inward(self) -> None:
        self._answer(302, b"", Location="file:///etc/passwd")

    def get_short(self) -> None:
        body = PICTURE.getvalue()
        self._answer(200, body[:20], **{"Content-Length": str(len(body))})
        self.close_connection = True

    def get_endless(self) -> None:
        self.send_response(200)
        self.end_headers()
        try:
            while True:
                self.wfile.write(b"\0" * 65536)
        except OSError:
            return

    def get_dripping(self) -> None:
        self.send_response(200)
        self.end_headers()
        try:
            while True:
                self.wfile.write(b"\0")
                time.sleep(0.05)
        except OSError:
            return

    def get_silent(self) -> None:
        time.sleep(1.0)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Address of the server, without a slash at its end."""
    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.daemon_threads = True
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{running.server_address[1]}"
    running.shutdown()
    thread.join()
    running.server_close()


@pytest.fixture(autouse=True)
def direct(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy between the test and its server."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def failure(url: str) -> ImageError:
    with pytest.raises(ImageError) as caught:
        web.fetch(url, MAX_BYTES)
    assert caught.value.hint
    assert "\n" not in caught.value.message
    return caught.value


@pytest.mark.parametrize("path", ["photo", "untyped", "moved", "photo?a=ü b", "photo/ä"])
def test_a_url_gives_its_picture(server: str, path: str) -> None:
    assert web.fetch(f"{server}/{path}", MAX_BYTES) == PICTURE.getvalue()


def test_a_url_is_fetched_when_opened_not_when_located(server: str) -> None:
    found = locate(f"{server}/photo")
    missing = locate(f"{server}/nothing")
    assert found is not None
    assert missing is not None
    assert found.open().size == (40, 30)
    with pytest.raises(ImageError):
        missing.open()


def test_missing_page_names_the_status(server: str) -> None:
    assert "404" in failure(f"{server}/nothing").message


def test_web_page_is_called_one(server: str) -> None:
    assert "HTML" in failure(f"{server}/page").message


def test_web_page_disguised_as_a_picture_is_called_one(server: str) -> None:
    image = locate(f"{server}/disguised")
    assert image is not None
    with pytest.raises(ImageError, match="HTML"):
        image.open()


def test_redirects_end(server: str) -> None:
    started = time.monotonic()
    assert "redirect" in failure(f"{server}/around").message
    assert time.monotonic() - started < 5


def test_redirect_to_a_file_is_refused(server: str) -> None:
    assert "file:///etc/passwd" in failure(f"{server}/inward").message


def test_broken_connection_is_no_picture(server: str) -> None:
    message = failure(f"{server}/short").message
    assert "broke off" in message or "IncompleteRead" in message


def test_endless_body_is_cut_at_the_limit(server: str) -> None:
    with pytest.raises(ImageError, match="larger than"):
        web.fetch(f"{server}/endless", 1024 * 1024)


def test_dripping_server_is_left(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "TOTAL_S", 0.4)
    started = time.monotonic()
    assert "in time" in failure(f"{server}/dripping").message
    assert time.monotonic() - started < 3


def test_silent_server_is_left(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "SILENCE_S", 0.2)
    assert "in time" in failure(f"{server}/silent").message


def test_closed_port_is_unreachable() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert "cannot be reached" in failure(f"http://127.0.0.1:{port}/a.jpg").message


@pytest.mark.parametrize("url", ["http://", "http://[", "http://a:b/c.jpg", "http://x..y/a.jpg"])
def test_malformed_url_is_an_image_error(url: str) -> None:
    assert failure(url).exit_code == 4


def test_certificates_are_checked() -> None:
    import ssl

    context = web._tls_context()
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname


def test_no_file_is_read_through_a_url(tmp_path: Path) -> None:
    secret = tmp_path / "a.png"
    secret.write_bytes(PICTURE.getvalue())
    assert failure(f"file://{secret}").exit_code == 4
