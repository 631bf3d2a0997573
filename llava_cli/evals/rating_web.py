"""A small page on this machine for grading: one answer, its picture, four buttons.

Bound to the loopback; the page's address holds a secret, and requests from other sites are refused.
"""

from __future__ import annotations

import json
import secrets
import threading
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

from llava_cli.errors import ImageError, UsageError
from llava_cli.evals.rating import MEANINGS, Item, Session

_STYLE = """
body { font: 17px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 1rem auto }
img { max-width: 100%; max-height: 50vh; display: block; margin: .5rem 0 }
button { font: inherit; padding: .5rem 1rem; margin: .2rem .4rem .2rem 0; cursor: pointer }
.q { font-weight: 600 }
.a { white-space: pre-wrap; border-left: 4px solid #3b6fd4; padding-left: 1rem }
"""
_SCRIPT = """document.addEventListener('keydown',e=>{const b=document.querySelector(
`button[data-key="${e.key.toUpperCase()}"]`);if(b&&!e.ctrlKey&&!e.metaKey)b.click()})"""
_MAX_BODY = 4096


class RatingServer:
    """Serves one session until everything is graded or `close` is called."""

    def __init__(self, session: Session, port: int = 0) -> None:
        self.session = session
        self.secret = secrets.token_urlsafe(16)
        self.finished = threading.Event()
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"rating": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        self.url = f"http://127.0.0.1:{self.port}/{self.secret}/"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        if session.current is None:
            self.finished.set()

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def page(self) -> str:
        """The current item, without its model's name."""
        with self._lock:
            item = self.session.current
            left, total = len(self.session.waiting), self.session.total
        body = "<p>Everything is graded. You may close this page." if item is None else _form(item)
        return (
            "<!doctype html><html lang=en><meta charset=utf-8><title>llava eval rate</title>"
            f"<style>{_STYLE}</style><p>{total - left} of {total}{body}<script>{_SCRIPT}</script>"
        )

    def rate(self, token: str, grade: str) -> None:
        """Grade or skip the item that the page showed; another one's form changes nothing."""
        with self._lock:
            item = self.session.current
            if item is None or token != _token(item):
                return
            if grade == "skip":
                self.session.skip()
            else:
                self.session.grade(grade)
            if self.session.current is None:
                self.finished.set()

    def picture(self) -> bytes:
        """The current item's picture."""
        with self._lock:
            item = self.session.current
        if item is None or item.image is None:
            raise ImageError("there is no picture")
        return item.image.read()


def _token(item: Item) -> str:
    """Names an item on the page without naming its model."""
    import hashlib

    return hashlib.sha256(f"{item.model}\0{item.question_id}".encode()).hexdigest()[:16]


def _form(item: Item) -> str:
    token = _token(item)
    image = f"<img src='picture?{token}' alt='the picture'>" if item.image else ""
    buttons = "".join(
        f"<button name=grade value={grade} data-key={grade}>{grade} {escape(meaning)}</button>"
        for grade, meaning in MEANINGS.items()
    )
    return (
        f"{image}<p class=q>{escape(item.question)}<p class=a>{escape(item.answer)}"
        f"<form method=post action=rate><input type=hidden name=token value={token}>{buttons}"
        "<button name=grade value=skip data-key=S>skip</button></form>"
    )


class _Handler(BaseHTTPRequestHandler):
    """One request; `rating` is set on a subclass, for the standard library makes the instance."""

    rating: RatingServer

    def do_GET(self) -> None:
        if not self._allowed():
            return
        name = self.path.split("/")[-1].partition("?")[0]
        if name == "":
            self._send(200, self.rating.page().encode(), "text/html; charset=utf-8")
        elif name == "picture":
            try:
                self._send(200, self.rating.picture(), "application/octet-stream")
            except ImageError as error:
                self._send(404, error.message.encode(), "text/plain; charset=utf-8")
        else:
            self._send(404, b"", "text/plain")

    def do_POST(self) -> None:
        if not self._allowed():
            return
        length = int(self.headers.get("Content-Length") or 0)
        if not 0 < length <= _MAX_BODY:
            self._send(400, b"", "text/plain")
            return
        form = parse_qs(self.rfile.read(length).decode("utf-8", "replace"))
        try:
            self.rating.rate(form.get("token", [""])[0], form.get("grade", [""])[0])
        except UsageError as error:
            self._send(400, json.dumps(error.message).encode(), "application/json")
            return
        self.send_response(303)
        self.send_header("Location", f"/{self.rating.secret}/")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _allowed(self) -> bool:
        """The secret in the path, and our own address as the host: no other site's request."""
        host = self.headers.get("Host", "")
        own = {f"127.0.0.1:{self.rating.port}", f"localhost:{self.rating.port}"}
        if self.path.startswith(f"/{self.rating.secret}/") and host in own:
            return True
        self._send(403, b"", "text/plain")
        return False

    def _send(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a request's path holds the secret, and the terminal is the rater's."""
