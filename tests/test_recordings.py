"""README's pictures of terminals: made by docs/record.py, whole, and in need of nothing else."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("ask", "chat", "caption")
SVG = "{http://www.w3.org/2000/svg}"


def lines_of(picture: Path) -> list[str]:
    """The text of a picture, line by line; ParseError where it is no XML."""
    lines: dict[float, str] = {}
    for element in ElementTree.parse(picture).iter(f"{SVG}text"):
        if "clip-path" in element.attrib:  # not the window's title
            y = float(element.attrib["y"])
            lines[y] = lines.get(y, "") + (element.text or "").replace("\xa0", " ").strip("\n")
    return [lines[y].rstrip() for y in sorted(lines)]


@pytest.mark.parametrize("name", NAMES)
def test_readme_shows_each_recording_and_it_is_whole_and_small(name: str) -> None:
    picture = ROOT / "docs" / f"{name}.svg"
    assert f'src="docs/{name}.svg"' in (ROOT / "README.md").read_text(encoding="utf-8")
    assert lines_of(picture)[0].startswith("$ l")
    assert any(line.startswith(f"$ llava {name} ") for line in lines_of(picture))
    assert picture.stat().st_size < 40_000
    assert ElementTree.parse(picture).getroot().tag == f"{SVG}svg"


@pytest.mark.parametrize("name", NAMES)
def test_a_recording_loads_nothing_and_names_no_path_of_who_made_it(name: str) -> None:
    text = (ROOT / "docs" / f"{name}.svg").read_text(encoding="utf-8")
    outside = [u for u in re.findall(r"https?://[^\"\s<]+", text) if "w3.org" not in u]
    assert outside == ["https://www.textualize.io"]  # rich's name in a comment
    assert re.findall(r"url\((?!#)", text) == []
    assert re.findall(r"<(?:image|script|use|foreignObject)\b", text) == []
    assert not [line for line in lines_of(ROOT / "docs" / f"{name}.svg") if "/tmp" in line]


@pytest.mark.checkout
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX terminals")
def test_the_script_records_what_the_picture_shows(tmp_path: Path) -> None:
    pytest.importorskip("pyte")
    command = [sys.executable, str(ROOT / "docs" / "record.py"), "ask", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert lines_of(tmp_path / "ask.svg") == lines_of(ROOT / "docs" / "ask.svg")


@pytest.mark.checkout
@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX terminals")
@pytest.mark.parametrize("name", ["chat", "caption"])
def test_the_longer_ones_are_recorded_too(tmp_path: Path, name: str) -> None:
    pytest.importorskip("pyte")
    command = [sys.executable, str(ROOT / "docs" / "record.py"), name, "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    recorded, shown = (lines_of(folder / f"{name}.svg") for folder in (tmp_path, ROOT / "docs"))
    assert len(recorded) == len(shown)  # seconds and rates differ
    assert [line for line in recorded if line.startswith("$")] == [
        line for line in shown if line.startswith("$")
    ]
