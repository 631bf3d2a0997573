"""Samples in LLaVA's layout, and the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Row = dict[str, Any]
Run = Callable[..., tuple[int, str, str]]


def sample(name: str, image: str | None = "0.png", *texts: str, **more: Any) -> Row:
    """A sample of these texts, questions and answers in turn."""
    texts = texts or ("What is it?", "A red circle.")
    rows = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]
    if image is not None:
        rows[0]["value"] = f"<image>\n{rows[0]['value']}"
    picture = {} if image is None else {"image": image}
    return {"id": name, **picture, **more, "conversations": rows}


def write(path: Path, rows: list[Any]) -> Path:
    """Rows as JSON, or as JSON Lines where the name says so."""
    lines = path.suffix == ".jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows))
    return path


@pytest.fixture
def data(capsys: pytest.CaptureFixture[str]) -> Run:
    """`llava data …` in this process: exit code, stdout, stderr."""
    from llava_cli.cli import main

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        code = main(["data", *map(str, arguments)])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return code, out, err

    return run
