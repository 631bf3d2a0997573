"""What every test gets: no network, no settings and no history of the person who runs it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

# A shell that starts the suite in the background has it ignore Ctrl-C, and so would every program
# that a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def hermetic(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home of its own, offline; gives the folder that stands for LLAVA_HOME."""
    home = tmp_path_factory.mktemp("home")
    for name in [n for n in os.environ if n.startswith("LLAVA_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("LLAVA_HOME", str(home / "llava"))
    monkeypatch.setenv("HF_HOME", str(home / "huggingface"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "config"))
    monkeypatch.setenv("XDG_DATA_HOME", str(home / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    return home / "llava"
