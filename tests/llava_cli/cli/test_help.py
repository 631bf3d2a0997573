"""Help is instant, opens with examples, and loads nothing that it does not need."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from llava_cli import __version__
from llava_cli.cli.app import COMMANDS
from tests.llava_cli.cli.conftest import Run, process_environment

HEAVY = {
    *("torch", "transformers", "peft", "llama_cpp", "gguf", "safetensors", "tokenizers"),
    *("numpy", "PIL", "huggingface_hub", "rich", "markdown_it", "platformdirs", "httpx", "httpx2"),
    *("llava_train", "llava_convert"),
}
LIGHT = {"llava_cli", "click"}
IMPORTS = """
import json, sys
before = set(sys.modules)
from llava_cli.cli import main
code = main(json.loads(sys.argv[1]))
sys.stderr.write(json.dumps([code, sorted({n.split(".")[0] for n in set(sys.modules) - before})]))
"""
CPU = """
import resource, subprocess, sys
best = 9.0
for _ in range(7):
    start = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "llava_cli", "--help"], check=True, capture_output=True)
    end = resource.getrusage(resource.RUSAGE_CHILDREN)
    best = min(best, end.ru_utime + end.ru_stime - start.ru_utime - start.ru_stime)
sys.stdout.write(str(best))
"""


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env=process_environment(),
        check=False,
        timeout=100,
    )


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["--version"], ["akk"], ["ask", "-h"]])
def test_what_needs_no_library_imports_none(arguments: list[str]) -> None:
    done = python(IMPORTS, json.dumps(arguments))
    _, imported = json.loads(done.stderr.splitlines()[-1])
    foreign = set(imported) - set(sys.stdlib_module_names)
    assert not foreign & HEAVY
    assert {name for name in foreign if not name.startswith("_")} == LIGHT


@pytest.mark.skipif(sys.platform == "win32", reason="no getrusage")
def test_help_takes_at_most_150_ms_of_cpu() -> None:
    done = python(CPU)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) <= 0.15


def test_help_opens_with_examples(run: Run) -> None:
    ran = run("--help")
    assert ran.code == 0
    assert ran.out.index("Examples:") < ran.out.index("Usage:") < ran.out.index("Commands:")
    assert 'llava ask photo.jpg "what is unusual here?"' in ran.out
    assert run("-h").out == ran.out


def test_help_names_every_command(run: Run) -> None:
    out = run("--help").out
    for name, (_, text) in COMMANDS.items():
        assert name in out
        assert text in out


@pytest.mark.parametrize(
    "path", [["ask"], ["doctor"], ["config"], ["config", "show"], ["data", "scenes"]]
)
def test_every_command_takes_the_common_options(run: Run, path: list[str]) -> None:
    ran = run(*path, "--help")
    assert ran.code == 0
    for option in ("-q,", "-v,", "--json", "--offline", "--no-input", "--debug", "-h,"):
        assert option in ran.out
    assert ran.out.index("Examples:") < ran.out.index("Usage:")


def test_version(run: Run) -> None:
    assert run("--version").out == f"llava {__version__}\n"


def test_no_command_shows_help_and_is_a_usage_error(run: Run) -> None:
    ran = run()
    assert (ran.code, ran.out) == (2, "")
    assert "Examples:" in ran.err


def test_no_command_as_json(run: Run) -> None:
    ran = run("--json")
    assert (ran.code, ran.out, ran.error["type"]) == (2, "", "UsageError")
