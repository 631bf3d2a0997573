"""What a benchmark asks a model: one `Task` a question, all of them with their gold in a `Plan`.

Not here: how a benchmark's questions are built (`plans_words`, `plans_letters`), how they are
answered (`run`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llava_cli.errors import DataError, ImageError
from llava_cli.evals.rows import read_rows, row_id, row_text
from llava_cli.images import Image

SHORT = "Answer the question using a single word or phrase."
CHOICE = "Answer with the option's letter from the given choices directly."
CHOICE_CN = "请直接回答选项字母。"
UNANSWERABLE = (
    "When the provided information is insufficient, respond with 'Unanswerable'.\n" + SHORT
)
CAPTION = "Provide a one-sentence caption for the provided image."
_SUFFIXES = (".jpg", ".png", ".jpeg", ".webp", ".bmp", ".gif")


@dataclass(frozen=True)
class Task:
    """One question to one picture (or to none)."""

    question_id: Any
    text: str
    """What the model is asked, with the suffix."""
    image: Image | None
    prompt: str = ""
    """What is recorded as `prompt`, where that is not `text`."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """More keys of the prediction's row."""

    @property
    def recorded(self) -> str:
        """The `prompt` of the prediction's row."""
        return self.prompt or self.text

    @property
    def key(self) -> str:
        """What a finished row is known by."""
        return row_key(self.question_id, self.recorded, self.extra.get("round_id"))


def row_key(question_id: Any, prompt: str, round_id: Any = None) -> str:
    """The key of a prediction's row."""
    return json.dumps([question_id, prompt, round_id], ensure_ascii=False)


@dataclass(frozen=True)
class Plan:
    """All tasks of a benchmark, and where their gold is."""

    tasks: list[Task]
    gold: tuple[Path, ...] = ()
    """Empty where the answers are not public."""
    splits: Path | None = None
    split: str = "test"
    upload: Any = None
    """What the upload file needs beside the predictions."""

    def digest(self) -> str:
        """Identity of what is asked."""
        state = hashlib.sha256()
        for task in self.tasks:
            state.update(task.key.encode() + b"\0" + task.text.encode() + b"\0")
        return state.hexdigest()[:16]


@dataclass(frozen=True)
class Asking:
    """The parts of the protocol that shape questions."""

    data: Path
    suffix: str | None = None
    """Replaces the benchmark's own; an empty text leaves it away."""
    questions: Path | None = None
    """LLaVA's ready-made question file."""
    split: str | None = None
    ocr: bool = True
    all_rounds: bool = False
    style: str = "CQM-A"
    """ScienceQA's format, INPUT-OUTPUT."""

    def closing(self, default: str) -> str:
        """The suffix as it follows a question."""
        suffix = default if self.suffix is None else self.suffix
        return f"\n{suffix}" if suffix else ""


class Pictures:
    """Finds pictures by name in a folder: where they are usually, else anywhere below it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._index: dict[str, Path] | None = None

    def find(self, name: str, *places: str) -> Image:
        """The picture `name`, looked for in `places` first. ImageError where there is none."""
        for place in (*places, "images", "."):
            path = self._folder / place / name
            if path.is_file():
                return Image.from_path(path)
        found = self._anywhere().get(Path(name).name)
        if found is None:
            raise ImageError(
                f"{self._folder}: holds no picture {name}", "see llava eval ls for what is needed"
            )
        return Image.from_path(found)

    def by_stem(self, folder: Path, stem: str) -> Image:
        """The picture in a folder whose name without suffix is `stem`."""
        for suffix in _SUFFIXES:
            path = folder / f"{stem}{suffix}"
            if path.is_file():
                return Image.from_path(path)
        raise ImageError(f"{folder}: holds no picture {stem}.jpg or .png", "check the folder")

    def _anywhere(self) -> dict[str, Path]:
        if self._index is None:
            files = sorted(self._folder.rglob("*"))
            self._index = {p.name: p for p in reversed(files) if p.suffix.lower() in _SUFFIXES}
        return self._index


def one_file(folder: Path, *patterns: str, split: str | None = None) -> Path:
    """The one file in a folder that matches; several must be told apart by their split."""
    if folder.is_file():
        return folder
    for pattern in patterns:
        found = sorted(folder.glob(pattern)) or sorted(folder.glob(f"*/{pattern}"))
        if split is not None:
            found = [path for path in found if split in path.name]
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(path.name for path in found[:4])
            raise DataError(f"{folder}: which one? {names}", "name one with --split")
    wanted = patterns[0] + (f" of {split}" if split else "")
    raise DataError(f"{folder}: holds no {wanted}", "see llava eval ls for what is needed")


def maybe_file(folder: Path, *patterns: str) -> Path | None:
    """The first file in a folder that matches, if any."""
    return next((p for pattern in patterns for p in sorted(folder.glob(pattern))), None)


def ready_made(asking: Asking) -> Iterator[Task]:
    """The tasks of LLaVA's question file: rows, or ScienceQA's list of conversations."""
    path = asking.questions
    if path is None:
        return
    pictures = Pictures(asking.data)
    for row in read_rows(path):
        turns = row.data.get("conversations")
        if isinstance(turns, list) and turns and isinstance(turns[0], dict):
            text = str(turns[0].get("value", "")).replace("<image>", "").strip()
        else:
            text = row_text(row, "text")
        name = row.data.get("image")
        image = pictures.find(str(name), "images", "test") if name else None
        prompt = f"<image>\n{text}" if turns and image else ""
        kept = {k: row.data[k] for k in ("category",) if k in row.data}
        if name:
            kept["image"] = name
        # As written: LLaVA's scripts compare ids without any conversion.
        row_id(row, "question_id", "id")
        key = row.data.get("question_id", row.data.get("id"))
        yield Task(key, text, image, prompt, kept)
