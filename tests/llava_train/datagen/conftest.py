"""Captions and boxes of a few pictures, and a run of `llava data generate` over them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.llava_train.datagen.server import Server

Generate = Callable[..., tuple[int, Any, str]]


def coco(path: Path, pictures: int) -> Path:
    """A captions file with boxes beside, as `llava data scenes` writes it."""
    content: dict[str, Any] = {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "width": 100, "height": 100} for i in range(pictures)
        ],
        "annotations": [
            {"id": 5 * i + j, "image_id": i, "caption": f"Picture {i}, said in way {j}."}
            for i in range(pictures)
            for j in range(5)
        ],
        "instances": [
            {"image_id": i, "category_id": 1, "bbox": [i % 50, 10, 20, 30], "iscrowd": 0}
            for i in range(pictures)
        ],
        "categories": [{"id": 1, "name": "dog"}],
    }
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    """Ten pictures."""
    return coco(tmp_path / "captions.json", 10)


@pytest.fixture
def generate(captions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Generate:
    """`llava data generate … --json` into tmp_path/out; gives exit code, document and stderr."""
    from llava_cli.cli import main

    def run(server: Server | None, *more: str) -> tuple[int, Any, str]:
        where = ["--base-url", server.url] if server else []
        code = main(
            [
                *("data", "generate", "--captions", str(captions), "--llm", "scripted"),
                *(*where, "-o", str(tmp_path / "out"), "--first-pause", "0.01", "--json", *more),
            ]
        )
        out, err = capsys.readouterr()
        return code, json.loads(out) if out else None, err

    return run


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON Lines file."""
    return [json.loads(row) for row in path.read_text("utf-8").splitlines()]
