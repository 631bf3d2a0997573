"""SIGKILL at any moment: no sample lost, none twice, and nothing that was stored is asked again."""

from __future__ import annotations

import json
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.llava_cli.cli.conftest import process_environment
from tests.llava_train.datagen.conftest import coco, read_lines
from tests.llava_train.datagen.server import Reply, Server, answer_for, serving

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")


def moody(body: dict[str, Any], times: int) -> Reply:
    """Slow, and the first attempt at every third request fails in one way or another."""
    number = int(body["messages"][-1]["content"].split(",")[0].removeprefix("Picture "))
    if times == 0 and number % 6 == 0:
        return Reply(status=429, headers={"Retry-After": "0.01"})
    if times == 0 and number % 6 == 3:
        return Reply(status=503)
    return Reply(answer_for(body), delay=0.02)


def start(captions: Path, out: Path, server: Server) -> subprocess.Popen[bytes]:
    options = ["--base-url", server.url, "--llm", "m", "-o", str(out), "--first-pause", "0.01"]
    return subprocess.Popen(
        [sys.executable, "-m", "llava_cli", "data", "generate", "--captions", str(captions)]
        + [*options, "--concurrency", "4", "-q"],
        env=process_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def stored(out: Path, aside: Path) -> set[str]:
    """Keys of the answers in a dead run's journal, read from a copy."""
    if not (out / "journal.sqlite").exists():
        return set()
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    for path in out.glob("journal.sqlite*"):
        shutil.copy(path, aside)
    base = sqlite3.connect(aside / "journal.sqlite")
    try:
        return {key for (key,) in base.execute("SELECT request FROM answers")}
    except sqlite3.OperationalError:  # killed before the tables were there
        return set()
    finally:
        base.close()


@pytest.mark.parametrize(
    ("pictures", "kills"),
    [pytest.param(20, 4, id="4"), pytest.param(60, 20, id="20", marks=pytest.mark.slow)],
)
def test_kills_lose_nothing_and_pay_nothing_twice(
    tmp_path: Path, pictures: int, kills: int
) -> None:
    from llava_train.datagen.journal import request_key

    captions, out = coco(tmp_path / "captions.json", pictures), tmp_path / "out"
    rng = random.Random(1)
    frozen: dict[str, int] = {}
    with serving(moody) as server:
        for _ in range(kills):
            process = start(captions, out, server)
            goal = len(server.asked) + rng.randrange(1, 8)
            while len(server.asked) < goal and process.poll() is None:
                time.sleep(0.002)
            time.sleep(rng.random() * 0.05)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            keys = stored(out, tmp_path / "copy")
            seen = {request_key(json.loads(body)): n for body, n in server.seen.items()}
            for key in keys:
                assert frozen.setdefault(key, seen[key]) == seen[key]
            assert set(frozen) <= keys
            assert not (out / "instruct.json").exists() or len(keys) == len(server.seen)
        last = start(captions, out, server)
        assert last.wait(200) == 0, last.communicate()[1]
        last.communicate()
        seen = {request_key(json.loads(body)): n for body, n in server.seen.items()}
        assert all(seen[key] == n for key, n in frozen.items())

    samples = json.loads((out / "instruct.json").read_text())
    planned = json.loads((out / "card.json").read_text())["planned"]
    assert len(samples) == sum(planned.values()) == len({sample["id"] for sample in samples})
    assert read_lines(out / "missing.jsonl") == read_lines(out / "rejected.jsonl") == []
    spent = json.loads((out / "card.json").read_text())["spent"]
    assert spent["requests_answered"] == len(samples)
    # What was answered whole more than once was in flight when the process died, and is counted.
    twice = sum(n - 1 for n in server.answered.values())
    assert twice <= spent["requests_lost_that_may_have_been_billed"] <= 4 * kills


def test_an_interrupted_run_waits_for_what_is_paid_and_goes_on(tmp_path: Path) -> None:
    captions, out = coco(tmp_path / "captions.json", 20), tmp_path / "out"
    with serving(lambda body, times: Reply(answer_for(body), delay=0.3)) as server:
        process = start(captions, out, server)
        while len(server.asked) < 3 and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=100)
        assert process.returncode == 130, err
        asked = len(server.asked)
        assert len(stored(out, tmp_path / "copy")) == asked == sum(server.answered.values())
        again = start(captions, out, server)
        again.communicate(timeout=200)
        assert again.returncode == 0
    assert set(server.seen.values()) == {1}
