"""`llava chat` at a real (pseudo) terminal: keys, not lines."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.llava_cli.cli.conftest import FAKE, process_environment

if sys.platform == "win32":
    pytest.skip("POSIX terminals", allow_module_level=True)

from tests.llava_cli.terminals import Terminal

CTRL_C, CTRL_D, UP, TAB = "\x03", "\x04", "\x1b[A", "\t"
ALT_ENTER = "\x1b\r"
PASTE = "\x1b[200~{}\x1b[201~"
SLOWLY: list[str | float] = [0.05, "."] * 400


def chat(*arguments: str, script: list[str | float], **more: str) -> Terminal:
    environment = process_environment(script, {"PROMPT_TOOLKIT_NO_CPR": "1", **more})
    if "NO_COLOR" not in more:
        environment.pop("NO_COLOR", None)
    return Terminal([str(FAKE), "chat", *arguments], environment)


def test_a_conversation_with_keys(picture: Path) -> None:
    with chat("--markdown", "never", script=["you said something"]) as terminal:
        terminal.expect(">")
        terminal.send("hello\r")
        terminal.expect("you said something")
        terminal.expect(">")
        terminal.send(UP)  # history
        terminal.expect("hello")
        terminal.send(CTRL_C)  # empties the line
        terminal.send(f"/image {picture.parent}/pho")
        terminal.expect("/pho")
        terminal.send(TAB)  # completion of a picture's path
        terminal.expect("to.jpg")
        terminal.send("\r")
        terminal.expect("staged ")
        terminal.expect("[1] >")
        terminal.send("first line" + ALT_ENTER + "second line\r")
        terminal.expect("you said something")
        terminal.send(PASTE.format("pasted\nlines"))
        terminal.send("\r")
        terminal.expect("you said something")
        terminal.expect(">")
        terminal.send("/exp")
        terminal.expect("/exp")
        terminal.send(TAB)  # and of a command
        terminal.expect("ort")
        terminal.send(" " + str(picture.with_name("talk.md")) + "\r")
        terminal.expect("exported")
        terminal.expect(">")  # a key that comes before the editor would be the terminal's own
        terminal.send(CTRL_D)
        assert terminal.end() == 0
    text = picture.with_name("talk.md").read_text()
    assert "first line\nsecond line\n" in text
    assert "pasted\nlines\n" in text


def test_ctrl_c_stops_the_answer_only() -> None:
    with chat("--markdown", "never", script=["so far", *SLOWLY, "never"]) as terminal:
        terminal.expect(">")
        terminal.send("tell me\r")
        terminal.expect("so far")
        terminal.interrupt()
        terminal.expect("stopped")
        terminal.expect(">")
        terminal.send("/stats\r")
        terminal.expect("tokens/s")
        terminal.expect(">")  # before the editor reads keys, Ctrl-C would be the terminal's own
        terminal.send(CTRL_C)
        terminal.expect("Ctrl-D leaves")
        terminal.expect(">")  # a key that comes before the editor would be the terminal's own
        terminal.send(CTRL_D)
        assert terminal.end() == 0
    assert "never" not in terminal.received
    assert "Traceback" not in terminal.received


def test_an_error_does_not_end_it() -> None:
    with chat(script=["fine"]) as terminal:
        terminal.expect(">")
        terminal.send("/image missing.jpg\r")
        terminal.expect("hint:")
        terminal.send("/nonsense\r")
        terminal.expect("there is no command /nonsense")
        terminal.send("hi\r")
        terminal.expect("fine")
        terminal.send("/exit\r")
        assert terminal.end() == 0


def test_edit_opens_the_last_question_in_the_editor() -> None:
    with chat("--markdown", "never", script=["answer"]) as terminal:
        terminal.expect(">")
        terminal.send("what is that\r")
        terminal.expect("answer")
        terminal.send("/edit\r")
        terminal.expect("what is that")
        terminal.send(" thing?\r")
        terminal.expect("answer")
        terminal.expect(">")  # a key that comes before the editor would be the terminal's own
        terminal.send(CTRL_D)
        assert terminal.end() == 0


@pytest.mark.parametrize("plain", [{"NO_COLOR": "1"}, {"TERM_WANTED": "dumb"}])
def test_no_escape_byte_where_none_is_wanted(plain: dict[str, str]) -> None:
    with chat("-q", script=["\x1b[2Jfine"], **plain) as terminal:
        terminal.expect(">")
        terminal.send("hi\n")
        terminal.expect("fine")
        terminal.expect(">")  # a key that comes before the editor would be the terminal's own
        terminal.send(CTRL_D)
        assert terminal.end() == 0
    assert "\x1b" not in terminal.received


def test_ctrl_c_on_a_pipe_ends_it_with_130() -> None:
    process = subprocess.Popen(
        [sys.executable, str(FAKE), "chat", "-q"],
        env=process_environment(["so far", *SLOWLY]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"one\ntwo\n")
    process.stdin.flush()
    assert process.stdout.read(6) == b"so far"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 130
    assert b"Traceback" not in err
