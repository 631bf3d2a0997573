"""Pictures with one caption each, as stage 1 takes them: from CC3M's table or from rows.

Read: tab-separated `caption<TAB>picture` (CC3M), JSON or JSON Lines rows with `image` and
`caption` (or `blip_caption`, `text`), and LLaVA's own stage-1 samples. What such rows become is a
sample with a brief request in front; a sample stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from llava_cli.errors import DataError
from llava_train.samples.draws import draw
from llava_train.samples.reading import Row, rows

_TEXT_KEYS = ("caption", "blip_caption", "text")
_LAYOUT = (
    "give caption<TAB>picture lines, rows with 'image' and 'caption', or LLaVA's stage-1 samples"
    "; of COCO's file: llava data convert coco"
)


@dataclass(frozen=True)
class Caption:
    """A picture's text, and the row it came in."""

    text: str
    row: Row


def captions(path: Path) -> Iterator[Caption]:
    """The captions of a file, one by one; its form is found in its first line."""
    if not path.is_dir() and _is_table(path):
        yield from _table(path)
        return
    for position, row in enumerate(rows(path)):
        text = _text(row) if isinstance(row, dict) else None
        if text is None:
            raise DataError(f"{path.name}[{position}] has no caption", _LAYOUT)
        yield Caption(text, row)


def as_sample(caption: Caption, position: int, requests: Sequence[str], seed: int) -> Row:
    """A stage-1 sample: a brief request, and the caption as its answer."""
    row = caption.row
    if "conversations" in row:
        return row
    name = str(row.get("id", f"{position:09d}"))
    request = requests[draw(seed, name, "request", len(requests))]
    first = draw(seed, name, "place", 2) == 0
    question = f"<image>\n{request}" if first else f"{request}\n<image>"
    return {
        "id": name,
        "image": row["image"],
        "conversations": [
            {"from": "human", "value": question},
            {"from": "gpt", "value": caption.text},
        ],
    }


def _text(row: Row) -> str | None:
    turns = row.get("conversations")
    if isinstance(turns, list):
        answers = [t.get("value") for t in turns if isinstance(t, dict) and t.get("from") == "gpt"]
        return answers[0] if answers and isinstance(answers[0], str) else None
    if not isinstance(row.get("image"), str):
        return None
    found = (row.get(key) for key in _TEXT_KEYS)
    return next((text for text in found if isinstance(text, str)), None)


def _is_table(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}", "check the path") from error
    line = head.split(b"\n")[0]
    return b"\t" in line and line.lstrip()[:1] not in (b"{", b"[") and b"\0" not in head


def _table(path: Path) -> Iterator[Caption]:
    try:
        with path.open(encoding="utf-8", newline="\n") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                text, tab, picture = line.rstrip("\r\n").partition("\t")
                if not tab or not picture.strip():
                    raise DataError(f"{path}, line {number}: no caption<TAB>picture", _LAYOUT)
                yield Caption(text.strip(), {"image": picture.strip(), "caption": text.strip()})
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text", _LAYOUT) from error
