"""Many clients of a real `llava serve`, some of whom leave: benchmarks/serve.py, in small."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llama_cpp")
pytest.importorskip("uvicorn")

SCRIPT = Path(__file__).resolve().parents[3] / "benchmarks" / "serve.py"
pytestmark = pytest.mark.checkout


def under_load(clients: int, requests: int, seconds: int) -> tuple[int, dict[str, Any]]:
    """Exit code and what was seen."""
    sizes = {"clients": clients, "requests": requests, "seconds": seconds}
    options = [word for name, number in sizes.items() for word in (f"--{name}", str(number))]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *options], capture_output=True, text=True, check=False
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_no_request_is_lost_and_who_leaves_frees_the_place() -> None:
    code, seen = under_load(clients=4, requests=10, seconds=0)
    assert seen["odd"] == []
    assert (seen["answered"], seen["left"], seen["lost"]) == (9, 1, 0)
    assert seen["refused"] % 4 == 0 and seen["refused"] > 0  # nonsense got its 4xx meanwhile
    assert seen["at_rest"]
    assert code == 0


@pytest.mark.slow
def test_thirty_two_clients_lose_nothing_and_memory_stays_flat() -> None:
    code, seen = under_load(clients=32, requests=300, seconds=10)
    assert (seen["odd"], seen["lost"], code) == ([], 0, 0)
    memory = [mib for _, mib in sorted((int(n), mib) for n, mib in seen["memory_mib"].items())]
    assert memory[-1] < memory[0] * 1.2
