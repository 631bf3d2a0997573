"""What the repository and its distribution promise, whatever the code in them does."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

import llava_cli

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {
    "llava_cli": ROOT / "llava_cli",
    "llava_convert": ROOT / "convert" / "llava_convert",
    "llava_train": ROOT / "train" / "llava_train",
}
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 80
USUAL_FUNCTION_LINES = 45

checkout = pytest.mark.checkout


def package_files() -> set[str]:
    """Paths, as a wheel names them, of every file of the three packages."""
    return {
        f"{name}/{path.relative_to(folder).as_posix()}"
        for name, folder in PACKAGES.items()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def repository_files() -> list[Path]:
    """Files under version control, or about to be."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listing.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()]


def python_files() -> list[Path]:
    folders = [*PACKAGES.values(), ROOT / "tests", ROOT / "docs", ROOT / "benchmarks"]
    return sorted(path for folder in folders for path in folder.rglob("*.py"))


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def hatch(*arguments: str | Path, cwd: Path) -> None:
    """Build with the installed backend, so that nothing is fetched."""
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def unpack(sdist: Path, folder: Path) -> None:
    """Write the archive's files; `extractall` warns or not depending on the Python release."""
    with tarfile.open(sdist) as archive:
        for member in archive:
            if (stream := archive.extractfile(member)) is not None:
                target = folder / member.name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(stream.read())


def wheel_names(folder: Path) -> set[str]:
    (wheel,) = folder.glob("*.whl")
    return set(zipfile.ZipFile(wheel).namelist())


def test_installed_version_is_the_packages_own() -> None:
    assert version("llava-cli") == llava_cli.__version__


@checkout
def test_changelog_opens_with_the_current_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    first = re.search(r"^## (\S+)", text, re.MULTILINE)
    assert first is not None
    assert first.group(1) == llava_cli.__version__


@checkout
def test_wheel_holds_every_file_of_the_three_packages_and_nothing_else(tmp_path: Path) -> None:
    hatch("-t", "wheel", "-d", tmp_path, cwd=ROOT)
    names = {name for name in wheel_names(tmp_path) if ".dist-info/" not in name}
    assert names == package_files()
    assert any(name.startswith("llava_train/recipes/") for name in names)


@checkout
def test_wheel_made_from_the_sdist_is_the_same(tmp_path: Path) -> None:
    hatch("-t", "sdist", "-d", tmp_path, cwd=ROOT)
    (sdist,) = tmp_path.glob("*.tar.gz")
    unpack(sdist, tmp_path)
    hatch("-t", "wheel", "-d", tmp_path, cwd=tmp_path / sdist.name.removesuffix(".tar.gz"))
    names = {name for name in wheel_names(tmp_path) if ".dist-info/" not in name}
    assert names == package_files()


@checkout
def test_bundled_model_and_its_card_are_in_the_wheel_within_16_mb(tmp_path: Path) -> None:
    hatch("-t", "wheel", "-d", tmp_path, cwd=ROOT)
    (wheel,) = tmp_path.glob("*.whl")
    demo = [
        entry
        for entry in zipfile.ZipFile(wheel).infolist()
        if entry.filename.startswith("llava_cli/demo/")
    ]
    suffixes = {Path(entry.filename).suffix for entry in demo}
    assert {".safetensors", ".gguf", ".json", ".md"} <= suffixes
    assert sum(entry.file_size for entry in demo) <= 16_000_000


@checkout
def test_every_pin_is_a_dependency_and_lies_within_its_declared_range() -> None:
    project = pyproject()["project"]
    extras = project["optional-dependencies"].values()
    declared = [Requirement(text) for text in project["dependencies"] + sum(extras, [])]
    allowed = {requirement.name: requirement.specifier for requirement in declared}
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert "torch" in {pin.name for pin in pins}
    for pin in pins:
        (only,) = pin.specifier
        assert only.operator == "=="
        assert only.version in allowed[pin.name], f"{pin} is outside what pyproject.toml declares"


@checkout
def test_every_dependency_says_why_it_is_there() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    body = text[text.index("dependencies = [") : text.index("[project.scripts]")]
    listed = [line for line in body.splitlines() if line.startswith('    "')]
    silent = [line.strip() for line in listed if "#" not in line and "llava-cli[" not in line]
    assert len(listed) > 10
    assert silent == []


@checkout
def test_every_module_of_llava_cli_has_its_layer() -> None:
    contracts = pyproject()["tool"]["importlinter"]["contracts"]
    (layers,) = [c["layers"] for c in contracts if c["id"] == "layers"]
    placed = set(re.findall(r"llava_cli\.(\w+)", " ".join(layers)))
    found = {
        path.stem
        for path in PACKAGES["llava_cli"].iterdir()
        if path.suffix == ".py" or (path / "__init__.py").is_file()
    }
    assert found - placed == {"__init__", "__main__", "demo"}


@checkout
@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("llava_cli/conversation.py", "import llava_cli.engines"),
        ("llava_cli/models/files.py", "import torch"),
        ("llava_cli/engines/base.py", "import llama_cpp"),
        ("llava_convert/__init__.py", "import llava_train"),
    ],
)
def test_import_rule_catches_a_planted_violation(tmp_path: Path, module: str, line: str) -> None:
    for name, folder in PACKAGES.items():
        shutil.copytree(folder, tmp_path / name, ignore=shutil.ignore_patterns("demo"))
    shutil.copytree(PACKAGES["llava_cli"] / "demo", tmp_path / "llava_cli" / "demo")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / module).open("a", encoding="utf-8") as stream:
        stream.write(f"\n{line}\n")
    lint = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(lint, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout
    assert "BROKEN" in done.stdout


@checkout
def test_no_folder_that_holds_the_packages_is_itself_a_package() -> None:
    assert not (ROOT / "convert" / "__init__.py").exists()
    assert not (ROOT / "train" / "__init__.py").exists()


@checkout
def test_files_and_functions_keep_to_their_lengths() -> None:
    lengths: dict[str, int] = {}
    too_long: list[str] = []
    for path in python_files():
        name = path.relative_to(ROOT).as_posix()
        text = path.read_text(encoding="utf-8")
        if (lines := text.count("\n")) > MAX_FILE_LINES:
            too_long.append(f"{name}: {lines} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                end = node.end_lineno or node.lineno
                lengths[f"{name}:{node.lineno} {node.name}"] = end - node.lineno + 1
    too_long += [f"{name}: {n} lines" for name, n in lengths.items() if n > MAX_FUNCTION_LINES]
    assert too_long == []
    ordered = sorted(lengths.values())
    assert ordered[int(0.9 * len(ordered))] <= USUAL_FUNCTION_LINES


@checkout
def test_no_file_names_a_place_on_somebodys_machine() -> None:
    homes = b"|".join([rb"/(?:home|Users)/\w", rb"/root" + b"/", rb"/work" + b"/", rb":\\Users"])
    found = [
        f"{path.relative_to(ROOT)}: {hit.group(0)!r}"
        for path in repository_files()
        if (hit := re.search(rb"(?<![\w.~-])(?:" + homes + rb")", path.read_bytes()))
    ]
    assert found == []


@checkout
def test_no_work_is_left_as_a_note() -> None:
    notes = re.compile("|".join([r"\bTO" + "DO", r"\bFIX" + "ME", r"\bXX" + r"X\b"]))
    texts = {".py", ".md", ".toml", ".txt", ".sh", ""}
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in repository_files()
        if path.suffix in texts
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if notes.search(line)
    ]
    assert found == []


@checkout
def test_only_the_bundled_model_and_small_pictures_are_binary() -> None:
    pictures = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".svg"}
    demo = PACKAGES["llava_cli"] / "demo"
    for path in repository_files():
        if demo in path.parents:
            continue
        if path.suffix in pictures:
            assert path.stat().st_size <= 500_000, f"{path.relative_to(ROOT)} is no small picture"
        else:
            assert b"\0" not in path.read_bytes(), f"{path.relative_to(ROOT)} is binary"
