"""`llava logs` and `ask -c`: what is remembered, found, continued and forgotten."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from PIL import Image as PIL

from tests.llava_cli.cli.conftest import FAKE, InProcess, process_environment


@pytest.fixture
def database(hermetic: Path) -> Path:
    return hermetic / "history.sqlite"


def test_what_was_asked_is_listed_found_and_shown(llava: InProcess, picture: Path) -> None:
    llava("ask", picture, "what is unusual?", script=["a Röd ", "square"])
    llava("ask", "hello", script=["goodbye"])
    listed = llava("logs", "list").out.splitlines()
    assert ["hello → goodbye" in listed[0], "photo.jpg" in listed[1]] == [True, True]
    assert "square" in llava("logs", "search", "rod", "SQU").out  # beginnings, no accents, no case
    assert llava("logs", "search", "absent").out == ""
    assert llava("logs", "search", 'quo"te* AND (').code == 0
    shown = llava("logs", "show", "1").out
    assert "> what is unusual?" in shown
    assert "a Röd square" in shown
    assert str(picture) in shown
    document = llava("logs", "show", "--json").json
    assert (document["prompt"], document["answer"], document["model"]) == (
        *("hello", "goodbye", "llava-demo"),
    )
    assert document["usage"]["completion_tokens"] == 1


def test_pictures_are_kept_by_hash_and_path_never_by_bytes(
    llava: InProcess, picture: Path, database: Path
) -> None:
    import hashlib

    llava("ask", picture, "what?")
    llava("ask", "-", "what?", stdin=picture.read_bytes())
    data = picture.read_bytes()
    exchanges = llava("logs", "list", "--json").json
    sha256 = hashlib.sha256(data).hexdigest()
    assert exchanges[1]["images"] == [
        {"source": str(picture), "path": str(picture), "sha256": sha256}
    ]
    assert exchanges[0]["images"] == [{"source": "-", "path": None, "sha256": sha256}]
    stored = b"".join(p.read_bytes() for p in database.parent.iterdir() if p.is_file())
    assert data[100:140] not in stored


def test_the_file_is_the_persons_own(llava: InProcess, database: Path) -> None:
    llava("ask", "hi")
    if sys.platform != "win32":
        assert database.stat().st_mode & 0o077 == 0
    with sqlite3.connect(database) as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    db.close()
    assert llava("logs", "path").out == f"{database}\n"


@pytest.mark.parametrize("way", ["flag", "environment", "project", "off"])
def test_off_by_flag_environment_settings_or_command(
    llava: InProcess,
    database: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    way: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    if way == "environment":
        monkeypatch.setenv("LLAVA_NO_LOG", "1")
    elif way == "project":
        (tmp_path / "llava.toml").write_text("no_log = true\n")
    elif way == "off":
        assert "off" in llava("logs", "off").err
    more = ["--no-log"] if way == "flag" else []
    assert llava("ask", "hi", *more).code == 0
    assert not database.exists()
    if way == "off":
        llava("logs", "on")
        llava("ask", "hi")
        assert database.exists()


def test_continue_asks_in_the_same_conversation(llava: InProcess, picture: Path) -> None:
    llava("ask", picture, "what is it?", "-m", "some/model", "-s", "be brief", script=["a square"])
    assert llava("ask", "-c", "which colour?", script=["red"]).code == 0
    assert llava.engine is not None
    assert llava.engine.files.reference == "some/model"
    (conversation, _) = llava.engine.asked[-1]
    assert [(m.role, m.text) for m in conversation.messages] == [
        ("system", "be brief"),
        ("user", "what is it?"),
        ("assistant", "a square"),
        ("user", "which colour?"),
    ]
    assert [image.source for image in conversation.images] == [str(picture)]
    thread = llava("logs", "show", "--thread", "--json").json
    assert [exchange["answer"] for exchange in thread] == ["a square", "red"]


def test_continue_without_anything_before(llava: InProcess) -> None:
    ran = llava("ask", "-c", "and?")
    assert (ran.code, "no conversation to continue" in ran.err) == (2, True)


@pytest.mark.parametrize("change", ["gone", "other", "stdin"])
def test_continue_needs_the_same_picture(llava: InProcess, picture: Path, change: str) -> None:
    if change == "stdin":
        llava("ask", "-", "what?", stdin=picture.read_bytes())
    else:
        llava("ask", picture, "what?")
        picture.unlink()
        if change == "other":
            PIL.new("RGB", (7, 7), "blue").save(picture)
    ran = llava("ask", "-c", "and?")
    assert ran.code == 4
    assert "hint: " in ran.err


def test_export(llava: InProcess, tmp_path: Path) -> None:
    llava("ask", "one", script=["1\n2"])
    llava("ask", "two")
    lines = llava("logs", "export").out.splitlines()
    assert [json.loads(line)["prompt"] for line in lines] == ["one", "two"]
    llava("logs", "export", "--format", "md", "-o", tmp_path / "h.md")
    assert "> one\n\n1\n2\n" in (tmp_path / "h.md").read_text()


def test_prune_forgets_for_good(llava: InProcess, database: Path) -> None:
    llava("ask", "a secret question", script=["zanzibar"])
    assert llava("logs", "prune", "--older-than", "1d", "-y", "--json").json == {"removed": 0}
    assert llava("logs", "prune", "--all").code == 2  # nobody can be asked here
    assert llava("logs", "prune", "--all", "-y", "--json").json == {"removed": 1}
    assert llava("logs", "search", "zanzibar").out == ""
    stored = b"".join(p.read_bytes() for p in database.parent.iterdir())
    assert b"zanzibar" not in stored


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["show"], "nothing has been remembered"),
        (["prune"], "what to forget"),
        (["prune", "--older-than", "soon"], "30d"),
        (["search"], "WORDS"),
    ],
)
def test_refusals(llava: InProcess, arguments: list[str], word: str) -> None:
    ran = llava("logs", *arguments)
    assert (ran.code, word in ran.err) == (2, True)


def test_a_damaged_history_costs_a_note_and_not_the_answer(
    llava: InProcess, database: Path
) -> None:
    database.parent.mkdir(parents=True)
    database.write_bytes(b"no database " * 100)
    ran = llava("ask", "hi", script=["hello"])
    assert (ran.code, ran.out) == (0, "hello\n")
    assert "not remembered" in ran.err
    listed = llava("logs", "list")
    assert (listed.code, "hint: move it away" in listed.err) == (1, True)


def test_nothing_steers_the_terminal(llava: InProcess) -> None:
    llava("ask", "\x1b[2Jhi", script=["\x1b]0;title\x07"])
    for command in (["list"], ["show"], ["search", "hi"]):
        assert "\x1b" not in llava("logs", *command).out


def test_many_processes_at_once_all_are_remembered(llava: InProcess) -> None:
    commands = [
        subprocess.Popen(
            [sys.executable, str(FAKE), "ask", "-q", f"question {n}"],
            env=process_environment(["x"]),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for n in range(6)
    ]
    assert [command.communicate(timeout=100)[1] for command in commands] == [b""] * 6
    prompts = {exchange["prompt"] for exchange in llava("logs", "list", "--json").json}
    assert prompts == {f"question {n}" for n in range(6)}


def test_a_process_that_makes_the_history_at_this_moment_is_waited_for(
    llava: InProcess, database: Path
) -> None:
    database.parent.mkdir(parents=True)
    with contextlib.closing(
        sqlite3.connect(database, isolation_level=None, check_same_thread=False)
    ) as other:
        other.execute("BEGIN IMMEDIATE")
        done = threading.Timer(0.3, other.execute, ["COMMIT"])
        done.start()
        ran = llava("ask", "hi", script=["hello"])
        done.join()
    assert (ran.code, "not remembered" in ran.err) == (0, False)
    assert [exchange["prompt"] for exchange in llava("logs", "list", "--json").json] == ["hi"]
