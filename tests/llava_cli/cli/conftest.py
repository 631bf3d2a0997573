"""Running the command line: in this process with a fake engine, or as a process of its own."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as PIL

from llava_cli.models.files import ModelFiles
from tests.llava_cli.cli.fake_llava import FakeEngine, Script, fake_files

FAKE = Path(__file__).with_name("fake_llava.py")


@dataclass(frozen=True)
class Ran:
    """What a command left."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Its one JSON document."""
        return json.loads(self.out)

    @property
    def error(self) -> dict[str, str]:
        """Its JSON failure."""
        found: dict[str, str] = json.loads(self.err)["error"]
        return found


Run = Callable[..., Ran]


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A red picture of 40 x 30 pixels."""
    path = tmp_path / "photo.jpg"
    PIL.new("RGB", (40, 30), "red").save(path)
    return path


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """`llava …` as a process; `script` puts the fake engine in."""

    def go(
        *arguments: str | Path,
        script: Script | None = None,
        stdin: bytes = b"",
        env: dict[str, str] | None = None,
        cwd: Path | None = None,
    ) -> Ran:
        program = ["-m", "llava_cli"] if script is None else [str(FAKE)]
        done = subprocess.run(
            [sys.executable, *program, *map(str, arguments)],
            input=stdin,
            capture_output=True,
            env=process_environment(script, env),
            cwd=cwd or tmp_path,
            timeout=100,
            check=False,
        )
        return Ran(done.returncode, done.stdout.decode(), done.stderr.decode())

    return go


def process_environment(
    script: Script | None = None, extra: dict[str, str] | None = None
) -> dict[str, str]:
    """This process's environment and import path, for a child."""
    found = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), **(extra or {})}
    if script is not None:
        found["FAKE_TOKENS"] = json.dumps(script)
    return found


class InProcess:
    """`llava …` in this process, with the fake engine at hand afterwards."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys
        self.engine: FakeEngine | None = None
        self.load_options: dict[str, Any] = {}
        self.resolve_options: dict[str, Any] = {}

    def __call__(self, *arguments: str | Path, script: Script = ("ok",), stdin: bytes = b"") -> Ran:
        from llava_cli import engines, models
        from llava_cli.cli import main

        def load(files: ModelFiles, **options: Any) -> FakeEngine:
            self.load_options = options
            self.engine = FakeEngine(files, script)
            return self.engine

        def resolve(reference: str | None, **options: Any) -> ModelFiles:
            self.resolve_options = options
            return fake_files(reference)

        self._monkeypatch.setattr(engines, "load", load, raising=False)
        self._monkeypatch.setattr(models, "resolve", resolve)
        self._monkeypatch.setattr(sys, "excepthook", sys.excepthook)
        self._monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = main([str(argument) for argument in arguments])
        captured = self._capsys.readouterr()
        return Ran(code, captured.out, captured.err)


@pytest.fixture
def llava(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> InProcess:
    """The command line in this process, its engine a fake."""
    return InProcess(monkeypatch, capsys)
