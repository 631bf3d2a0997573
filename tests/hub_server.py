"""A Hub on the loopback interface: enough of its HTTP protocol for the real huggingface_hub client.

Two servers, as on the Hub: one has the API and the small files, the other the large ones, to which
the first redirects with a signed address. Faults are planned per path and used up one by one.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import struct
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

COMMIT = "c0ffee" * 6 + "c0ff"


@dataclass
class Repo:
    """One repository."""

    files: dict[str, bytes]
    license: str = "apache-2.0"
    commit: str = COMMIT
    token: str | None = None
    """Needed to read it."""
    gated: bool = False
    large: int = 1000
    """Files from this size on are stored apart (LFS), with a SHA-256."""
    branches: tuple[str, ...] = ("main",)

    def is_large(self, name: str) -> bool:
        return len(self.files[name]) >= self.large

    def etag(self, name: str) -> str:
        content = self.files[name]
        if self.is_large(name):
            return hashlib.sha256(content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Fault:
    """What goes wrong with the next requests of a path."""

    path: str
    """A regular expression."""
    times: int = 1
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    """The connection is reset after so many bytes of the body."""
    silent_s: float = 0.0
    """Nothing is said for so long."""
    ignores_range: bool = False
    change: Callable[[bytes], bytes] | None = None
    """What becomes of the content, not of its announced checksum."""
    hold_after: int | None = None
    """Sends so many bytes, then waits until `Hub.release` is set."""
    body: bytes | None = None


@dataclass(frozen=True)
class Request:
    """One request that came."""

    server: str
    """hub or cdn."""
    method: str
    path: str
    range: str | None
    authorization: str | None


class Hub:
    """The two servers and what they hold."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        """By org/name; a data set by datasets/org/name."""
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.release = threading.Event()
        self.held = threading.Event()
        """Set when a request waits."""
        self._lock = threading.Lock()
        self._servers = {name: self._serve(name) for name in ("hub", "cdn")}

    @property
    def url(self) -> str:
        """For HF_ENDPOINT."""
        return self._url("hub")

    def close(self) -> None:
        self.release.set()
        for server in self._servers.values():
            server.shutdown()
            server.server_close()

    def sent(self, server: str = "cdn") -> list[Request]:
        """Requests that one of the servers got."""
        return [request for request in self.requests if request.server == server]

    def _url(self, name: str) -> str:
        return f"http://127.0.0.1:{self._servers[name].server_address[1]}"

    def _serve(self, name: str) -> ThreadingHTTPServer:
        handler = type("Handler", (_Handler,), {"hub": self, "name": name})
        server = _Server(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return server

    def fault(self, path: str) -> Fault | None:
        with self._lock:
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.path, path):
                    fault.times -= 1
                    return fault
        return None


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """A client that went, or a connection that a fault closed."""


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    hub: Hub
    name: str
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Silence."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urllib.parse.unquote(self.path)
        headers = self.headers
        self.hub.requests.append(
            Request(
                self.name, self.command, path, headers.get("Range"), headers.get("Authorization")
            )
        )
        fault = self.hub.fault(path)
        if fault is not None:
            if fault.silent_s:
                self.hub.release.wait(fault.silent_s)
            if fault.status is not None:
                self._send(fault.status, dict(fault.headers), fault.body or b"{}", None)
                return
        try:
            self._answer(path, fault)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _answer(self, path: str, fault: Fault | None) -> None:
        if self.name == "cdn":
            match = re.match(r"/blob/([^?]+)\?signature=1", path)
            for repo in self.hub.repos.values():
                for name, content in repo.files.items():
                    if match and repo.etag(name) == match[1]:
                        self._content(content, {}, fault)
                        return
            self._send(403, {}, b"expired", fault)
            return
        api = path.replace("/api/models/", "/api/", 1)
        name = r"((?:datasets/)?[^/]+/[^/?]+)"
        if match := re.match(rf"/api/{name}(?:/revision/([^?]+))?(?:\?|$)", api):
            self._info(match[1], match[2] or "main", fault)
        elif match := re.match(rf"/api/{name}/tree/([^/?]+)", api):
            self._tree(match[1], match[2], fault)
        elif match := re.match(rf"/{name}/resolve/([^/]+)/(.+?)(?:\?|$)", path):
            self._file(match[1], match[2], match[3], fault)
        else:
            self._send(404, {}, b"{}", fault)

    def _repo(self, name: str, revision: str, fault: Fault | None) -> Repo | None:
        """The repository, or a refusal sent."""
        repo = self.hub.repos.get(name)
        allowed = repo is not None and (
            repo.token is None or self.headers.get("Authorization") == f"Bearer {repo.token}"
        )
        if repo is None or (not allowed and not repo.gated):
            self._refuse(401, "RepoNotFound", "Invalid username or password.", fault)
        elif revision not in (*repo.branches, repo.commit):
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}", fault)
        else:
            return repo
        return None

    def _refuse(self, status: int, code: str, message: str, fault: Fault | None) -> None:
        body = json.dumps({"error": message}).encode()
        self._send(status, {"X-Error-Code": code, "X-Error-Message": message}, body, fault)

    def _info(self, name: str, revision: str, fault: Fault | None) -> None:
        repo = self._repo(name, revision, fault)
        if repo is None:
            return
        siblings: list[dict[str, Any]] = []
        for file, content in repo.files.items():
            entry: dict[str, Any] = {"rfilename": file, "size": len(content), "blobId": "0" * 40}
            if repo.is_large(file):
                entry["lfs"] = {"sha256": repo.etag(file), "size": len(content), "pointerSize": 134}
            else:
                entry["blobId"] = repo.etag(file)
            siblings.append(entry)
        info = {
            "id": name.removeprefix("datasets/"), "modelId": name, "sha": repo.commit,
            "siblings": siblings, "private": False, "gated": "auto" if repo.gated else False,
            "tags": [], "downloads": 0, "likes": 0, "cardData": {"license": repo.license},
        }  # fmt: skip
        self._send(200, {"Content-Type": "application/json"}, json.dumps(info).encode(), fault)

    def _tree(self, name: str, revision: str, fault: Fault | None) -> None:
        repo = self._repo(name, revision, fault)
        if repo is None:
            return
        entries = []
        for file, content in repo.files.items():
            entry = {"type": "file", "path": file, "size": len(content), "oid": "0" * 40}
            if repo.is_large(file):
                oid = repo.etag(file)
                entry["lfs"] = {"oid": oid, "size": len(content), "pointerSize": 134}
            else:
                entry["oid"] = repo.etag(file)
            entries.append(entry)
        self._send(200, {"Content-Type": "application/json"}, json.dumps(entries).encode(), fault)

    def _file(self, name: str, revision: str, file: str, fault: Fault | None) -> None:
        repo = self._repo(name, revision, fault)
        if repo is None:
            return
        if repo.gated and self.headers.get("Authorization") != f"Bearer {repo.token}":
            self._refuse(403, "GatedRepo", "Access to this model is restricted.", fault)
            return
        if file not in repo.files:
            self._refuse(404, "EntryNotFound", "Entry not found", fault)
            return
        headers = {"X-Repo-Commit": repo.commit, "ETag": f'"{repo.etag(file)}"'}
        content = repo.files[file]
        if not repo.is_large(file):
            self._content(content, headers, fault)
            return
        headers |= {
            "X-Linked-Etag": f'"{repo.etag(file)}"',
            "X-Linked-Size": str(len(content)),
            "Location": f"{self.hub._url('cdn')}/blob/{repo.etag(file)}?signature=1",
        }
        self._send(302, headers, b"", fault)

    def _content(self, content: bytes, headers: dict[str, str], fault: Fault | None) -> None:
        headers = {"Accept-Ranges": "bytes", **headers}
        if fault and fault.change:
            content = fault.change(content)
        wanted = re.match(r"bytes=(\d+)-$", self.headers.get("Range") or "")
        if wanted is None or (fault and fault.ignores_range):
            self._send(200, headers, content, fault)
            return
        start = int(wanted[1])
        if start >= len(content):
            self._send(416, {"Content-Range": f"bytes */{len(content)}"}, b"", fault)
            return
        span = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._send(206, headers | {"Content-Range": span}, content[start:], fault)

    def _send(
        self, status: int, headers: Mapping[str, str], body: bytes, fault: Fault | None
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault and fault.hold_after is not None:
            self.wfile.write(body[: fault.hold_after])
            self.wfile.flush()
            self.hub.held.set()
            self.hub.release.wait(60)
            body = body[fault.hold_after :]
        if fault and fault.cut_after is not None and fault.cut_after < len(body):
            self.wfile.write(body[: fault.cut_after])
            self.wfile.flush()
            # a reset, as a broken line gives it, and not a tidy end; what was sent may arrive first
            time.sleep(0.02)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
            return
        self.wfile.write(body)


@contextmanager
def running() -> Iterator[Hub]:
    """A Hub for as long as the block lasts."""
    hub = Hub()
    try:
        yield hub
    finally:
        hub.close()


def use_endpoint(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """What HF_ENDPOINT does when the client is imported."""
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@contextmanager
def attached(monkeypatch: pytest.MonkeyPatch, home: Path) -> Iterator[Hub]:
    """A Hub that this process's client talks to, with a cache of its own and no waiting."""
    from llava_cli.models import listing, transfer

    with running() as hub:
        use_endpoint(monkeypatch, hub.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setattr(transfer, "WAITS_S", (0.0,) * 3)
        monkeypatch.setattr(listing, "RETRY_WAITS_S", (0.0,) * 2)
        yield hub


def environment(hub: Hub, home: Path) -> dict[str, str]:
    """The same for a process of its own."""
    return {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
