"""`llava serve` as a command: what it refuses, how it starts and ends."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.llava_cli.cli.conftest import FAKE, InProcess, process_environment

pytest.importorskip("uvicorn")
pytest.importorskip("starlette")


def test_others_only_with_a_key(llava: InProcess, tmp_path: Path) -> None:
    ran = llava("serve", "--host", "0.0.0.0")
    assert (ran.code, "API key" in ran.err) == (2, True)
    (tmp_path / "empty").write_text("\n")
    for path in (tmp_path / "empty", tmp_path / "missing"):
        ran = llava("serve", "--host", "0.0.0.0", "--api-key-file", path)
        assert (ran.code, str(path) in ran.err) == (2, True)
    assert llava.engine is None


def test_a_port_that_is_taken_is_said_before_a_model_is_loaded(llava: InProcess) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ran = llava("serve", "--port", str(taken.getsockname()[1]))
    assert ran.code == 2
    assert "--port" in ran.err
    assert llava.engine is None


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_lets_running_answers_end(number: signal.Signals, code: int) -> None:
    process = subprocess.Popen(
        [sys.executable, str(FAKE), "serve", "--port", "0", "--json"],
        env=process_environment(["begun", 1.0, " and ended"], {"LLAVA_API_KEY": "key"}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=100)
        messages = [{"role": "user", "content": "hi"}]
        body = json.dumps({"model": "llava-demo", "messages": messages, "stream": True})
        headers = {"Content-Type": "application/json", "Authorization": "Bearer key"}
        connection.request("POST", "/v1/chat/completions", body, headers)
        response = connection.getresponse()
        assert response.status == 200
        first = response.read1(10_000)
        process.send_signal(number)
        rest = response.read()
        connection.close()
        assert b" and ended" in first + rest
        assert rest.endswith(b"data: [DONE]\n\n")
        _, err = process.communicate(timeout=100)
        assert process.returncode == code
        assert b"Traceback" not in err
    finally:
        process.kill()
        process.communicate()
