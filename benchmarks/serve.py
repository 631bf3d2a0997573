"""Does `llava serve` hold under load? Many clients at once, some of which leave or talk nonsense.

Example: python benchmarks/serve.py --clients 32 --seconds 60 --requests 1000

Starts the real server with a key, and asks it about a new picture with every request, so that no
cache spares it the work. One request in ten hangs up after its first token; beside them come bodies
that are malformed or too large, and requests without the key. Prints what was answered and lost,
requests a second, and the server's memory after 100 requests and at the end; exits with 1 where
anything was lost, answered that should not have been, or kept its place. Clients take processor
time, too: these are no figures of an idle server.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "example.png"
KEY = "a key for this measurement"
QUESTIONS = ("what is unusual here?", "how many shapes are there?", "Describe the picture.")
LEAVES = 10
"""One request in so many."""
PATIENCE_S = 600
MIB = 1024 * 1024


@dataclass
class Seen:
    """What became of all requests."""

    outcomes: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    """Of each request that was answered."""
    memory: dict[int, int] = field(default_factory=dict)
    """Bytes of the server after so many requests."""
    odd: list[str] = field(default_factory=list)
    """What should not have been."""

    @property
    def requests(self) -> int:
        return self.outcomes["answered"] + self.outcomes["left"] + self.outcomes["lost"]


class Load:
    """Clients that ask until both time and number are reached."""

    def __init__(self, url: str, pid: int, seconds: float, requests: int) -> None:
        parts = urlsplit(url)
        self._address = (parts.hostname or "", parts.port or 80)
        self._pid = pid
        self._seconds = seconds
        self._requests = requests
        self._numbers = count()
        self._lock = threading.Lock()
        self._picture = PICTURE.read_bytes()
        self.seen = Seen()
        self.took = 0.0

    def run(self, clients: int) -> None:
        """So many at once, and one that sends what is refused."""
        threads = [threading.Thread(target=self._ask_on) for _ in range(clients)]
        self._started = time.monotonic()
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            self._send_what_is_refused()
            time.sleep(0.5)
        self.took = time.monotonic() - self._started

    def _ask_on(self) -> None:
        while True:
            number = next(self._numbers)
            if number >= self._requests and time.monotonic() - self._started >= self._seconds:
                return
            leaves = number % LEAVES == LEAVES - 1
            started = time.monotonic()
            try:
                outcome = self._leave(number) if leaves else self._answered(number)
            except (OSError, http.client.HTTPException, ValueError, LookupError) as error:
                outcome = f"{type(error).__name__}: {error}"
            with self._lock:
                self._note(outcome, time.monotonic() - started)

    def _note(self, outcome: str, seconds: float) -> None:
        seen = self.seen
        if outcome == "answered":
            seen.seconds.append(seconds)
        elif outcome != "left":
            seen.odd.append(outcome)
            outcome = "lost"
        seen.outcomes[outcome] += 1
        if seen.requests % 100 == 0:
            seen.memory[seen.requests] = memory_of(self._pid)

    def _answered(self, number: int) -> str:
        response, connection = self._send(self._body(number, stream=number % 2 == 1))
        with connection:
            text = response.read().decode()
        if response.status != 200:
            return f"status {response.status}: {text[:200]}"
        if number % 2 == 0:
            (choice,) = json.loads(text)["choices"]
            whole = choice["message"]["content"] and choice["finish_reason"] in ("stop", "length")
        else:
            whole = text.rstrip().endswith("data: [DONE]") and '"finish_reason": "' in text
        return "answered" if whole else f"cut short: {text[-200:]}"

    def _leave(self, number: int) -> str:
        response, connection = self._send(self._body(number, stream=True))
        with connection:
            response.readline()
        return "left" if response.status == 200 else f"status {response.status}"

    def _send_what_is_refused(self) -> None:
        """Malformed, too large, without the key: a 4xx each, and no answer."""
        good = self._body(0, stream=False)
        for expected, body, headers in (
            (400, b"{", {}),
            (400, good.replace(b"base64,", b"base64,!"), {}),
            (413, b" " * (2 * MIB), {}),
            (401, good, {"Authorization": "Bearer another"}),
        ):
            try:
                response, connection = self._send(body, headers)
                with connection:
                    text = response.read()
                refused = response.status == expected and b"choices" not in text
                found = "" if refused else f"{response.status}, {expected} was expected"
            except (OSError, http.client.HTTPException) as error:
                found = f"{type(error).__name__} where {expected} was expected"
            with self._lock:
                self.seen.outcomes["refused"] += not found
                if found:
                    self.seen.odd.append(found)

    def _body(self, number: int, *, stream: bool) -> bytes:
        """A question about a picture that nobody has asked about before."""
        picture = self._picture + number.to_bytes(8, "big")  # behind the end: another file
        url = "data:image/png;base64," + base64.b64encode(picture).decode("ascii")
        question = {"type": "text", "text": QUESTIONS[number % len(QUESTIONS)]}
        parts = [{"type": "image_url", "image_url": {"url": url}}, question]
        sampling = {"max_tokens": 32 + number % 3, "temperature": 0.5 * (number % 2), "seed": 1}
        messages = [{"role": "user", "content": parts}]
        return json.dumps(
            {"model": "llava-demo", "messages": messages, "stream": stream, **sampling}
        ).encode()

    def _send(
        self, body: bytes, headers: dict[str, str] | None = None
    ) -> tuple[http.client.HTTPResponse, Any]:
        connection = http.client.HTTPConnection(*self._address, timeout=PATIENCE_S)
        given = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
        connection.request("POST", "/v1/chat/completions", body, {**given, **(headers or {})})
        return connection.getresponse(), closing(connection)

    def at_rest(self) -> bool:
        """Whether nobody keeps a place: those who left took nothing with them."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            connection = http.client.HTTPConnection(*self._address, timeout=PATIENCE_S)
            with closing(connection):
                connection.request("GET", "/metrics", headers={"Authorization": f"Bearer {KEY}"})
                text = connection.getresponse().read().decode()
            if "llava_requests_active 0" in text and "llava_requests_waiting 0" in text:
                return True
            time.sleep(0.1)
        return False


@contextmanager
def server(model: str | None) -> Iterator[tuple[str, int]]:
    """A `llava serve` of its own: address and process."""
    command = [sys.executable, "-m", "llava_cli", "serve", "--port", "0", "--json"]
    command += ["--max-body", "1"] + ([] if model is None else ["--model", model])
    with (
        tempfile.TemporaryDirectory() as home,  # its cache of pictures is nobody else's
        subprocess.Popen(
            command,
            env={**os.environ, "LLAVA_API_KEY": KEY, "LLAVA_HOME": home},
            stdout=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise SystemExit("the server did not start")
            yield json.loads(line)["url"], process.pid
        finally:
            process.terminate()
            process.wait(timeout=PATIENCE_S)


def memory_of(pid: int) -> int:
    """Resident bytes of a process."""
    status = Path(f"/proc/{pid}/status")
    if status.exists():
        (line,) = [s for s in status.read_text("ascii").splitlines() if s.startswith("VmRSS:")]
        return int(line.split()[1]) * 1024
    shown = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, check=True)
    return int(shown.stdout) * 1024


def report(load: Load, clients: int, *, at_rest: bool) -> dict[str, Any]:
    """What was seen, for people and programs."""
    seen = load.seen
    seconds = sorted(seen.seconds)
    quantiles = statistics.quantiles(seconds, n=20) if len(seconds) > 1 else [0.0] * 19
    memory = {n: round(b / MIB, 1) for n, b in sorted(seen.memory.items())}
    return {
        "clients": clients,
        "seconds": round(load.took, 1),
        **{name: seen.outcomes[name] for name in ("answered", "left", "refused", "lost")},
        "requests_per_s": round(seen.requests / load.took, 2),
        "latency_s": {"median": round(quantiles[9], 2), "p95": round(quantiles[18], 2)},
        "memory_mib": memory,
        "at_rest": at_rest,
        "odd": seen.odd[:20],
    }


def main() -> int:
    """Measure; 1 where a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60, help="at least so long")
    parser.add_argument("--requests", type=int, default=1000, help="at least so many")
    parser.add_argument("--model", help="the bundled one where none is named")
    options = parser.parse_args()
    with server(options.model) as (url, pid):
        load = Load(url, pid, options.seconds, options.requests)
        load.run(options.clients)
        at_rest = load.at_rest()
        load.seen.memory[load.seen.requests] = memory_of(pid)
        found = report(load, options.clients, at_rest=at_rest)
    sys.stdout.write(json.dumps(found, indent=2) + "\n")
    return 0 if at_rest and not load.seen.odd else 1


if __name__ == "__main__":
    sys.exit(main())
