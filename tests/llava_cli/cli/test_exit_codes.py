"""Exit codes that need a process: signals, closed pipes, full disks, defects."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.llava_cli.cli.conftest import FAKE, Run, process_environment

posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals and pipes")


def start(
    *arguments: str | Path, script: list[str | float], **settings: int
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, str(FAKE), *map(str, arguments)],
        env=process_environment(script),
        stdin=subprocess.DEVNULL,
        stdout=settings.get("stdout", subprocess.PIPE),
        stderr=subprocess.PIPE,
        close_fds=True,
    )


@posix
@pytest.mark.parametrize("as_json", [False, True])
def test_ctrl_c_exits_130_and_keeps_what_was_said(as_json: bool) -> None:
    more = ["--json"] if as_json else []
    process = start("ask", "hi", "-v", "-m", "x/y", *more, script=["so far", 30.0, "never"])
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stderr.readline().startswith(b"x/y: gguf on cpu")  # it runs
    if not as_json:
        assert process.stdout.read(6) == b"so far"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 130
    assert b"Traceback" not in err
    if as_json:
        assert json.loads(err)["error"]["type"] == "Interrupted"
        assert out == b""
    else:
        assert out == b"\n"


@posix
@pytest.mark.parametrize("more", [[], ["--json"], ["--each", "PICTURE"]])
def test_closed_pipe_exits_141_and_says_nothing(picture: Path, more: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    arguments = [str(picture) if text == "PICTURE" else text for text in more]
    process = start("ask", "hi", "-q", *arguments, script=["text"] * 3, stdout=write)
    os.close(write)
    _, err = process.communicate(timeout=100)
    assert (process.returncode, err) == (141, b"")


@posix
def test_reader_that_leaves_early_ends_the_answer() -> None:
    process = start("ask", "hi", "-q", script=["first\n", 0.3, *["more\n"] * 50, 0.3, "last"])
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == b"first\n"
    process.stdout.close()
    assert process.wait(timeout=100) == 141
    assert process.stderr.read() == b""
    process.stderr.close()


@posix
@pytest.mark.parametrize("arguments", ["--help", "--version", "config show"])
def test_help_into_a_closed_pipe(arguments: str) -> None:
    read, write = os.pipe()
    os.close(read)
    process = start(*arguments.split(), script=[], stdout=write)
    os.close(write)
    _, err = process.communicate(timeout=100)
    assert (process.returncode, err) == (141, b"")


@posix
def test_stdout_that_is_closed_from_the_start() -> None:
    program = f'exec "{sys.executable}" "{FAKE}" ask hi -q >&-'
    done = subprocess.run(
        ["sh", "-c", program],
        env=process_environment(["text"]),
        capture_output=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_full_disk_is_one_line_and_exit_1() -> None:
    with open("/dev/full", "wb") as full:
        process = start("ask", "hi", "-q", script=["text"], stdout=full.fileno())
        _, err = process.communicate(timeout=100)
    assert process.returncode == 1
    assert b"No space left" in err and b"hint: make room on the disk" in err
    assert b"Traceback" not in err


def test_defect_is_one_line_and_exit_1() -> None:
    program = (
        "import sys\n"
        "from llava_cli import cli, models\n"
        "def resolve(*a, **k): raise ZeroDivisionError('oops')\n"
        "models.resolve = resolve\n"
        "sys.exit(cli.main(sys.argv[1:]))\n"
    )
    for more, lines in ([], 2), (["--json"], 1):
        done = subprocess.run(
            [sys.executable, "-c", program, "ask", "hi", *more],
            capture_output=True,
            text=True,
            env=process_environment(),
            check=False,
        )
        assert (done.returncode, done.stdout) == (1, "")
        assert len(done.stderr.splitlines()) == lines
        assert "ZeroDivisionError: oops" in done.stderr


def test_debug_shows_the_traceback(run: Run) -> None:
    ran = run("ask", "missing.jpg", "hi", "--debug")
    assert ran.code == 4
    assert "Traceback" in ran.err
    assert ran.err.splitlines()[-1].startswith("hint: ")
    assert "Traceback" not in run("ask", "missing.jpg", "hi").err


def test_unknown_command_names_the_near_one(run: Run) -> None:
    ran = run("akk")
    assert (ran.code, ran.out) == (2, "")
    assert "did you mean ask?" in ran.err


def test_unknown_command_as_json(run: Run) -> None:
    assert run("conwert", "--json").error["type"] == "UsageError"
