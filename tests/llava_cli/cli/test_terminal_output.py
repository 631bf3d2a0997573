"""What `llava ask` writes to a real (pseudo) terminal."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.llava_cli.cli.conftest import FAKE, process_environment

pty = pytest.importorskip("pty")

NASTY = "\x1b[2J\x1b]0;title\x07 [/INST] [red] \x9b31m \u202e <b> **bold**\n\n- item\n"
Terminal = Callable[..., str]


@pytest.fixture
def terminal() -> Terminal:
    """Run `llava` with all streams on a terminal; gives what the terminal received."""

    def go(*arguments: str, script: list[str | float], env: dict[str, str] | None = None) -> str:
        master, slave = pty.openpty()
        environment = process_environment(script, {"TERM": "xterm-256color", **(env or {})})
        if env is None:
            environment.pop("NO_COLOR", None)
        process = subprocess.Popen(
            [sys.executable, str(FAKE), *arguments],
            env=environment,
            stdin=slave,
            stdout=slave,
            stderr=slave,
        )
        os.close(slave)
        received = b""
        try:
            while piece := os.read(master, 65536):
                received += piece
        except OSError:  # Linux: the other end has closed
            pass
        finally:
            os.close(master)
        assert process.wait(timeout=100) == 0, received
        return received.decode("utf-8").replace("\r\n", "\n")

    return go


def test_markdown_is_rendered_and_nothing_steers_the_terminal(terminal: Terminal) -> None:
    received = terminal("ask", "hi", "-q", script=[NASTY[:20], 0.1, NASTY[20:]])
    for control in ("\x1b[2J", "\x1b]0;", "\x07", "\x9b", "\u202e"):
        assert control not in received
    assert "\\x1b[2J\\x1b]0;title\\x07 [/INST] [red] \\x9b31m \\u202e <b>" in received
    assert "**" not in received
    assert "• item" in received.replace("\x1b[1;33m", "").replace("\x1b[0m", "")


@pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
@pytest.mark.parametrize("markdown", ["auto", "always", "never"])
def test_no_escape_byte_where_none_is_wanted(
    terminal: Terminal, env: dict[str, str], markdown: str
) -> None:
    received = terminal(
        "ask", "hi", "--stats", "--markdown", markdown, script=[NASTY, 0.1, "end"], env=env
    )
    assert "\x1b" not in received
    assert "\\x1b[2J" in received
    assert "only drawn shapes" in received


def test_never_is_plain_but_harmless(terminal: Terminal) -> None:
    received = terminal("ask", "hi", "-q", "--markdown", "never", script=[NASTY])
    assert received == (
        "\\x1b[2J\\x1b]0;title\\x07 [/INST] [red] \\x9b31m \\u202e <b> **bold**\n\n- item\n"
    )


def test_the_note_is_dim_and_on_one_line(terminal: Terminal) -> None:
    received = terminal("ask", "hi", script=["fine"])
    assert received.startswith("\x1b[2mthe bundled model knows only drawn shapes")
    assert received.splitlines()[0].endswith("\x1b[0m")


def test_json_on_a_terminal_is_harmless_and_exact(terminal: Terminal) -> None:
    import json

    received = terminal("ask", "hi", "-q", "--json", script=[NASTY])
    assert not set(received) & set("\x1b\x07\x9b\u202e")
    assert json.loads(received)["text"] == NASTY
