"""`--keep-alive`: a server that stays behind quietly, so that later questions load nothing.

It listens on this machine only, answers those who have its key (kept in a file of the person's
own), and ends by itself when it has been idle for so long.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from llava_cli import __version__
from llava_cli.cli import models, remembering
from llava_cli.cli.options import Common
from llava_cli.errors import LlavaError, UsageError
from llava_cli.writing import write_bytes

if TYPE_CHECKING:
    from llava_cli.engines.base import Engine, Sampling


def seconds(text: str) -> int:
    """5m, 90s, 1h, a bare number of seconds; 0 ends a server that stayed behind."""
    match = re.fullmatch(r"(\d{1,6})([smh]?)", text.strip().lower())
    if match is None:
        raise UsageError(f"--keep-alive {text}: is no time", "write it like 5m, 90s or 1h")
    return int(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def load(
    choice: models.ModelChoice, common: Common, sampling: Sampling, keep_alive: str | None
) -> Engine:
    """The engine that stayed behind for this choice, a new one that will, or a plain one."""
    wanted = None if keep_alive is None else seconds(keep_alive)
    probabilities = sampling.top_logprobs > 0 or bool(getattr(sampling, "choices", None))
    if choice.engine == "server" or probabilities:  # a server gives no probabilities
        return models.load(choice, common)
    state = _state(choice)
    if wanted == 0:
        stop(choice)
    found = _connect(state) if state.is_file() else None
    if found is None and wanted:
        _start(choice, common, wanted, state)
        found = _connect(state)
        if found is None:
            raise LlavaError(
                "--keep-alive: the server was started, but does not answer", "try: llava serve"
            )
    return found or models.load(choice, common)


def stop(choice: models.ModelChoice) -> bool:
    """End the server that stayed behind for this choice; whether there was one."""
    state = _state(choice)
    if not state.is_file() or _connect(state) is None:
        return False
    with contextlib.suppress(OSError, ValueError, KeyError):
        os.kill(int(json.loads(state.read_text(encoding="utf-8"))["pid"]), signal.SIGTERM)
    state.unlink(missing_ok=True)
    return True


def _state(choice: models.ModelChoice) -> Path:
    """Where the address and key of such a server are kept."""
    model = choice.model
    if model is not None and Path(model).exists():
        model = str(Path(model).absolute())
    what = (__version__, model, choice.mmproj, choice.engine, choice.device, choice.threads)
    adapter = choice.adapter.absolute() if choice.adapter is not None else None
    parts = (choice.quantize, adapter, choice.base, choice.vision_tower)
    text = repr((*what, choice.prompt_format, *parts))
    name = hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:16]
    return remembering.home() / "servers" / f"{name}.json"


def _connect(state: Path) -> Engine | None:
    """The server that a state file names; None, and no file any more, where it has ended."""
    from llava_cli.engines.server import ServerEngine

    try:
        known = json.loads(state.read_text(encoding="utf-8"))
        return ServerEngine(known["url"], model=known["model"], api_key=known["key"])
    except (OSError, ValueError, KeyError, TypeError, LlavaError):
        state.unlink(missing_ok=True)
        return None


def _command(choice: models.ModelChoice, common: Common, idle_s: int) -> list[str]:
    """The server's command line."""
    command = [sys.executable, "-m", "llava_cli", "serve", "--port", "0", "--json"]
    command += ["--idle-exit", str(idle_s), "--engine", choice.engine, "--device", choice.device]
    for option, value in (
        ("--model", choice.model),
        ("--mmproj", choice.mmproj),
        ("--threads", choice.threads),
        ("--prompt-format", choice.prompt_format),
        ("--quantize", choice.quantize),
        ("--adapter", choice.adapter),
        ("--base", choice.base),
        ("--vision-tower", choice.vision_tower),
    ):
        command += [option, str(value)] if value is not None else []
    return command + (["--offline"] if common.offline else [])


def _start(choice: models.ModelChoice, common: Common, idle_s: int, state: Path) -> None:
    """Start a server of its own session; returns when it answers."""
    key = secrets.token_urlsafe(32)
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            _command(choice, common, idle_s),
            env={**os.environ, "LLAVA_API_KEY": key},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=said,
            start_new_session=True,
        )
        line = process.stdout.readline() if process.stdout is not None else b""
        if not line.strip():
            process.wait()
            said.seek(0)
            raise _failed(said.read(100_000))
    if process.stdout is not None:
        process.stdout.close()
    process.returncode = 0  # it is meant to outlive us: no warning about that
    document = {**json.loads(line), "key": key, "pid": process.pid}
    state.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    aside = state.with_suffix(f".{os.getpid()}.tmp")
    aside.touch(mode=0o600)
    write_bytes(state, json.dumps(document).encode("utf-8"), aside)


def _failed(said: bytes) -> LlavaError:
    """The failure that a server ended with, as it reported it."""
    for line in reversed(said.decode("utf-8", "replace").splitlines()):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            error = json.loads(line)["error"]
            return LlavaError(f"--keep-alive: {error['message']}", error["hint"])
    return LlavaError("--keep-alive: the server did not start", "see: llava serve --debug")
