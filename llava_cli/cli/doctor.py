"""`llava doctor`: what is installed and which engines answer, as a report to paste."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click

from llava_cli import __version__
from llava_cli.cli.groups import Command
from llava_cli.cli.options import common

PACKAGES = (
    *("click", "rich", "pillow", "numpy", "llama-cpp-python", "gguf", "safetensors"),
    *("huggingface-hub", "platformdirs", "torch", "transformers", "peft"),
)
ENGINES = {"gguf": "llama-cpp-python", "torch": "torch"}
ABOUT = {"gguf": "llava_cli.engines.gguf.about", "torch": "llava_cli.engines.pytorch_about"}
PROBE_S = 120.0
"""Longest time for one engine's answer."""
PROBE_PICTURE = (
    "data:image/png;base64,"
    "iVBORw0KGgoAAAANSUhEUgAAAGAAAABgAQMAAADYVuV7AAAABlBMVEX////cHh7/Hx2WAAAAi0lEQVR42u3RSw6CQB"
    "CE4Y9HIjs5At4Eb+QR5ygegSULAi4cmhBN2Jjowtr9qerq6Qx//YrOIyjB7bQZxbKkcEq6gJo2oKEJaKkDum2WngIq"
    "SCjSujSrlCO9N84O1vqD2GdhhvthbFkP3DmVfNl1dVKOlrl2DhiYAkbGgIkhYH6+JlfrLy9/+teX9AAcnhfvEe2phw"
    "AAAABJRU5ErkJggg=="
)
"""A red disc on white."""


@click.command(
    "doctor",
    cls=Command,
    examples=(("llava doctor", "read it"), ("llava doctor --json", "paste or process it")),
)
@click.option("--tune", is_flag=True, help="Measure the quickest settings for -m and keep them.")
@click.option("-m", "--model", metavar="REF", help="The GGUF model to tune for.")
def doctor(tune: bool, model: str | None) -> None:
    """Report what is installed and which engines work.

    Every engine answers one question with the bundled model. The exit code is 1 if none can.
    """
    if tune:
        from llava_cli.cli.tune import run

        run(model)
        return
    from llava_cli.terminal.documents import write_document
    from llava_cli.terminal.safe import visible
    from llava_cli.terminal.streams import status, write

    with status("asking each engine one question …", not common().quiet):
        report = gather()
    if common().json:
        write_document(report)
    else:
        write(visible(as_text(report)))
    if not any(engine["works"] for engine in report["engines"].values()):
        raise click.exceptions.Exit(1)


def gather() -> dict[str, Any]:
    """The whole report."""
    versions = {name: _version(name) for name in PACKAGES}
    return {
        "llava": __version__,
        "system": _system(),
        "packages": versions,
        "engines": {name: _engine(name, versions[ENGINES[name]]) for name in ENGINES},
        "bundled_model": _bundled_model(),
        "folders": _folders(),
        "settings": _settings(),
    }


def as_text(report: dict[str, Any]) -> str:
    """The report in lines, for people."""
    system, model = report["system"], report["bundled_model"]
    lines = [
        f"llava       {report['llava']}",
        f"python      {system['python']} ({system['executable']})",
        f"system      {system['platform']}",
        f"processor   {system['cores']} cores, {_gib(system['memory_bytes'])} memory",
        "",
    ]
    lines += [f"{name:<17} {version or '-'}" for name, version in report["packages"].items()]
    lines.append("")
    for name, engine in report["engines"].items():
        lines.append(f"engine {name:<5}  {_engine_line(engine)}")
        lines += [f"              {key}: {value}" for key, value in engine["about"].items()]
    files = ", ".join(
        f"{entry['name']} ({entry['bytes'] / 1e6:.1f} MB)" for entry in model["files"]
    )
    lines += ["", f"bundled model {files or 'is missing: reinstall llava-cli'}", ""]
    for name, folder in report["folders"].items():
        state = "writable" if folder["writable"] else "NOT writable"
        lines.append(f"{name:<13} {folder['path']} ({state}, {_gib(folder['free_bytes'])} free)")
    lines += [f"{name:<13} {text}" for name, text in report["settings"].items()]
    return "\n".join(lines) + "\n"


def _engine_line(engine: dict[str, Any]) -> str:
    if engine["works"]:
        return f"works: answered in {engine['seconds']:.1f} s on {engine['device']}"
    if not engine["installed"]:
        return str(engine["problem"])
    return f"does not work: {engine['problem']}"


def _system() -> dict[str, Any]:
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "executable": sys.executable,
        "platform": platform.platform(),
        "cores": _cores(),
        "memory_bytes": _memory_bytes(),
    }


def _cores() -> int:
    """Those this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        return None


def _version(package: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _engine(name: str, version: str | None) -> dict[str, Any]:
    """Whether an engine answers, tried in a process of its own: broken builds end their process."""
    result: dict[str, Any] = {
        "installed": version is not None,
        "works": False,
        "device": None,
        "seconds": None,
        "problem": None,
        "about": {},
    }
    if version is None:
        remedy = "llava-cli[torch]" if name == "torch" else ENGINES[name]
        result["problem"] = f"{ENGINES[name]} is not installed: pip install '{remedy}'"
        return result
    about, problem, _ = _python(["-m", ABOUT[name]])
    result["about"] = about or {}
    if about is None:
        result["problem"] = problem
        return result
    question = ["ask", PROBE_PICTURE, "what is there?", "--max-tokens", "8"]
    flags = ["--json", "--quiet", "--offline", "--engine", name, "--device", "auto", "--no-input"]
    answer, problem, seconds = _python(["-m", "llava_cli", *question, *flags], bundled=True)
    if answer is None:
        result["problem"] = problem
    else:
        result.update(works=True, device=answer["device"], seconds=seconds)
    return result


def _python(
    arguments: list[str], *, bundled: bool = False
) -> tuple[dict[str, Any] | None, str, float]:
    """What a Python process printed as JSON, or what went wrong; and its seconds."""
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    if bundled:  # a model in the settings must not stand in
        environment["LLAVA_MODEL"] = ""
    started = time.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, *arguments],
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=PROBE_S,
            env=environment,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None, f"no answer within {PROBE_S:.0f} s", PROBE_S
    seconds = time.monotonic() - started
    if done.returncode == 0:
        try:
            return json.loads(done.stdout), "", seconds
        except json.JSONDecodeError:
            return None, f"unexpected output: {done.stdout[:200]!r}", seconds
    return None, _reason(done), seconds


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    """The last line a failing process left, its JSON error unpacked."""
    if done.returncode < 0:
        return f"ended by signal {-done.returncode}: built for another processor, or out of memory"
    last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    try:
        return str(json.loads(last)["error"]["message"])
    except (json.JSONDecodeError, KeyError, TypeError):
        return last


def _bundled_model() -> dict[str, Any]:
    import llava_cli.demo

    folder = Path(next(iter(llava_cli.demo.__path__)))
    found = [*folder.glob("*.gguf"), *folder.glob("model/*.safetensors")]
    files = [
        {"name": path.relative_to(folder).as_posix(), "bytes": path.stat().st_size}
        for path in sorted(found)
    ]
    return {"path": str(folder), "files": files}


def _folders() -> dict[str, Any]:
    from llava_cli.cli.settings import resolve

    hub = os.environ.get("HF_HUB_CACHE") or str(_hf_home() / "hub")
    return {
        "model cache": _folder(Path(hub)),
        "llava home": _folder(Path(str(resolve("home").value))),
    }


def _hf_home() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("HF_HOME") or Path(cache) / "huggingface").expanduser()


def _folder(path: Path) -> dict[str, Any]:
    """Whether it can be written to: itself, or where it would be created."""
    import shutil

    there = next((place for place in (path, *path.parents) if place.exists()), path)
    writable = there.is_dir() and os.access(there, os.W_OK)
    try:
        free: int | None = shutil.disk_usage(there).free
    except OSError:
        free = None
    return {"path": str(path), "exists": path.exists(), "writable": writable, "free_bytes": free}


def _settings() -> dict[str, str]:
    from llava_cli.cli.settings import SETTINGS, resolve

    values = {name: resolve(name) for name in SETTINGS if name != "home"}
    return {name: f"{value.value} ({value.origin})" for name, value in values.items()}


def _gib(size: int | None) -> str:
    return "?" if size is None else f"{size / 2**30:.1f} GiB"
