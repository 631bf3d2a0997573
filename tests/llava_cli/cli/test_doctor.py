"""`llava doctor` tells what works, and survives what does not."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from llava_cli.cli import doctor
from tests.llava_cli.cli.conftest import InProcess

ANSWER = json.dumps({"device": "cpu", "text": "a red circle"})
ABOUT = json.dumps({"version": "1.0", "gpu_offload": False})


def finished(code: int, out: str = "", err: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.CompletedProcess([], code, out, err)


class Processes:
    """Stands for the processes that doctor starts."""

    def __init__(self, about: Any, answer: Any) -> None:
        self.about, self.answer = about, answer
        self.commands: list[list[str]] = []

    def run(self, command: list[str], **settings: Any) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        result = self.answer if "ask" in command else self.about
        if isinstance(result, Exception):
            raise result
        assert isinstance(result, subprocess.CompletedProcess)
        return result


def diagnose(
    monkeypatch: pytest.MonkeyPatch, about: Any, answer: Any, installed: str = "torch gguf"
) -> Processes:
    processes = Processes(about, answer)
    monkeypatch.setattr(subprocess, "run", processes.run)
    known = {"torch": "torch", "llama-cpp-python": "gguf"}
    monkeypatch.setattr(
        doctor, "_version", lambda name: "1.0" if known.get(name, "gguf") in installed else None
    )
    return processes


def test_all_works(llava: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    processes = diagnose(monkeypatch, finished(0, ABOUT), finished(0, ANSWER))
    ran = llava("doctor", "--json")
    assert ran.code == 0
    assert {name: engine["works"] for name, engine in ran.json["engines"].items()} == {
        "gguf": True,
        "torch": True,
    }
    for key in ("llava", "system", "packages", "bundled_model", "folders", "settings"):
        assert ran.json[key]
    asked = [command for command in processes.commands if "ask" in command]
    assert [command[command.index("--engine") + 1] for command in asked] == ["gguf", "torch"]


def test_text_report_names_everything(llava: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    diagnose(monkeypatch, finished(0, ABOUT), finished(0, ANSWER))
    ran = llava("doctor")
    assert ran.code == 0
    for word in ("llava ", "python ", "pillow ", "engine gguf   works", "model cache", "bundled"):
        assert word in ran.out


def test_torch_is_optional(llava: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    diagnose(monkeypatch, finished(0, ABOUT), finished(0, ANSWER), installed="gguf")
    ran = llava("doctor")
    assert ran.code == 0
    assert "pip install 'llava-cli[torch]'" in ran.out


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        (finished(-4), "signal 4"),
        (finished(3, "", '{"error": {"message": "no bundled model"}}'), "no bundled model"),
        (finished(1, "", "Segmentation fault"), "Segmentation fault"),
        (finished(1), "exit code 1"),
        (finished(0, "no json"), "unexpected output"),
        (subprocess.TimeoutExpired("llava", 120), "no answer within"),
    ],
)
def test_no_engine_works_is_exit_1_with_the_reason(
    llava: InProcess, monkeypatch: pytest.MonkeyPatch, answer: object, word: str
) -> None:
    diagnose(monkeypatch, finished(0, ABOUT), answer)
    ran = llava("doctor")
    assert ran.code == 1
    assert word in ran.out


def test_library_that_cannot_be_imported_is_not_asked(
    llava: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = finished(1, "", "ImportError: libcuda.so.1: cannot open shared object file")
    processes = diagnose(monkeypatch, broken, finished(0, ANSWER))
    ran = llava("doctor", "--json")
    assert ran.code == 1
    assert "libcuda" in ran.json["engines"]["gguf"]["problem"]
    assert not [command for command in processes.commands if "ask" in command]


def test_a_model_in_the_settings_does_not_stand_in_for_the_bundled_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: dict[str, str] = {}

    def spy(command: list[str], **settings: Any) -> subprocess.CompletedProcess[str]:
        seen.update(settings["env"])
        return finished(0, ANSWER)

    monkeypatch.setenv("LLAVA_MODEL", "org/name")
    monkeypatch.setattr(subprocess, "run", spy)
    doctor._engine("gguf", "1.0")
    assert seen["LLAVA_MODEL"] == ""


def test_probe_picture_is_a_picture() -> None:
    from llava_cli.images import locate

    image = locate(doctor.PROBE_PICTURE)
    assert image is not None
    pixels = image.open()
    assert pixels.getpixel((0, 0)) == (255, 255, 255)
    assert pixels.getpixel((48, 48)) == (220, 30, 30)
