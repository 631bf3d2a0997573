"""HTML pages that stand alone: statistics as bars, samples with their pictures.

No script, nothing fetched; everything from the data is escaped, pictures are small JPEGs inside.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from llava_cli.errors import ImageError
from llava_cli.images import Image
from llava_train.samples.paths import picture_path
from llava_train.samples.reading import Row
from llava_train.samples.validate import faults, picture_name

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 60em; padding: 0 1em;
       color: #222; background: #fff; }
h1, h2 { font-weight: 600; }
table { border-collapse: collapse; }
td, th { padding: 0.1em 0.8em 0.1em 0; text-align: left; vertical-align: middle; }
td.n { text-align: right; font-variant-numeric: tabular-nums; }
section.sample { display: grid; grid-template-columns: 20em 1fr; gap: 1.5em; margin: 2em 0;
                 border-top: 1px solid #ccc; padding-top: 1em; }
section.sample img { max-width: 100%; }
.human { color: #0a3d78; white-space: pre-wrap; margin: 0.6em 0 0; }
.gpt { white-space: pre-wrap; margin: 0 0 0.6em; }
.fault { color: #a40000; }
.name { color: #777; font-size: 85%; overflow-wrap: anywhere; }
@media (prefers-color-scheme: dark) {
  body { color: #ddd; background: #161616; } .human { color: #8ab8f0; }
  .fault { color: #ff8a80; } section.sample { border-color: #444; } }
"""
_TITLES = {
    "kinds": "Kinds",
    "turns": "Questions in a sample",
    "words_per_question": "Words of a question, from",
    "words_per_answer": "Words of an answer, from",
    "tokens_per_sample": "Tokens of a sample, from",
    "verbs": "Verbs of the questions",
    "nouns": "Nouns of the questions",
    "openings": "How questions begin",
}
SIDE = 320
"""Pixels of a picture's longer side in a preview."""


def stats_page(document: Mapping[str, Any], title: str) -> str:
    """The statistics of `stats.Stats.document`."""
    numbers = [(key, value) for key, value in document.items() if not isinstance(value, dict)]
    rows = "".join(
        f"<tr><td>{_text(key.replace('_', ' '))}</td><td class=n>{_text(value)}</td></tr>"
        for key, value in numbers
    )
    parts = [f"<table>{rows}</table>"]
    for key, heading in _TITLES.items():
        if document.get(key):
            parts.append(f"<h2>{heading}</h2>{_bars(document[key])}")
    return _page(title, "\n".join(parts))


def preview_page(rows: Iterable[Any], images: Path | None, title: str) -> str:
    """Samples one below the other; those with faults say so."""
    return _page(title, "\n".join(_sample(row, images) for row in rows))


def _bars(counts: Mapping[str, int]) -> str:
    largest = max(counts.values())
    rows = []
    for label, n in counts.items():
        width = max(1, round(360 * n / largest))
        bar = (
            f'<svg width="360" height="12" role="img" aria-label="{n}">'
            f'<rect width="{width}" height="12" rx="2" fill="#4a7db8"/></svg>'
        )
        rows.append(f"<tr><td>{_text(label)}</td><td>{bar}</td><td class=n>{n}</td></tr>")
    return f"<table>{''.join(rows)}</table>"


def _sample(row: Any, images: Path | None) -> str:
    wrong = "".join(
        f"<p class=fault>{_text(' '.join(filter(None, fault)))}</p>" for fault in faults(row)
    )
    if not isinstance(row, dict):
        return f"<section class=sample><div>{wrong}</div><div>{_text(row)}</div></section>"
    name = " · ".join(str(row[key]) for key in ("id", "kind", "image") if row.get(key) is not None)
    turns = row.get("conversations")
    shown = "".join(map(_turn, turns if isinstance(turns, list) else []))
    left = f"{_picture(row, images)}<p class=name>{_text(name)}</p>{wrong}"
    return f"<section class=sample><div>{left}</div><div>{shown}</div></section>"


def _turn(turn: Any) -> str:
    if not isinstance(turn, dict):
        return f"<p>{_text(turn)}</p>"
    speaker = "gpt" if turn.get("from") == "gpt" else "human"
    return f"<p class={speaker}>{_text(turn.get('value'))}</p>"


def _picture(row: Row, images: Path | None) -> str:
    name = picture_name(row)
    if images is None or name is None:
        return ""
    try:
        pixels = Image.from_path(picture_path(images, name)).open()
    except ImageError as error:
        return f"<p class=fault>{_text(error.message)}</p>"
    pixels.thumbnail((SIDE, SIDE))
    data = io.BytesIO()
    pixels.save(data, "JPEG", quality=85)
    packed = base64.b64encode(data.getvalue()).decode("ascii")
    return f'<img alt="" src="data:image/jpeg;base64,{packed}">'


def _page(title: str, body: str) -> str:
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body><h1>{_text(title)}</h1>\n{body}\n</body></html>\n"
    )


def _text(value: Any) -> str:
    text = str(value).encode("utf-8", "replace").decode("utf-8")
    return html.escape(text)
