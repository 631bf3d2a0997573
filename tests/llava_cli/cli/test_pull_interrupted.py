"""A pull that is killed goes on where it stopped; at a terminal the person is asked first."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests import hub_server
from tests.hub_server import Fault, Repo
from tests.llava_cli.cli.conftest import process_environment
from tests.llava_cli.cli.test_models import demo_files


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """The bundled model, as somebody's repository."""
    return demo_files()


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_pull_is_resumed_by_the_next(
    tmp_path: Path, files: dict[str, bytes], sign: signal.Signals
) -> None:
    with hub_server.running() as hub:
        hub.repos["org/name"] = Repo(dict(files))
        hub.faults = [Fault("/blob/", hold_after=1_000_000)]
        env = process_environment(None, hub_server.environment(hub, tmp_path))
        command = [sys.executable, "-m", "llava_cli", "pull", "org/name"]
        first = subprocess.Popen(
            command, env=env, stderr=subprocess.PIPE, stdout=subprocess.PIPE,
            preexec_fn=_hears_ctrl_c,
        )  # fmt: skip
        assert hub.held.wait(100)
        part = wait_for_part(tmp_path)
        first.send_signal(sign)
        _, err = first.communicate(timeout=100)
        assert first.returncode == (-9 if sign == signal.SIGKILL else 130), err
        came = part.stat().st_size
        assert came > 0
        hub.release.set()
        hub.requests.clear()
        done = subprocess.run(command, env=env, capture_output=True, timeout=100, check=False)
        assert done.returncode == 0, done.stderr
        assert hub.sent()[0].range == f"bytes={came}-"
    blobs = tmp_path / "hub" / "models--org--name" / "blobs"
    assert not list(blobs.glob("*.incomplete"))
    snapshot = tmp_path / "hub" / "models--org--name" / "snapshots" / hub_server.COMMIT
    assert {path.name: path.read_bytes() for path in snapshot.iterdir()} == files


def _hears_ctrl_c() -> None:
    """Also where the tests themselves run in the background, in which shells ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_for_part(home: Path) -> Path:
    """The part of a download, as soon as there is something in it."""
    tick = threading.Event()
    for _ in range(2000):
        for part in home.glob("hub/models--org--name/blobs/*.incomplete"):
            if part.stat().st_size > 0:
                return part
        tick.wait(0.05)
    raise AssertionError("no part of the download appeared")


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals")
@pytest.mark.parametrize(("answer", "code"), [(b"n\n", 3), (b"y\n", 0), (b"\x03", 130)])
def test_on_a_terminal_the_person_is_asked(
    tmp_path: Path, files: dict[str, bytes], answer: bytes, code: int
) -> None:
    with hub_server.running() as hub:
        hub.repos["org/name"] = Repo(dict(files))
        env = process_environment(None, hub_server.environment(hub, tmp_path))
        ran, screen = at_terminal(["ask", "hi", "-m", "org/name", "--max-tokens", "1"], env, answer)
        assert "5.5 MB to fetch from org/name" in screen
        assert "Fetch it? [Y/n]" in screen
        assert ran == code, screen
        assert bool(hub.sent()) == (code == 0)


def at_terminal(arguments: list[str], env: dict[str, Any], answer: bytes) -> tuple[int, str]:
    """Run with a terminal; `answer` is typed at the first question mark."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "llava_cli", *arguments],
        env={**env, "TERM": "xterm", "COLUMNS": "100"},
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        preexec_fn=_own_terminal,
    )
    os.close(slave)
    screen, answered = b"", False
    until = time.monotonic() + 200
    while time.monotonic() < until:
        if not select.select([master], [], [], 2)[0]:
            # Python's readline may miss a Ctrl-C that comes just before it waits: press it again.
            if answered and answer == b"\x03":
                os.write(master, answer)
            continue
        try:
            chunk = os.read(master, 4096)
        except OSError:  # the last one closed it
            break
        if not chunk:
            break
        screen += chunk
        if not answered and b"[Y/n]" in screen:
            os.write(master, answer)
            answered = True
    os.close(master)
    return process.wait(100), screen.decode("utf-8", "replace")


def _own_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
