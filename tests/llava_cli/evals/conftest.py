"""Small files in the layouts of the organisers, and scoring them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from llava_cli import evals
from llava_cli.evals import scoring
from llava_cli.evals.scoring import Inputs, Result, Verdict


class Desk:
    """A folder to put files in, and the scorers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.items: list[Verdict] = []

    def json(self, name: str, value: Any) -> Path:
        """A JSON file."""
        return self.text(name, json.dumps(value))

    def lines(self, name: str, rows: Iterable[Any], end: str = "\n") -> Path:
        """A JSON Lines file."""
        return self.text(name, "".join(json.dumps(row) + end for row in rows))

    def text(self, name: str, text: str) -> Path:
        """Any text file; line ends as given."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
        return path

    def score(
        self, name: str, predictions: Path | tuple[Path, ...], *annotations: Path, **options: Any
    ) -> Result:
        """Score; the verdicts are left in `items`."""
        files = predictions if isinstance(predictions, tuple) else (predictions,)
        self.items = []
        inputs = Inputs(predictions=files, annotations=annotations, **options)
        return scoring.score(name, evals.scorer(name), inputs, self.items.append)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """An empty desk."""
    return Desk(tmp_path)
