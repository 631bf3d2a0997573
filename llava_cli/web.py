"""The bytes behind an http(s) URL, bounded in size, time and redirects.

Standard library only; knows nothing about pictures beyond the words of its messages.
"""

from __future__ import annotations

import http.client
import ipaddress
import re
import socket
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import IO

from llava_cli import __version__
from llava_cli.errors import ImageError, LlavaError

SILENCE_S = 10.0
"""Longest wait for a server that says nothing."""
TOTAL_S = 60.0
"""Longest time for one picture, redirects included."""
MAX_REDIRECTS = 5
_WEB = re.compile(r"https?://", re.IGNORECASE)
_CHUNK = 64 * 1024
_HINT = "check the address and the connection, or download the picture and give its path"


def fetch(url: str, max_bytes: int, *, public_only: bool = False) -> bytes:
    """Download one URL; ImageError with a remedy for everything that can go wrong.

    `public_only` is for URLs that strangers name: it connects to addresses of the public internet
    alone, whatever a name resolves to or a redirect says, and through no proxy.
    """
    if not _WEB.match(url):
        raise ImageError(f"{url}: only http and https URLs are fetched", _HINT)
    outcome: list[bytes | LlavaError] = []

    def work() -> None:
        try:
            outcome.append(_download(url, max_bytes, time.monotonic() + TOTAL_S, public_only))
        except LlavaError as error:
            outcome.append(error)

    # A thread, because neither name resolution nor a server that drips header bytes can be given
    # a total time otherwise.
    thread = threading.Thread(target=work, daemon=True, name="fetch")
    thread.start()
    thread.join(TOTAL_S)
    if not outcome:
        raise _too_slow(url)
    result = outcome[0]
    if isinstance(result, LlavaError):
        raise result
    return result


def _download(url: str, max_bytes: int, deadline: float, public_only: bool) -> bytes:
    handlers: list[urllib.request.BaseHandler] = [_Redirects()]
    if public_only:
        handlers += [
            urllib.request.ProxyHandler({}),
            _PublicHTTP(),
            _PublicHTTPS(context=_tls_context()),
        ]
    else:
        handlers.append(urllib.request.HTTPSHandler(context=_tls_context()))
    opener = urllib.request.build_opener(*handlers)
    try:
        request = urllib.request.Request(
            _ascii_url(url),
            headers={"User-Agent": f"llava/{__version__}", "Accept": "image/*,*/*;q=0.5"},
        )
        with opener.open(request, timeout=SILENCE_S) as response:
            return _read(response, url, max_bytes, deadline)
    except urllib.error.HTTPError as error:
        error.close()
        raise ImageError(f"{url}: {_refusal(error)}", _HINT) from error
    except TimeoutError as error:
        raise _too_slow(url) from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError):
            raise _too_slow(url) from error
        reason = getattr(error.reason, "strerror", None) or error.reason
        raise ImageError(f"{url}: cannot be reached: {reason}", _HINT) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = str(error) or type(error).__name__
        raise ImageError(f"{url}: cannot be fetched: {reason}", _HINT) from error


def _read(response: http.client.HTTPResponse, url: str, max_bytes: int, deadline: float) -> bytes:
    """The body, in pieces, so that neither a large nor a slow one runs away."""
    kind = response.headers.get_content_type()
    if kind == "text/html":
        raise ImageError(
            f"{url}: is a web page (HTML), not a picture",
            "give the address of the picture itself, not of the page that shows it",
        )
    data = bytearray()
    while chunk := response.read1(_CHUNK):
        data += chunk
        if len(data) > max_bytes:
            limit = max_bytes // 1024 // 1024
            raise ImageError(f"{url}: is larger than {limit} MiB", "give a smaller picture")
        if time.monotonic() > deadline:
            raise _too_slow(url)
    announced = response.headers.get("Content-Length", "")
    if announced.isdigit() and len(data) < int(announced):
        raise ImageError(f"{url}: the connection broke off before the end", "try again")
    return bytes(data)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows few redirects, and only to http(s)."""

    max_redirections = MAX_REDIRECTS

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        if not _WEB.match(newurl):
            raise ImageError(f"{req.full_url}: redirects to {newurl}, which is not fetched", _HINT)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _PublicConnection(http.client.HTTPConnection):
    """Connects to the very address that was found to be public: no second look-up can differ."""

    def connect(self) -> None:
        self.sock = _public_socket(self.host, self.port, self.timeout)


class _PublicTLSConnection(http.client.HTTPSConnection):
    """The same under TLS."""

    def connect(self) -> None:
        plain = _public_socket(self.host, self.port, self.timeout)
        self.sock = _tls_context().wrap_socket(plain, server_hostname=self.host)


class _PublicHTTP(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_PublicConnection, req)


class _PublicHTTPS(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_PublicTLSConnection, req)


def _public_socket(host: str, port: int, timeout: float | None) -> socket.socket:
    """A connection to a host all of whose addresses are public; ImageError otherwise."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for *_, address in found:
        if not is_public(str(address[0])):
            raise ImageError(f"{host}: is no public address, so nothing is fetched from it", _HINT)
    error: OSError = OSError("the name has no address")
    for family, kind, protocol, _, address in found:
        connection = socket.socket(family, kind, protocol)
        try:
            connection.settimeout(timeout)
            connection.connect(address)
            return connection
        except OSError as refused:
            connection.close()
            error = refused
    raise error


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the public internet, addresses inside it included."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is not None:
            return is_public(str(inner))
        if ip in _NAT64:
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
    return ip.is_global and not ip.is_multicast


_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def _refusal(error: urllib.error.HTTPError) -> str:
    """What a status other than success means."""
    target = error.headers.get("Location", "") if error.headers else ""
    if not 300 <= error.code < 400 or not target:
        return f"the server answered {error.code} {error.reason}".rstrip()
    if re.match(r"[a-z][a-z0-9+.-]*:", target, re.IGNORECASE) and not _WEB.match(target):
        return f"redirects to {target}, which is not fetched"
    return f"more than {MAX_REDIRECTS} redirects, or redirects in a circle"


def _tls_context() -> ssl.SSLContext:
    """The system's certificates, and certifi's where it is installed (Python on macOS has none)."""
    context = ssl.create_default_context()
    try:
        import certifi
    except ImportError:
        return context
    context.load_verify_locations(certifi.where())
    return context


def _ascii_url(url: str) -> str:
    """The same URL as HTTP can carry it: host in IDNA, the rest percent-encoded."""
    parts = urllib.parse.urlsplit(url)
    host = parts.netloc if parts.netloc.isascii() else parts.netloc.encode("idna").decode("ascii")
    path = urllib.parse.quote(parts.path, safe="/%:@!$&'()*+,;=~")
    query = urllib.parse.quote(parts.query, safe="/%:@!$&'()*+,;=~?[]|")
    return urllib.parse.urlunsplit((parts.scheme, host, path, query, ""))


def _too_slow(url: str) -> ImageError:
    return ImageError(f"{url}: the server does not answer in time", _HINT)
