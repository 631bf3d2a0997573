"""Results beside published numbers, with what makes the two incomparable said aloud.

Not here: how a result comes about (`scoring`), how a page looks (`page`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llava_cli.errors import DataError, UsageError
from llava_cli.evals import BENCHMARKS, benchmark
from llava_cli.evals.plans import SUFFIXES
from llava_cli.evals.published import JUDGES, MAXIMUM, PUBLISHED
from llava_cli.evals.rows import read_object


@dataclass(frozen=True)
class Line:
    """One result of the report."""

    benchmark: str
    title: str
    metric: str
    ours: float
    published: float | None
    model: str
    """Ours, where the result says so."""
    counts: Mapping[str, int]
    source: Path
    metrics: Mapping[str, float]
    protocol: Mapping[str, Any]
    warnings: tuple[str, ...] = field(default=())

    @property
    def difference(self) -> float | None:
        """Ours minus published."""
        return None if self.published is None else self.ours - self.published

    def share(self, value: float) -> float:
        """A figure on the scale 0 to 1."""
        return max(0.0, min(1.0, value / MAXIMUM.get(self.benchmark, 100.0)))

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "benchmark": self.benchmark,
            "metric": self.metric,
            "ours": self.ours,
            "published": self.published,
            "difference": self.difference,
            "model": self.model,
            "counts": dict(self.counts),
            "protocol": dict(self.protocol),
            "warnings": list(self.warnings),
            "source": str(self.source),
        }


def read(paths: Sequence[Path], against: str) -> list[Line]:
    """The results in files or run folders, in the order of the benchmarks."""
    if against not in PUBLISHED:
        raise UsageError(f"no published numbers of {against}", f"known: {', '.join(PUBLISHED)}")
    lines = [line(path, against) for given in paths for path in _files(given)]
    order = list(BENCHMARKS)
    return sorted(lines, key=lambda line: (order.index(line.benchmark), str(line.source)))


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    own = path / "score.json"
    found = [own] if own.is_file() else sorted(path.glob("*/score.json"))
    if not found:
        raise DataError(f"{path}: holds no score.json", "llava eval run and judge write them")
    return found


def line(path: Path, against: str) -> Line:
    """One result file."""
    document = read_object(path)
    try:
        name, metrics = document["benchmark"], document["metrics"]
        counts, protocol = document["counts"], document["protocol"]
        spec = benchmark(name)
        ours = float(metrics[spec.metric])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path}: no result of llava eval", "give what llava eval score --json printed"
        ) from error
    return Line(
        benchmark=name,
        title=spec.title,
        metric=spec.metric,
        ours=ours,
        published=PUBLISHED[against].get(name),
        model=str(protocol.get("model", "")),
        counts=counts,
        source=path,
        metrics=metrics,
        protocol=protocol,
        warnings=tuple(_warnings(name, counts, protocol)),
    )


def _warnings(name: str, counts: Mapping[str, int], protocol: Mapping[str, Any]) -> list[str]:
    """What makes a result incomparable with the published one."""
    spec = benchmark(name)
    found = []
    if spec.items and counts.get("expected") != spec.items:
        found.append(f"{counts.get('expected')} items; the published number is of {spec.items:,}")
    if counts.get("missing"):
        how = "left out" if protocol.get("answered_only") else "as the rule says"
        found.append(f"{counts['missing']} items without an answer, {how}")
    if counts.get("unparsable"):
        found.append(f"{counts['unparsable']} answers could not be read")
    usual = {
        "prompt_format": "vicuna_v1",
        "image_mode": "pad",
        "suffix": SUFFIXES.get(name, ""),
        "system": None,
        "ocr": True,
        "style": "CQM-A",
    }
    for key, value in usual.items():
        if key in protocol and protocol[key] != value:
            found.append(f"{key} is {protocol[key]!r}; LLaVA-1.5's is {value!r}")
    sampling = protocol.get("sampling")
    if isinstance(sampling, dict) and sampling.get("temperature"):
        found.append(f"sampled at temperature {sampling['temperature']}; LLaVA-1.5's is greedy")
    if name in JUDGES and JUDGES[name] not in str(protocol.get("judge_models", "")):
        said = ", ".join(protocol.get("judge_models", [])) or "an unknown judge"
        found.append(f"judged by {said}; published: {JUDGES[name]}")
    if name in JUDGES and protocol.get("judge_rule_file") == "ours":
        found.append("judged by our wording; the published numbers by upstream's (--rule)")
    return found


def protocol_text(line: Line) -> str:
    """How a result came about, in a few words."""
    found = [
        str(line.protocol[key])
        for key in (
            "prompt_format",
            "image_mode",
            "suffix",
            "engine",
            "rule",
            "judge",
            "judge_date",
        )
        if line.protocol.get(key)
    ]
    return "; ".join(found)


def table(lines: Sequence[Line], against: str) -> str:
    """The report for a terminal."""
    head = ("benchmark", "metric", "ours", against, "difference", "answered")
    rows = [head]
    for one in lines:
        published, gap = one.published, one.difference
        answered = f"{one.counts.get('answered')}/{one.counts.get('expected')}"
        rows.append(
            (
                one.title,
                one.metric,
                f"{one.ours:.2f}",
                "-" if published is None else f"{published:.1f}",
                "-" if gap is None else f"{gap:+.2f}",
                answered,
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    text = ""
    for row in rows:
        cells = [
            c.ljust(w) if i < 2 else c.rjust(w)
            for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ]
        text += "  ".join(cells).rstrip() + "\n"
    for one in lines:
        text += "".join(f"! {one.title}: {warning}\n" for warning in one.warnings)
    return text
