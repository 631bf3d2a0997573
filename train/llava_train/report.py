"""A run as one HTML page: curves, what it was made of, and the answers to the samples held out.

The page needs nothing beside it: curves are SVG, pictures are embedded. Reads what `train` wrote
and no model; everything from a file is escaped.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from llava_cli.errors import LlavaError, UsageError
from llava_cli.images import Image

_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 720, 240, 64, 28
_THUMB = 224
_MOST = 600
"""Points of a curve; a longer log is thinned."""
_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:46rem;margin:2rem auto;padding:0 1rem;color:#222}
h1,h2{line-height:1.2}table{border-collapse:collapse}td,th{padding:.15rem .8rem .15rem 0;
text-align:left;vertical-align:top}svg{width:100%;height:auto}figure{display:flex;gap:1rem;
margin:1rem 0;flex-wrap:wrap}figure img{max-width:14rem}figcaption{flex:1;min-width:16rem}
.said{color:#06c}.soft{color:#666}@media(prefers-color-scheme:dark){body{background:#111;
color:#ddd}.said{color:#6bf}.soft{color:#999}}
"""
Points = Sequence[tuple[float, float]]


def write(run: Path) -> Path:
    """Write RUN/report.html and say where it is."""
    lines = _lines(run / "log.jsonl")
    if not lines:
        raise UsageError(f"{run} has no log.jsonl with steps", "give the --output of a training")
    checks = _lines(run / "validation.jsonl")
    page = run / "report.html"
    aside = run / ".report-writing"
    try:
        aside.write_text(_page(run, lines, checks), "utf-8")
        aside.replace(page)
    except OSError as error:
        raise LlavaError(f"{page} cannot be written: {error.strerror}", "make room") from error
    return page


def _page(run: Path, lines: list[dict[str, Any]], checks: list[dict[str, Any]]) -> str:
    about = _document(run / "run.json")
    name = escape(run.resolve().name)
    loss = [(line["step"], line["loss"]) for line in lines]
    held = [(line["step"], line["loss"]) for line in checks]
    speed = [(line["step"], line["tokens"] / max(1e-9, _seconds(line))) for line in lines]
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{name}</title>",
        f"<meta name=viewport content='width=device-width'><style>{_STYLE}</style>",
        f"<h1>{name}</h1>{_summary(lines, checks)}",
        "<h2>Loss</h2>" + curve([("training", loss), ("held out", held)]),
        "<h2>Learning rate</h2>" + curve([("", [(r["step"], r["lr"]) for r in lines])]),
        "<h2>Positions a second</h2>" + curve([("", speed)]),
        "<h2>Answers</h2>" + _answers(checks) if checks else "",
        "<h2>Made of</h2>" + _table(_made_of(about)),
        "<h2>Recipe</h2>" + _recipe(run / "recipe.toml"),
    ]
    return "\n".join(parts) + "\n"


def _seconds(line: dict[str, Any]) -> float:
    return float(line["seconds"]) + float(line.get("data_wait", 0.0))


def _summary(lines: list[dict[str, Any]], checks: list[dict[str, Any]]) -> str:
    seconds = sum(map(_seconds, lines))
    waited = sum(float(line.get("data_wait", 0.0)) for line in lines)
    shares = [line["mfu"] for line in lines if line.get("mfu")]
    rows = {
        "steps": f"{lines[-1]['step']:,}",
        "loss": f"{lines[0]['loss']:.4f} at first, {lines[-1]['loss']:.4f} at last",
        "positions": f"{sum(line['tokens'] for line in lines):,}",
        "time": f"{seconds / 60:,.1f} minutes, {100 * waited / max(1e-9, seconds):.1f} % of them "
        "waiting for data",
    }
    if checks:
        rows["held out"] = f"loss {checks[-1]['loss']:.4f} after step {checks[-1]['step']:,}"
    if shares:
        rows["MFU"] = f"{100 * sum(shares) / len(shares):.1f} %"
    return _table(rows)


def curve(series: Sequence[tuple[str, Points]]) -> str:
    """Lines (name, points) as one SVG; the scale begins at zero where values come near it."""
    every = [p for _, points in series for p in points if math.isfinite(p[1])]
    if not every:
        return "<p class=soft>nothing was logged</p>"
    low, high = min(y for _, y in every), max(y for _, y in every)
    low = 0.0 if low < high / 2 else low
    if high <= low:
        low, high = low - 1, high + 1
    first, last = min(x for x, _ in every), max(x for x, _ in every)
    wide, tall = _WIDTH - _LEFT - 10, _HEIGHT - _BOTTOM - 10

    def place(point: tuple[float, float]) -> str:
        x = _LEFT + wide * (point[0] - first) / max(1e-9, last - first)
        y = 10 + tall * (high - point[1]) / (high - low)
        return f"{x:.1f},{y:.1f}"

    parts = [f"<svg viewBox='0 0 {_WIDTH} {_HEIGHT}' fill=none stroke-width=2 font-size=12>"]
    for value in (low, (low + high) / 2, high):
        _, y = place((first, value)).split(",")
        parts.append(f"<path d='M{_LEFT},{y}H{_WIDTH - 10}' stroke='#8884' stroke-width=1 />")
        parts.append(f"<text x=0 y={y} fill=currentColor>{value:.3g}</text>")
    for x, step in ((_LEFT, first), (_WIDTH - 60, last)):
        parts.append(f"<text x={x} y={_HEIGHT - 6} fill=currentColor>step {step:g}</text>")
    for (name, points), colour in zip(series, ("#06c", "#d60"), strict=False):
        thin = [p for p in _thinned(points) if math.isfinite(p[1])]
        if not thin:
            continue
        drawn = " ".join(map(place, thin))
        parts.append(f"<polyline points='{drawn}' stroke='{colour}'><title>{escape(name)}</title>"
                     "</polyline>")  # fmt: skip
        if len(thin) < 40:
            for point in thin:
                x_text, y_text = place(point).split(",")
                parts.append(f"<circle cx={x_text} cy={y_text} r=3 fill='{colour}' />")
    named = [f"<span style='color:{c}'>{escape(n)}</span>"
             for (n, p), c in zip(series, ("#06c", "#d60"), strict=False) if n and p]  # fmt: skip
    return "".join(parts) + "</svg>" + (f"<p>{' · '.join(named)}</p>" if named else "")


def _thinned(points: Points) -> Points:
    """At most `_MOST` points, each the mean of its neighbours."""
    size = -(-len(points) // _MOST)
    if size <= 1:
        return points
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(g[-1][0], sum(y for _, y in g) / len(g)) for g in groups]


def _answers(checks: list[dict[str, Any]]) -> str:
    """The last answers to each sample, the first ones below them."""
    parts = []
    for position, answer in enumerate(checks[-1].get("answers", [])):
        said = [f"<b class=said>{escape(answer['answer']) or '<i>nothing</i>'}</b>"]
        before = checks[0].get("answers", [])
        if len(checks) > 1 and position < len(before):
            early = escape(before[position]["answer"]) or "<i>nothing</i>"
            said.append(f"<span class=soft>after step {checks[0]['step']}: {early}</span>")
        shown = "".join(_thumbnail(Path(picture)) for picture in answer.get("pictures", []))
        parts.append(
            f"<figure>{shown}<figcaption><span class=soft>{escape(answer['sample'])}</span><br>"
            f"{escape(answer['question'])}<br>{'<br>'.join(said)}<br>"
            f"<span class=soft>expected: {escape(answer['expected'])}</span></figcaption></figure>"
        )
    return "".join(parts)


def _thumbnail(path: Path) -> str:
    """The picture, small; nothing where it cannot be read any more."""
    try:
        image = Image.from_path(path).open()
    except (LlavaError, OSError):
        return ""
    image.thumbnail((_THUMB, _THUMB))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    text = base64.b64encode(buffer.getvalue()).decode()
    return f"<img alt='{escape(path.name, quote=True)}' src='data:image/jpeg;base64,{text}'>"


def _made_of(about: dict[str, Any]) -> dict[str, str]:
    rows = {name: str(version) for name, version in about.get("versions", {}).items()}
    rows |= {key: str(about[key]) for key in ("git", "machine", "processes") if about.get(key)}
    rows["data"] = ", ".join(map(str, about.get("data", [])))
    return rows


def _recipe(path: Path) -> str:
    try:
        return f"<pre>{escape(path.read_text('utf-8'))}</pre>"
    except (OSError, UnicodeDecodeError):
        return "<p class=soft>no recipe.toml</p>"


def _table(rows: dict[str, str]) -> str:
    cells = (f"<tr><th>{escape(k)}<td>{escape(v)}" for k, v in rows.items() if v)
    return f"<table>{''.join(cells)}</table>"


def _lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a log; the last may be cut short by a kill."""
    found = []
    try:
        texts = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    for text in texts:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and "step" in line and "loss" in line:
            found.append(line)
    return found


def _document(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return {}
