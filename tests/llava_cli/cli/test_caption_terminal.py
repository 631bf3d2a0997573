"""What `llava caption` shows while it runs, on a real (pseudo) terminal."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from PIL import Image as PIL

from tests.llava_cli.cli.conftest import FAKE, process_environment

if sys.platform == "win32":
    pytest.skip("POSIX terminals", allow_module_level=True)

from tests.llava_cli.terminals import Terminal


def test_rate_and_time_left_then_the_summary(tmp_path: Path) -> None:
    for number in range(12):
        PIL.new("RGB", (20, 20), "red").save(tmp_path / f"{number:02}\x1b[2J.png")
    environment = process_environment([0.15, "x"])
    environment.pop("NO_COLOR", None)
    arguments = [str(FAKE), "caption", str(tmp_path), "--batch-size", "1"]
    with Terminal(arguments, environment) as terminal:
        terminal.expect(" of 12 · ")
        terminal.expect(" images/s · ")
        terminal.expect(" left · ")
        terminal.expect("12 written, 0 skipped, 0 failed in ")
        assert terminal.end() == 0
    assert "\x1b[2J" not in terminal.received  # a file's name steers nothing


def test_no_escape_byte_where_none_is_wanted(tmp_path: Path) -> None:
    PIL.new("RGB", (20, 20), "red").save(tmp_path / "a.png")
    environment = process_environment([0.2, "x"], {"NO_COLOR": "1"})
    with Terminal([str(FAKE), "caption", str(tmp_path)], environment) as terminal:
        terminal.expect("1 written, 0 skipped, 0 failed")
        assert terminal.end() == 0
    assert "\x1b" not in terminal.received
