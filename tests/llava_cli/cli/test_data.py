"""`llava data scenes` hands its options on and says what it wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.llava_cli.cli.conftest import InProcess


def test_scenes_are_written(llava: InProcess, tmp_path: Path) -> None:
    out = tmp_path / "scenes"
    ran = llava("data", "scenes", "-o", out, "--n", "2", "--seed", "5", "--size", "96", "--json")
    assert ran.code == 0, ran.err
    assert ran.json == {"out": str(out), "n": 2, "seed": 5, "format": "png"}
    lines = (out / "scenes.jsonl").read_text().splitlines()
    assert len([json.loads(line) for line in lines]) == 2
    assert len(list((out / "images").glob("*.png"))) == 2
    for name in ("captions.json", "stage1.json", "instruct.json"):
        assert json.loads((out / name).read_text())


def test_same_seed_same_bytes_for_any_number_of_workers(llava: InProcess, tmp_path: Path) -> None:
    for workers in ("1", "2"):
        out = tmp_path / workers
        common = ["--n", "2", "--seed", "5", "--format", "jpg", "-q", "--workers", workers]
        assert llava("data", "scenes", "-o", out, *common).code == 0
    one, two = (
        {path.name: path.read_bytes() for path in (tmp_path / name).rglob("*") if path.is_file()}
        for name in ("1", "2")
    )
    assert one == two


@pytest.mark.parametrize(
    "options",
    [
        ["--n", "0"],
        ["--n", "many"],
        ["--n", "1", "--format", "tiff"],
        ["--n", "1", "--size", "0"],
        ["--n", "1", "--seed", "-1"],
        [],
    ],
)
def test_nonsense_is_a_usage_error(llava: InProcess, tmp_path: Path, options: list[str]) -> None:
    ran = llava("data", "scenes", "-o", tmp_path / "x", "--json", *options)
    assert (ran.code, ran.error["type"]) == (2, "UsageError")
    assert not (tmp_path / "x").exists()


def test_folder_that_cannot_be_written_is_one_line(llava: InProcess, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ran = llava("data", "scenes", "-o", tmp_path / "file" / "x", "--n", "1")
    assert ran.code == 1
    assert "Traceback" not in ran.err
    assert str(tmp_path) in ran.err
