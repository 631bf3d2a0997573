"""A run's or a score's result on the disk: `score.json`, and `items.jsonl` beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llava_cli.evals import details, scorer
from llava_cli.evals.run import Protocol
from llava_cli.evals.scoring import Inputs, Result, score
from llava_cli.evals.tasks import Plan
from llava_cli.evals.uploads import put


def score_run(
    name: str,
    plan: Plan,
    predictions: Sequence[Path],
    out: Path,
    protocol: Protocol,
    *,
    answered_only: bool,
) -> Result:
    """Score a run's answers and write the result beside them."""
    inputs = Inputs(
        tuple(predictions),
        plan.gold,
        splits=plan.splits,
        split=plan.split,
        answered_only=answered_only,
    )
    with details.writer(out / "items.jsonl") as sink:
        result = score(name, scorer(name), inputs, sink)
    result = replace(result, protocol={**protocol.document(), **result.protocol})
    save(result.document(), out / "score.json")
    return result


def save(document: Mapping[str, Any], path: Path) -> None:
    """Write a result."""
    put(path, json.dumps(document, ensure_ascii=False, indent=1) + "\n")
