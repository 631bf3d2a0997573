"""`llava data generate` asks `llava serve` with the bundled model, as it would ask any server.

What the requests look like and how often each was answered is seen by an endpoint in between, which
hands every request on and every answer back as it came.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llava_train.datagen.journal import request_key
from llava_train.scene_files import write_scenes
from tests.llava_cli.cli.conftest import process_environment
from tests.llava_train.datagen.conftest import read_lines
from tests.llava_train.datagen.server import Reply, Script, serving
from tests.llava_train.datagen.test_kills import stored

pytest.importorskip("llama_cpp")
pytest.importorskip("uvicorn")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # a model answers on whatever CPU is left
TEXTS = {
    "conversation": "Write a question about the picture and its answer.",
    "detail": "Describe the picture.",
    "reasoning": "Ask one question about the picture, and answer it.",
}


@pytest.fixture(scope="module")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of `llava serve` with the bundled GGUF files."""
    home = {"LLAVA_HOME": str(tmp_path_factory.mktemp("home"))}
    process = subprocess.Popen(
        [sys.executable, "-m", "llava_cli", "serve", "--engine", "gguf", "--port", "0", "--json"],
        env=process_environment(extra=home),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["url"]
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four drawn scenes."""
    folder = tmp_path_factory.mktemp("world")
    write_scenes(folder, n=4, seed=3, size=64)
    return folder


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Texts short enough for the bundled model, with one worked example."""
    folder = tmp_path / "prompts"
    for kind, text in TEXTS.items():
        (folder / kind).mkdir(parents=True)
        (folder / kind / "system.txt").write_text(text)
        (folder / kind / "example-1.context.txt").write_text("A red circle.")
        answer = "Question:\nWhat is it?\n===\nAnswer:\nA red circle."
        example = "A red circle on white." if kind == "detail" else answer
        (folder / kind / "example-1.answer.txt").write_text(example)
    return folder


def handed_on(url: str) -> Script:
    """Every request to the server behind, and its answer back."""

    def script(body: dict[str, Any], times: int) -> Reply:
        request = urllib.request.Request(
            f"{url}/v1/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=300) as response:
                return Reply(body=response.read())
        except urllib.error.HTTPError as error:
            return Reply(status=error.code, body=error.read())

    return script


def start(world: Path, url: str, out: Path, *more: str) -> subprocess.Popen[bytes]:
    options = ["--base-url", url, "--llm", "llava-demo", "-o", str(out), "--concurrency", "2"]
    return subprocess.Popen(
        [sys.executable, "-m", "llava_cli", "data", "generate"]
        + ["--captions", str(world / "captions.json"), *options, *more],
        env=process_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_every_context_is_accounted_for_over_a_kill(
    bundled: str, world: Path, prompts: Path, tmp_path: Path
) -> None:
    out, options = tmp_path / "out", ("--prompts", str(prompts), "--max-tokens", "40")
    with serving(handed_on(bundled)) as server:
        killed = start(world, server.url, out, *options)
        while sum(server.answered.values()) < 2 and killed.poll() is None:
            time.sleep(0.01)
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
        kept = stored(out, tmp_path / "copy")
        again = start(world, server.url, out, *options, "--json")
        said, err = again.communicate(timeout=300)
        assert again.returncode == 0, err
        while server.flying:  # what the dead client had asked for
            time.sleep(0.01)

    document = json.loads(said)
    planned = sum(document["planned"].values())
    written, rejected = (sum(document[key].values()) for key in ("written", "rejected"))
    assert document["planned"] == {"conversation": 3, "detail": 1, "reasoning": 4}
    assert (written + rejected, document["missing"]) == (planned, 0)
    assert len(read_lines(out / "instruct.jsonl")) == written
    assert len(read_lines(out / "rejected.jsonl")) == rejected
    asked = {request_key(json.loads(body)): n for body, n in server.seen.items()}
    assert len(asked) == planned == document["answered_now"] + len(kept)
    assert all(asked[key] == 1 for key in kept)  # nothing that was answered is asked again
    lost = document["spent"]["requests_lost_that_may_have_been_billed"]
    assert sum(asked.values()) - planned <= lost <= 2

    check_requests(server.asked, world)
    card = json.loads((out / "card.json").read_text())
    assert card["worked_examples"] == dict.fromkeys(TEXTS, 1)
    assert card["spent"]["requests_answered"] == planned


def check_requests(asked: list[dict[str, Any]], world: Path) -> None:
    """The documented structure, and the world's own captions and boxes in it."""
    both = json.loads((world / "captions.json").read_text())
    captions: dict[int, list[str]] = {}
    for row in both["annotations"]:
        captions.setdefault(row["image_id"], []).append(row["caption"])
    for body in asked:
        assert set(body) == {"model", "messages", "max_tokens"}
        roles = [message["role"] for message in body["messages"]]
        assert roles == ["system", "user", "assistant", "user"]
        kind = next(k for k, text in TEXTS.items() if text == body["messages"][0]["content"])
        said, _, boxes = body["messages"][-1]["content"].partition("\n\n")
        (number,) = [i for i, texts in captions.items() if texts == said.splitlines()]
        objects = sum(row["image_id"] == number for row in both["instances"])
        assert len(boxes.splitlines()) == (0 if kind == "conversation" else objects)


def test_requests_too_long_for_its_context_end_the_run_with_the_remedy(
    bundled: str, world: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = start(world, f"{bundled}/v1", out, "--kind", "reasoning")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 5, err
    lines = err.decode().splitlines()
    assert "4 of 4 samples have no answer: their requests are too long" in lines[-2]
    assert "--few-shot 0" in lines[-1]
    shorter = start(
        world, f"{bundled}/v1", out, *("--kind", "reasoning", "--few-shot", "0"),
        *("--max-tokens", "40", "--json"),
    )  # fmt: skip
    said, err = shorter.communicate(timeout=300)
    assert (shorter.returncode, json.loads(said)["missing"]) == (0, 0), err
