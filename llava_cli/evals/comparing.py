"""Two results on the same items: paired bootstrap of the difference, McNemar's test.

The interval is the percentile bootstrap over items (Efron 1979); the test is exact (binomial) and
needs scores of 0 and 1 (McNemar 1947, Psychometrika 12:153).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llava_cli.errors import DataError
from llava_cli.evals.rows import read_rows

RESAMPLES = 10_000
SEED = 0
_AT_ONCE = 4_000_000
"""Draws held in memory together."""
_EXACT = 5_000
"""Disagreements up to which the test is exact."""

Scores = dict[str, float]


@dataclass(frozen=True)
class Comparison:
    """B against A on the items that both have; figures are percentages."""

    items: int
    only_a: int
    """Items that A alone has."""
    only_b: int
    mean_a: float
    mean_b: float
    interval: tuple[float, float]
    """95 % of the difference B - A."""
    mcnemar: dict[str, float] | None
    """None where scores are not all 0 or 1."""

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "items": self.items,
            "only_a": self.only_a,
            "only_b": self.only_b,
            "mean_a": self.mean_a,
            "mean_b": self.mean_b,
            "difference": self.mean_b - self.mean_a,
            "interval": list(self.interval),
            "resamples": RESAMPLES,
            "mcnemar": self.mcnemar,
        }


def read_items(path: Path) -> Scores:
    """Scores by item: a run's folder, its items.jsonl, or what score --details wrote."""
    file = path / "items.jsonl" if path.is_dir() else path
    if not file.is_file():
        raise DataError(f"{path}: holds no items.jsonl", "llava eval score --details writes one")
    found: Scores = {}
    seen: dict[str, int] = {}
    for row in read_rows(file):
        score = row.data.get("score")
        if isinstance(score, bool) or not isinstance(score, (int, float)):
            raise row.bad("has no score", "give what llava eval score --details wrote")
        if row.data.get("reason") == "excluded":
            continue
        key = json.dumps(row.data.get("question_id"))
        seen[key] = seen.get(key, 0) + 1  # TextVQA asks several questions under one id
        found[f"{key}#{seen[key]}"] = float(score)
    if not found:
        raise DataError(f"{file}: holds no items", "score something first")
    return found


def compare(a: Scores, b: Scores, *, seed: int = SEED) -> Comparison:
    """B against A. DataError where they have no item in common."""
    keys = [key for key in a if key in b]
    if not keys:
        raise DataError("the two have no item in common", "compare results of one benchmark")
    one = np.array([a[key] for key in keys])
    two = np.array([b[key] for key in keys])
    return Comparison(
        items=len(keys),
        only_a=len(a) - len(keys),
        only_b=len(b) - len(keys),
        mean_a=100 * float(one.mean()),
        mean_b=100 * float(two.mean()),
        interval=bootstrap(two - one, seed),
        mcnemar=mcnemar(one, two),
    )


def bootstrap(differences: npt.NDArray[np.float64], seed: int) -> tuple[float, float]:
    """95 % percentile interval of the mean difference, in percentage points.

    Only how often each value is drawn matters: counts of values are drawn, not items.
    """
    values, counts = np.unique(differences, return_counts=True)
    rng = np.random.default_rng(seed)
    n = len(differences)
    step = max(1, _AT_ONCE // len(values))
    means = [
        rng.multinomial(n, counts / n, size=min(step, RESAMPLES - start)) @ values / n
        for start in range(0, RESAMPLES, step)
    ]
    low, high = np.quantile(np.concatenate(means), (0.025, 0.975))
    return 100 * float(low), 100 * float(high)


def mcnemar(one: npt.NDArray[np.float64], two: npt.NDArray[np.float64]) -> dict[str, float] | None:
    """Items that only one has right, and how likely such a split is by chance (two-sided)."""
    if not set(np.unique(one)) | set(np.unique(two)) <= {0.0, 1.0}:
        return None
    only_a = int(((one == 1) & (two == 0)).sum())
    only_b = int(((one == 0) & (two == 1)).sum())
    return {"a_right_b_wrong": only_a, "b_right_a_wrong": only_b, "p": _p(only_a, only_b)}


def _p(first: int, second: int) -> float:
    n, few = first + second, min(first, second)
    if n == 0:
        return 1.0
    if n > _EXACT:  # chi-square with continuity correction
        z = max(0.0, abs(first - second) - 1) / math.sqrt(n)
        return math.erfc(z / math.sqrt(2))
    tail = sum(math.comb(n, k) for k in range(few + 1))
    return min(1.0, 2 * tail / (1 << n))


def text(found: Comparison, names: Sequence[str]) -> str:
    """For a person."""
    low, high = found.interval
    sure = "" if low <= 0 <= high else ", beyond chance at 95 %"
    lines = [
        f"A  {names[0]}: {found.mean_a:.2f}",
        f"B  {names[1]}: {found.mean_b:.2f}",
        f"B - A: {found.mean_b - found.mean_a:+.2f}, 95 % {low:+.2f} to {high:+.2f}{sure}",
        f"{found.items} items in both",
    ]
    if found.mcnemar:
        test = found.mcnemar
        lines.append(
            f"McNemar: {test['a_right_b_wrong']:.0f} only A right,"
            f" {test['b_right_a_wrong']:.0f} only B right, p = {test['p']:.3g}"
        )
    return "\n".join(lines) + "\n"
