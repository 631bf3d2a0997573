"""Answering a benchmark's tasks with an engine: resumable, in the order of the tasks at the end.

A finished answer is on the disk before the next window of tasks begins; what is there is known by
its row (id, prompt, round), so that a run continues after a kill at any moment. Not here: what is
asked (`plans`), how it is scored (`scoring`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Literal

from llava_cli.conversation import Conversation
from llava_cli.engines.base import Engine, Sampling, Token
from llava_cli.errors import DataError, ImageError, UsageError
from llava_cli.evals.rows import read_object
from llava_cli.evals.tasks import Task, row_key
from llava_cli.evals.uploads import put
from llava_cli.images import Image

ImageMode = Literal["pad", "crop", "stretch", "model"]
WINDOW = 64
"""Tasks whose pictures are open at once, and that an engine may batch."""
PAD_COLOR = (122, 116, 104)
"""LLaVA's padding: CLIP's mean colour."""


@dataclass(frozen=True)
class Shard:
    """One of `count` runs that share the tasks, in blocks of ceil(n / count) as LLaVA cuts."""

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str | None) -> Shard:
        """`i/n`, i from 1."""
        if text is None:
            return cls()
        first, _, last = text.partition("/")
        if not (first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last)):
            raise UsageError(f"--shard {text}: not i/n", "the first of four is 1/4")
        return cls(int(first) - 1, int(last))

    def cut(self, tasks: Sequence[Task]) -> Sequence[Task]:
        """This shard's block."""
        size = -(-len(tasks) // self.count)
        return tasks[self.index * size : (self.index + 1) * size]

    @property
    def file_name(self) -> str:
        """Of its predictions."""
        if self.count == 1:
            return "predictions.jsonl"
        return f"predictions-{self.index + 1}-of-{self.count}.jsonl"


@dataclass(frozen=True)
class Protocol:
    """Everything that decides an answer; recorded beside the answers."""

    benchmark: str
    model: str
    engine: str
    prompt_format: str
    image_mode: ImageMode
    suffix: str
    system: str | None
    ocr: bool
    style: str
    all_rounds: bool
    questions: str
    """Digest of all prompts."""
    sampling: Mapping[str, Any]

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


class Journal:
    """The predictions file of a run: what it holds already, and what is added."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        self._file: IO[bytes] | None = None

    def open(self) -> None:
        """Read what is there; a last line that was cut off by a kill is taken away."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        whole = 0
        if self.path.exists():
            data = self.path.read_bytes()
            whole = data.rfind(b"\n") + 1
            for number, line in enumerate(data[:whole].splitlines(), 1):
                try:
                    self.rows.append(json.loads(line))
                except ValueError as error:
                    raise DataError(
                        f"{self.path}, line {number}: not JSON", "remove the line, or the file"
                    ) from error
        self._file = self.path.open("ab")
        self._file.truncate(whole)

    def add(self, row: dict[str, Any]) -> None:
        """One more finished row; a kill of the process does not lose it."""
        if self._file is None:
            raise ValueError("the journal is not open")
        self._file.write(json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace"))
        self._file.write(b"\n")
        self._file.flush()
        self.rows.append(row)

    def sync(self) -> None:
        """Force what was added to the disk, against a loss of power."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Nothing more is added."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def arrange(self, tasks: Sequence[Task]) -> list[dict[str, Any]]:
        """The rows in the order of the tasks, written anew where they were not."""
        places: dict[str, list[int]] = {}
        for place, task in enumerate(tasks):
            places.setdefault(task.key, []).append(place)
        last = len(tasks)
        ordered = sorted(
            ((places[k].pop(0) if places.get(k) else last, row) for k, row in self._keyed()),
            key=lambda pair: pair[0],
        )
        rows = [row for _, row in ordered]
        if rows != self.rows:
            put(self.path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
            self.rows = rows
        return rows

    def _keyed(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for row in self.rows:
            yield row_key(row.get("question_id"), str(row.get("prompt")), row.get("round_id")), row

    def missing(self, tasks: Sequence[Task]) -> list[Task]:
        """The tasks without a row; a task that is there twice needs two."""
        done = Counter(key for key, _ in self._keyed())
        left = []
        for task in tasks:
            if done[task.key]:
                done[task.key] -= 1
            else:
                left.append(task)
        return left


def check_protocol(path: Path, protocol: Protocol, resume: bool) -> None:
    """Record the protocol; refuse to continue answers that were made with another."""
    document = protocol.document()
    if path.exists() and resume:
        before = read_object(path)
        other = [k for k, v in document.items() if before.get(k) != json.loads(json.dumps(v))]
        if other:
            raise UsageError(
                f"{path.parent}: holds answers made with another {', '.join(other)}",
                "name another folder with -o, or start anew with --no-resume",
            )
        return
    put(path, json.dumps(document, ensure_ascii=False, indent=1) + "\n")


@dataclass(frozen=True)
class Failure:
    """A task that could not be answered."""

    task: Task
    error: str


def answer(
    engine: Engine,
    tasks: Sequence[Task],
    journal: Journal,
    sampling: Sampling,
    protocol: Protocol,
    progress: Callable[[int], None],
) -> list[Failure]:
    """Answer the tasks that have no row yet; gives those whose picture cannot be used."""
    failures: list[Failure] = []
    left = journal.missing(tasks)
    for start in range(0, len(left), WINDOW):
        ready: list[Task] = []
        conversations: list[Conversation] = []
        for task in left[start : start + WINDOW]:
            try:
                conversations.append(conversation(task, protocol))
                ready.append(task)
            except ImageError as error:
                failures.append(Failure(task, error.message))
        for index, text in _finished(engine.generate_batch(conversations, sampling)):
            journal.add(prediction(ready[index], text, protocol.model))
            progress(1)
        journal.sync()
    return failures


def _finished(tokens: Iterator[tuple[int, Token]]) -> Iterator[tuple[int, str]]:
    """Whole answers, stripped, as each comes to its end."""
    texts: dict[int, list[str]] = {}
    for index, token in tokens:
        texts.setdefault(index, []).append(token.text)
        if token.finish_reason is not None:
            yield index, "".join(texts.pop(index)).strip()


def conversation(task: Task, protocol: Protocol) -> Conversation:
    """What the engine is given; the picture is decoded here, so that a bad one fails alone."""
    turns = Conversation()
    if protocol.system is not None:
        turns = turns.add("system", protocol.system)
    if task.image is None:
        return turns.add("user", task.text)
    return turns.add("user", squared(task.image.loaded(), protocol.image_mode), task.text)


def squared(image: Image, mode: ImageMode) -> Image:
    """The picture as a square, so that what a model's own preparation does to others is overruled.

    pad: centred on LLaVA's colour · crop: the centre · stretch: out of shape · model: as it is.
    """
    from PIL import Image as PIL

    pixels = image.open()
    width, height = pixels.size
    if mode == "model" or width == height:
        return image
    long, short = max(width, height), min(width, height)
    if mode == "pad":
        square = PIL.new("RGB", (long, long), PAD_COLOR)
        square.paste(pixels, ((long - width) // 2, (long - height) // 2))
    elif mode == "crop":
        left, top = (width - short) // 2, (height - short) // 2
        square = pixels.crop((left, top, left + short, top + short))
    else:
        square = pixels.resize((long, long), PIL.Resampling.BICUBIC)
    return Image.from_pil(square, image.source)


def prediction(task: Task, text: str, model: str) -> dict[str, Any]:
    """A row as LLaVA's scripts write it; the answer's id is a digest, so that reruns are equal."""
    digest = hashlib.sha256(f"{task.key}\0{text}".encode("utf-8", "backslashreplace"))
    return {
        "question_id": task.question_id,
        "prompt": task.recorded,
        "text": text,
        "answer_id": digest.hexdigest()[:22],
        "model_id": model,
        "metadata": {},
        **task.extra,
    }
