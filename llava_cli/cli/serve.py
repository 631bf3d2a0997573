"""`llava serve`: an OpenAI-compatible server on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llava_cli.cli.groups import Command
from llava_cli.cli.options import common, model_options, sampling_from, sampling_options

if TYPE_CHECKING:
    from llava_cli.serving.worker import Worker

EXAMPLES = (
    ("llava serve", "http://127.0.0.1:8080 with a chat page"),
    ("llava serve -m llava-hf/llava-1.5-7b-hf --port 9000", "another model, another port"),
    ("llava serve --host 0.0.0.0 --api-key-file key.txt", "for others: only with a key"),
)
LOOPBACK = ("127.0.0.1", "localhost", "::1")
SHUTDOWN_S = 20
"""How long answers may still take after the server was asked to stop."""


@click.command("serve", cls=Command, examples=EXAMPLES)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(min=0, max=65535),
    default=8080,
    show_default=True,
    help="0 takes a free one.",
)
@click.option(
    "--api-key-file",
    type=click.Path(path_type=Path),
    help="Answer only those who send this key; or set LLAVA_API_KEY.",
)
@click.option("--allow-urls", is_flag=True, help="Fetch pictures from public URLs that are sent.")
@click.option(
    "--max-body",
    type=click.IntRange(min=1, max=1024),
    default=64,
    show_default=True,
    metavar="MIB",
    help="Largest request.",
)
@click.option(
    "--idle-exit",
    type=click.IntRange(min=1),
    metavar="SECONDS",
    help="End after so long without a request.",
)
@sampling_options
@model_options
def serve(host: str, port: int, **options: Any) -> None:
    """Answer requests in OpenAI's chat completion form, pictures included.

    The sampling options are what requests get that do not say. The page at / is a chat.
    """
    from importlib.util import find_spec

    from llava_cli.cli import models
    from llava_cli.errors import MissingDependency
    from llava_cli.serving.worker import Worker

    for package in ("starlette", "uvicorn"):
        if find_spec(package) is None:
            raise MissingDependency(f"serving needs {package}", "pip install 'llava-cli[serve]'")
    key = _api_key(options["api_key_file"])
    if key is None and host not in LOOPBACK:
        raise click.UsageError(
            f"--host {host} lets others in: give an API key (--api-key-file or LLAVA_API_KEY)"
        )
    options["sampling"] = sampling_from(options)
    choice = models.ModelChoice.from_options(options)
    listening = _listen(host, port)
    worker = Worker(lambda: models.load(choice, common()))
    try:
        _run(worker, listening, host, key, options)
    finally:
        listening.close()


def _api_key(file: Path | None) -> str | None:
    """The key, from a file or the environment; never from an argument, which others can see."""
    import os

    from llava_cli.errors import UsageError

    if file is None:
        return os.environ.get("LLAVA_API_KEY", "").strip() or None
    try:
        key = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is not text"
        raise UsageError(f"{file}: {reason}", "write the key into a file of its own") from error
    if not key:
        raise UsageError(f"{file}: is empty", "write the key into it")
    return key


def _listen(host: str, port: int) -> Any:
    """A bound socket: a port that is taken is said before a model is loaded."""
    import socket

    from llava_cli.errors import UsageError

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
        found.listen(128)  # who connects before the model is loaded waits, and is not refused
    except OSError as error:
        found.close()
        reason = error.strerror or str(error)
        raise UsageError(
            f"cannot listen on {host}:{port}: {reason}", "give another --port, or 0 for any"
        ) from error
    return found


def _run(
    worker: Worker, listening: Any, host: str, key: str | None, options: dict[str, Any]
) -> None:
    """Load, listen, and answer until a signal comes."""
    import signal
    import sys

    import uvicorn

    from llava_cli import web
    from llava_cli.images import MAX_BYTES
    from llava_cli.serving.app import Settings, build
    from llava_cli.serving.requests import Limits

    engine = worker.start()

    def fetch(url: str) -> bytes:
        return web.fetch(url, MAX_BYTES, public_only=True)

    allowed = options["allow_urls"] and not common().offline
    settings = Settings(
        model=engine.files.reference,
        sampling=options["sampling"],
        api_key=key,
        max_body=options["max_body"] * 1024 * 1024,
        limits=Limits(fetch=fetch if allowed else None),
        hosts=("localhost", "127.0.0.1", "[::1]") if key is None else ("*",),
    )
    config = uvicorn.Config(
        build(settings, worker),
        log_level="info" if common().verbose else "warning",
        access_log=common().verbose,
        timeout_graceful_shutdown=SHUTDOWN_S,
        server_header=False,
        lifespan="on",
    )
    _announce(host, listening.getsockname()[1], settings.model)
    # uvicorn stops gracefully on either signal, then raises it again: SIGTERM is a normal end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    server = uvicorn.Server(config)
    if options["idle_exit"] is not None:
        _end_when_idle(server, worker, options["idle_exit"])
    server.run(sockets=[listening])


def _end_when_idle(server: Any, worker: Worker, idle_s: int) -> None:
    """Watch in a thread; the server ends as it does after a signal."""
    import threading
    import time

    def watch() -> None:
        while worker.idle_s < idle_s:
            time.sleep(min(1.0, idle_s / 4))
        server.should_exit = True

    threading.Thread(target=watch, daemon=True, name="idle").start()


def _announce(host: str, port: int, model: str) -> None:
    """Where it listens: one line for a person, one document for a program."""
    from llava_cli.terminal.documents import write_json_line
    from llava_cli.terminal.streams import note

    shown = f"[{host}]" if ":" in host else host
    url = f"http://{shown}:{port}"
    if common().json:
        write_json_line({"url": url, "model": model})
    elif not common().quiet:
        note(f"{model} answers at {url}/v1 · a page to chat: {url}/ · Ctrl-C stops")
