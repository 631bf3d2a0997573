"""`ask --keep-alive`: a server stays behind, later questions use it, it ends by itself."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from llava_cli.cli import keeping
from llava_cli.cli.models import ModelChoice
from llava_cli.cli.options import Common
from tests.llava_cli.cli.conftest import InProcess, Run

pytest.importorskip("uvicorn")
pytest.importorskip("starlette")


@pytest.mark.parametrize(("text", "word"), [("soon", "5m"), ("-1", "keep-alive"), ("5d", "5m")])
def test_what_is_no_time(llava: InProcess, text: str, word: str) -> None:
    ran = llava("ask", "hi", f"--keep-alive={text}")
    assert (ran.code, word in ran.err) == (2, True)


def test_nothing_stays_behind_unasked(llava: InProcess, hermetic: Path) -> None:
    assert llava("ask", "hi").code == 0
    assert not (hermetic / "servers").exists()


def test_a_server_with_one_adapter_does_not_answer_for_another(hermetic: Path) -> None:
    plain = ModelChoice("m", None, "auto", "cpu", None, None)
    choices = [
        plain,
        replace(plain, adapter=Path("a")),
        replace(plain, adapter=Path("b")),
        replace(plain, quantize="4bit"),
        replace(plain, base="b"),
        replace(plain, vision_tower="b"),
    ]
    assert len({keeping._state(choice) for choice in choices}) == len(choices)
    commands = [keeping._command(choice, Common(), 60)[-2:] for choice in choices[1:]]
    assert commands == [
        ["--adapter", "a"], ["--adapter", "b"], ["--quantize", "4bit"], ["--base", "b"],
        ["--vision-tower", "b"],
    ]  # fmt: skip


@pytest.mark.parametrize("option", ["--adapter", "--base", "--vision-tower"])
def test_a_running_server_is_not_given_what_it_would_ignore(llava: InProcess, option: str) -> None:
    ran = llava("ask", "hi", "--engine", "server", option, "x")
    assert (ran.code, f"llava serve -m REF {option}" in ran.err) == (2, True)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX processes")
@pytest.mark.slow
def test_later_questions_use_it_until_it_is_ended(run: Run, picture: Path, hermetic: Path) -> None:
    question = ("ask", picture, "how many shapes are there?", "--json", "-q")
    alone = run(*question)
    kept = run(*question, "--keep-alive", "10m")
    assert kept.code == 0, kept.err
    (state,) = (hermetic / "servers").glob("*.json")
    try:
        assert state.stat().st_mode & 0o077 == 0
        later = run(*question)
        assert [r.json["engine"] for r in (alone, kept, later)] == ["gguf", "server", "server"]
        assert kept.json["text"] == later.json["text"] == alone.json["text"]
        assert later.json["usage"] == alone.json["usage"]
    finally:
        pid = json.loads(state.read_text())["pid"]
        assert run(*question, "--keep-alive", "0").json["engine"] == "gguf"
    assert not state.exists()
    deadline = time.monotonic() + 60
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        state_of = Path(f"/proc/{pid}/stat").read_text().split()[2]
        if state_of == "Z":  # ended; its parent, a container's first process, need not notice
            break
        time.sleep(0.1)
    else:
        assert not Path(f"/proc/{pid}").exists()
