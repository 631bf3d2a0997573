"""`eval run` gives the same predictions on both engines, batch and kill or not."""

from __future__ import annotations

from pathlib import Path

import pytest

from llava_cli.engines import Engine
from llava_cli.engines.base import Sampling
from llava_cli.evals import plans
from llava_cli.evals.run import Journal, Protocol, answer
from llava_cli.evals.tasks import Asking
from tests.llava_cli.evals.layouts import LAYOUTS, make


def predictions(engine: Engine, name: str, folder: Path, *, parts: int = 1) -> bytes:
    """The predictions file after a run, in so many calls."""
    tasks = plans.plan(name, Asking(folder / "data")).tasks
    sampling = Sampling(max_tokens=6)
    protocol = Protocol(
        benchmark=name, model="tiny", engine=engine.name, prompt_format=engine.prompt_format,
        image_mode="pad", suffix="", system=None, ocr=True, style="CQM-A", all_rounds=False,
        questions="", sampling={},
    )  # fmt: skip
    path = folder / f"{engine.name}-{parts}.jsonl"
    for part in range(1, parts + 1):
        journal = Journal(path)
        journal.open()
        asked = tasks[: len(tasks) * part // parts]
        assert answer(engine, asked, journal, sampling, protocol, lambda _: None) == []
        journal.close()
        journal.arrange(tasks)
    return path.read_bytes()


@pytest.mark.parametrize("name", LAYOUTS)
def test_predictions_are_identical(
    name: str, bpe_gguf: Engine, bpe_torch: Engine, tmp_path: Path
) -> None:
    make(name, tmp_path / "data")
    whole = predictions(bpe_gguf, name, tmp_path)
    assert whole.count(b"\n") > 0
    assert predictions(bpe_torch, name, tmp_path) == whole
    assert predictions(bpe_gguf, name, tmp_path, parts=2) == whole
