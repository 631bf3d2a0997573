"""One HTML page of thumbnails and captions: searched and sorted in the browser, needs nothing else.

The page carries its pictures and its script; its policy forbids it to fetch or send anything.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import IO

from llava_cli.captioning.sources import Item
from llava_cli.errors import LlavaError
from llava_cli.images import Image
from llava_cli.writing import replacing

THUMBNAIL_PX = 240
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True)
class Row:
    """One picture of the report."""

    item: Item
    caption: str
    error: str = ""


def write_report(path: Path, title: str, rows: Iterable[Row]) -> int:
    """Write the page, a picture at a time; how many there are."""
    head, tail = _template(title)
    count = 0
    path.absolute().parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(head.encode("utf-8"))
        for row in rows:
            _write_row(file, row, count)
            count += 1
        file.write(tail.encode("utf-8"))
    return count


def _template(title: str) -> tuple[str, str]:
    """What stands before and after the pictures; only the page's own script may run."""
    page = (files(__package__) / "report.html").read_text(encoding="utf-8")
    for kind in ("script", "style"):
        match = re.search(rf"<{kind}>(.*?)</{kind}>", page, re.DOTALL)
        inside = match[1] if match else ""
        digest = base64.b64encode(hashlib.sha256(inside.encode("utf-8")).digest()).decode("ascii")
        page = page.replace(f"@{kind}@", f"'sha256-{digest}'")
    head, tail = page.replace("@title@", _text(title)).split("@rows@")
    return head, tail


def _write_row(file: IO[bytes], row: Row, number: int) -> None:
    picture = _thumbnail(row.item)
    image = f'<img loading="lazy" alt="" src="data:image/jpeg;base64,{picture}">' if picture else ""
    said = _text(row.caption or row.error)
    kind = "failed" if row.error else "captioned" if row.caption else "none"
    file.write(
        (
            f'<figure data-n="{number}" data-kind="{kind}">{image}<figcaption>'
            f'<p dir="auto">{said}</p><small dir="auto">{_text(row.item.shown)}</small>'
            "</figcaption></figure>\n"
        ).encode()
    )


def _thumbnail(item: Item) -> str:
    """A small JPEG in base64; empty where the picture cannot be read."""
    try:
        pixels = Image.from_bytes(item.read(), item.shown, "file").open()
    except (LlavaError, OSError):
        return ""
    pixels.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    packed = io.BytesIO()
    pixels.save(packed, "JPEG", quality=78)
    return base64.b64encode(packed.getvalue()).decode("ascii")


def _text(text: str) -> str:
    return html.escape(_UNPRINTABLE.sub("\ufffd", text))
