"""Escapes only where a person's terminal wants them."""

from __future__ import annotations

import io
import sys

import pytest

from llava_cli.terminal import streams


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


@pytest.mark.skipif(sys.platform == "win32", reason="decided by the terminal program there")
def test_a_terminal_takes_escapes() -> None:
    assert streams.takes_escapes(Terminal())
    assert streams.dim("x", Terminal()) == "\x1b[2mx\x1b[0m"


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_a_terminal_that_wants_none_gets_none(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    assert not streams.takes_escapes(Terminal())
    assert streams.dim("x", Terminal()) == "x"


def test_empty_no_color_means_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "")
    assert streams.takes_escapes(Terminal()) is (sys.platform != "win32")


def test_a_pipe_gets_no_escapes() -> None:
    assert not streams.takes_escapes(io.StringIO())
    closed = io.StringIO()
    closed.close()
    assert not streams.takes_escapes(closed)


def test_status_leaves_nothing_on_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    with streams.status("working", wanted=True):
        streams.note("a note\x1b")
    assert capsys.readouterr().err == "a note\\x1b\n"


@pytest.mark.skipif(sys.platform == "win32", reason="decided by the terminal program there")
def test_status_is_wiped_from_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with streams.status("working", wanted=True):
        assert "working" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r\x1b[K")
