"""The report as one HTML page: a table, bars by category, a radar; no script, nothing fetched."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from llava_cli.evals.published import PUBLISHED
from llava_cli.evals.reporting import Line, protocol_text

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  color: #1a1a1a; background: #fff }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #ddd }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums }
.warn { color: #8a4b00 } .how { color: #666; font-size: 13px }
svg text { font: 12px system-ui, sans-serif; fill: #333 }
@media (prefers-color-scheme: dark) { body { color: #ddd; background: #161616 }
  th, td { border-color: #333 } svg text { fill: #ccc } .warn { color: #ffb454 } }
"""
_OURS, _THEIRS = "#3b6fd4", "#d48a3b"
_RADIUS = 150


def page(lines: Sequence[Line], against: str) -> str:
    """The whole document."""
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width, initial-scale=1'>",
        f"<title>llava eval report</title><style>{_STYLE}</style><h1>Evaluation</h1>",
        _table(lines, against),
    ]
    spokes = _spokes(lines)
    if len(spokes) >= 3:
        parts += ["<h2>Beside the published model</h2>", _radar(spokes, against)]
    for line in lines:
        bars = _categories(line)
        if bars:
            parts += [f"<h2>{escape(line.title)} by category</h2>", _bars(bars)]
    return "\n".join(parts) + "\n"


def _table(lines: Sequence[Line], against: str) -> str:
    head = "<tr><th>benchmark<th>metric<th class=n>ours<th class=n>"
    head += f"{escape(against)}<th class=n>difference<th class=n>answered"
    rows = []
    for line in lines:
        gap = "" if line.difference is None else f"{line.difference:+.2f}"
        published = "" if line.published is None else f"{line.published:.1f}"
        answered = f"{line.counts.get('answered')}/{line.counts.get('expected')}"
        notes = "".join(f"<div class=warn>{escape(text)}</div>" for text in line.warnings)
        rows.append(
            f"<tr><td>{escape(line.title)}{notes}"
            f"<div class=how>{escape(line.model)} {escape(protocol_text(line))}</div>"
            f"<td>{escape(line.metric)}<td class=n>{line.ours:.2f}<td class=n>{published}"
            f"<td class=n>{gap}<td class=n>{escape(answered)}"
        )
    return f"<table>{head}{''.join(rows)}</table>"


def _spokes(lines: Sequence[Line]) -> list[Line]:
    """One result a benchmark, of those that are published."""
    found = {line.benchmark: line for line in lines if line.published is not None}
    order = list(PUBLISHED["llava-1.5-7b"])
    return [found[name] for name in order if name in found]


def _radar(lines: Sequence[Line], against: str) -> str:
    width, height = 2 * _RADIUS + 260, 2 * _RADIUS + 80
    parts = [f"<svg viewBox='0 0 {width} {height}' role=img aria-label='radar of the benchmarks'>"]
    centre = (width / 2, height / 2)
    for ring in (0.25, 0.5, 0.75, 1.0):
        parts.append(_polygon(centre, [ring] * len(lines), "#999", 0.0))
    ours = [line.share(line.ours) for line in lines]
    theirs = [line.share(line.published or 0.0) for line in lines]
    parts += [_polygon(centre, theirs, _THEIRS, 0.12), _polygon(centre, ours, _OURS, 0.2)]
    for i, line in enumerate(lines):
        x, y = _point(centre, i, len(lines), 1.1)
        anchor = "middle" if abs(x - centre[0]) < 5 else "start" if x > centre[0] else "end"
        parts.append(f"<text x={x:.0f} y={y:.0f} text-anchor={anchor}>{escape(line.title)}</text>")
    for row, (name, colour) in enumerate((("ours", _OURS), (against, _THEIRS))):
        parts.append(f"<rect x=8 y={8 + 18 * row} width=12 height=12 fill='{colour}'/>")
        parts.append(f"<text x=26 y={18 + 18 * row}>{escape(name)}</text>")
    return "".join(parts) + "</svg>"


def _point(centre: tuple[float, float], i: int, n: int, share: float) -> tuple[float, float]:
    angle = 2 * math.pi * i / n - math.pi / 2
    reach = _RADIUS * share
    return centre[0] + reach * math.cos(angle), centre[1] + reach * math.sin(angle)


def _polygon(
    centre: tuple[float, float], shares: Sequence[float], colour: str, opacity: float
) -> str:
    points = (_point(centre, i, len(shares), share) for i, share in enumerate(shares))
    text = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    width = 2 if opacity else 0.5
    return (
        f"<polygon points='{text}' fill='{colour}' fill-opacity={opacity} stroke='{colour}'"
        f" stroke-width={width} />"
    )


def _categories(line: Line) -> list[tuple[str, float]]:
    """The figures of one kind that a result has by category."""
    prefix = f"{line.metric}_"
    found = [(k[len(prefix) :], v) for k, v in line.metrics.items() if k.startswith(prefix)]
    if line.benchmark == "mme":
        found = [
            (k.removesuffix("_accuracy"), v)
            for k, v in line.metrics.items()
            if k.endswith("_accuracy")
        ]
    if line.benchmark == "scienceqa":
        names = ("nat", "soc", "lan", "txt", "img", "no", "g1_6", "g7_12")
        found = [(name, line.metrics[name]) for name in names if name in line.metrics]
    return [(name, value) for name, value in found if 0 <= value <= 100]


def _bars(bars: Sequence[tuple[str, float]]) -> str:
    step, left = 22, 190
    parts = [f"<svg viewBox='0 0 640 {step * len(bars) + 6}' role=img aria-label='bars'>"]
    for row, (name, value) in enumerate(bars):
        y = row * step + 4
        parts.append(f"<text x={left - 8} y={y + 13} text-anchor=end>{escape(name)}</text>")
        parts.append(f"<rect x={left} y={y} width={4 * value:.1f} height=16 fill='{_OURS}'/>")
        parts.append(f"<text x={left + 4 * value + 6:.0f} y={y + 13}>{value:.1f}</text>")
    return "".join(parts) + "</svg>"
