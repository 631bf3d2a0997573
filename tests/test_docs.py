"""Every command that README and the guide show is run, in the order shown, and says what is shown.

A ```console block holds commands after `$ ` and, below each, what it prints on standard output;
`...` in it stands for anything. A ```sh block holds commands alone. A page is one session: later
commands find what earlier ones made. `network` after the language keeps a block out of the default
run. Commands that set things up (`pip`, `make`, `git`) are what the CI entry itself does.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SLOW_PAGES = {"train.md", "bundled-model.md"}
RUN_BY_CI = ("make", "pip", "git", "python3 -m venv", "python docs/", ".ci/run")
FENCE = re.compile(r"^```(console|sh)[ ]?(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?:\]\(|src=\")(?!https?:)([^)#\s\"]+)")


@dataclass(frozen=True)
class Command:
    """One command of a page."""

    text: str
    expected: str | None
    """What it prints, with `...` for anything; None where the page does not show it."""
    network: bool = False

    @property
    def is_setup(self) -> bool:
        """Whether the CI entry runs it instead of this test."""
        return self.text.startswith(RUN_BY_CI)


def commands(page: Path) -> Iterator[Command]:
    """In the order of the page."""
    for kind, word, body in FENCE.findall(page.read_text(encoding="utf-8")):
        lines = re.sub(r"\\\n\s*", "", body).splitlines()
        if kind == "sh":
            found: list[tuple[str, str | None]] = [
                (line, None) for line in lines if line.strip() and not line.startswith("#")
            ]
        else:
            starts = [i for i, line in enumerate(lines) if line.startswith("$ ")] + [len(lines)]
            found = [
                (lines[i][2:], "\n".join(lines[i + 1 : end]).strip() or None)
                for i, end in zip(starts, starts[1:], strict=False)
            ]
        for text, expected in found:
            yield Command(text, expected, word == "network")


def matches(expected: str, printed: str) -> bool:
    """Whether the output is what the page shows, runs of blanks counting as one."""
    pattern = ".*".join(re.escape(" ".join(part.split())) for part in expected.split("..."))
    loose = pattern.replace(r"\ ", r"\s+")
    return re.fullmatch(rf"\s*{loose}\s*", printed, re.DOTALL) is not None


def run(command: Command, folder: Path) -> subprocess.CompletedProcess[str]:
    """As a reader would type it, with this Python's `llava` in front."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command.text],
        cwd=folder,
        env={**os.environ, "PATH": path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
    )


def identity(page: Path) -> str:
    return page.name


def pages() -> list[object]:
    """Pages with commands of their own; what trains is marked slow."""
    return [
        pytest.param(
            page, marks=[pytest.mark.slow] if page.name in SLOW_PAGES else [], id=page.name
        )
        for page in PAGES
        if any(not c.is_setup and not c.network for c in commands(page))
    ]


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A reader's folder: the example picture, one photo, a folder of some more."""
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "docs" / "example.png", tmp_path / "docs")
    with Image.open(ROOT / "docs" / "example.png") as example:
        rgb = example.convert("RGB")
        rgb.save(tmp_path / "photo.jpg", quality=95)
        (tmp_path / "photos").mkdir()
        for number in range(3):
            rgb.rotate(180 * (number % 2)).save(tmp_path / "photos" / f"{number}.jpg", quality=95)
    return tmp_path


@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", pages())
def test_every_command_shown_works_and_prints_what_is_shown(page: Path, desk: Path) -> None:
    ran = 0
    for command in commands(page):
        if command.is_setup or command.network:
            continue
        done = run(command, desk)
        assert done.returncode == 0, f"{command.text}\n{done.stdout}\n{done.stderr}"
        if command.expected is not None:
            assert matches(command.expected, done.stdout), f"{command.text}\n{done.stdout}"
        ran += 1
    assert ran > 0


@pytest.mark.network
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("page", PAGES, ids=identity)
def test_every_command_that_needs_the_network_works(
    page: Path, desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    for command in commands(page):
        if command.network:
            done = run(command, desk)
            assert done.returncode == 0, f"{command.text}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=identity)
def test_every_fenced_command_is_in_a_block_that_is_run(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    everything = re.findall(r"^```(.*)\n((?:(?!```).*\n)*)```$", text, re.MULTILINE)
    kinds = {
        kind.split(" ")[0] for kind, body in everything if re.search(r"^(\$ )?llava ", body, re.M)
    }
    assert kinds <= {"console", "sh"}


@pytest.mark.parametrize("page", PAGES, ids=identity)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    targets = LINK.findall(page.read_text(encoding="utf-8"))
    inside = [t for t in targets if page.parent == ROOT / "docs" or t.startswith("docs/")]
    missing = [t for t in inside if not t.startswith("../") and not (page.parent / t).exists()]
    assert missing == []


@pytest.mark.checkout
def test_the_readme_shows_the_two_commands_that_do_all_the_set_up() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in ("demo", "test"):
        assert f"make {target}" in text
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_a_commands_output_is_compared_where_it_is_shown() -> None:
    assert matches("a ... c", "a\nb b\nc\n")
    assert matches('{"x": ...}', '{"x": 1.5}\n')
    assert not matches("a b", "a c\n")
    assert not matches("a", "a b")


def test_a_page_is_read_as_commands_with_their_output(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```console\n$ llava a \\\n    b\nsaid\nmore\n$ llava c\n```\n"
        "```sh network\n# a note\nllava d\n```\n",
        encoding="utf-8",
    )
    assert list(commands(page)) == [
        Command("llava a b", "said\nmore"),
        Command("llava c", None),
        Command("llava d", None, network=True),
    ]
    assert shlex.split(next(commands(page)).text) == ["llava", "a", "b"]
