"""Records of a data file as checked samples: LLaVA's and ShareGPT's words for roles and turns.

A record that cannot be used is an error that names it. Not here: files (`sources.py`), tokens
(`labels.py`).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from llava_cli.conversation import Conversation
from llava_cli.errors import DataError
from llava_cli.images import Image
from llava_cli.prompts import PromptFormat, Segment, render
from llava_train.labels import IMAGE_TOKEN
from llava_train.sources import Picture, Source, records

_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant",
    "system": "system",
}  # fmt: skip
PLACE = Image(source="the sample's picture", kind="memory")
"""Stands where a sample's picture goes while it is rendered; nothing is decoded for that."""


@dataclass(frozen=True)
class Sample:
    """One checked sample."""

    name: str
    images: tuple[str | Picture, ...]
    """Paths inside the folder of pictures, or pictures of the data file itself."""
    turns: tuple[tuple[str, str], ...]
    """(role, text) in order; in `image_turns` the text holds `<image>` where a picture goes."""
    image_turns: tuple[int, ...] = ()
    system: str | None = None
    folder: Path | None = None
    """Where its pictures lie, if not where those of the run do."""

    def conversation(self, picture: Image, place: str = "front") -> Conversation:
        """The sample as a conversation; `picture` stands where its pictures go.

        place: `front`, `data` or `random`, as in `Recipe.image_place`.
        """
        conversation = Conversation()
        if self.system:
            conversation = conversation.add("system", self.system)
        for position, (role, text) in enumerate(self.turns):
            content: tuple[str | Image, ...] = (text,)
            if position in self.image_turns:
                content = self._content(text, picture, place)
            conversation = conversation.add(role, *content)  # type: ignore[arg-type]
        return conversation

    def _content(self, text: str, picture: Image, place: str) -> tuple[str | Image, ...]:
        """Texts and pictures of one turn."""
        if len(self.images) > 1:  # each stays where it is
            return _in_place(text, picture)
        question = text.replace(IMAGE_TOKEN, "").strip()
        behind = text.rstrip().endswith(IMAGE_TOKEN) and not text.lstrip().startswith(IMAGE_TOKEN)
        if place == "random":
            behind = hashlib.sha256(f"{self.name}\0{question}".encode()).digest()[0] % 2 == 1
        if place == "front" or not behind or not question:
            return (picture, question)
        return (question + "\n", picture)


def _in_place(text: str, picture: Image) -> tuple[str | Image, ...]:
    """A text cut at its placeholders; the format itself writes the gap behind leading pictures."""
    content: list[str | Image] = []
    for number, piece in enumerate(text.split(IMAGE_TOKEN)):
        if number:
            content.append(picture)
        if not any(isinstance(part, str) for part in content):
            piece = piece.lstrip()
        if piece.strip():
            content.append(piece)
    return tuple(content)


def rendered(sample: Sample, form: PromptFormat, place: str = "front") -> tuple[Segment, ...]:
    """A sample written down in a format."""
    if not form.reads_question and (len(sample.turns) != 2 or len(sample.images) != 1):
        raise DataError(
            f"sample {sample.name}: the prompt format {form.name} takes one picture, one question "
            "and one answer",
            "choose another prompt_format for conversations",
        )
    if place != "front":
        form = replace(form, images_first=False)
    return render(sample.conversation(PLACE, place), form, complete=True)


def read(paths: Sequence[Path]) -> list[Sample]:
    """The samples of files, in order."""
    return [sample for path in paths for sample in read_source(Source(path, None))]


def read_source(source: Source) -> list[Sample]:
    """The samples of one file."""
    samples = [
        replace(sample_of(record, f"{source.path.name}[{i}]", inside), folder=source.images)
        for i, (record, inside) in enumerate(records(source.path))
    ]
    if not samples:
        raise DataError(f"{source.path} holds no sample", "give --data a file with samples")
    return samples


def repeated(samples: Sequence[Sample]) -> list[str]:
    """Names of the samples that say the same of the same pictures as one before."""
    seen: set[tuple[object, object]] = set()
    names = []
    for sample in samples:
        key = (sample.images, sample.turns)
        if key in seen:
            names.append(sample.name)
        seen.add(key)
    return names


def sample_of(record: Any, place: str, inside: tuple[Picture, ...] = ()) -> Sample:
    """A record of a file as a checked sample; `place` is what to call it by."""
    if not isinstance(record, dict):
        raise DataError(f"sample {place} is not an object", "see LLaVA's JSON format")
    name = f"{record['id']} ({place})" if "id" in record else place
    spoken = record.get("conversations", record.get("messages"))
    system, turns = _turns(spoken, name)
    images = inside or _paths(record, name)
    if not images:
        return Sample(name, (), tuple(turns), system=system)
    marks = [text.count(IMAGE_TOKEN) if role == "user" else 0 for role, text in turns]
    places = tuple(i for i, count in enumerate(marks) if count)
    if len(places) != 1 if len(images) == 1 else sum(marks) != len(images):
        found = f"{len(places)} turns hold" if len(images) == 1 else f"there are {sum(marks)}"
        raise DataError(
            f"sample {name}: {found} {IMAGE_TOKEN}, and it has {_some(len(images))}",
            f"put {IMAGE_TOKEN} into the turn that asks about the picture",
        )
    return Sample(name, tuple(images), tuple(turns), places, system)


def _some(count: int) -> str:
    return "one picture" if count == 1 else f"{count} pictures"


def _paths(record: dict[str, Any], name: str) -> tuple[str, ...]:
    """The relative paths of a record's pictures."""
    images = record.get("image", record.get("images"))
    if images is None:
        return ()
    listed = images if isinstance(images, list) else [images]
    if not all(isinstance(image, str) and image for image in listed):
        raise DataError(f"sample {name}: 'image' is not a path", "give a path or a list of paths")
    return tuple(_inside(image, name) for image in listed)


def _turns(spoken: Any, name: str) -> tuple[str | None, list[tuple[str, str]]]:
    """The system text, and (role, text) pairs that alternate and end with an answer."""
    turns = [_turn(turn, name) for turn in (spoken if isinstance(spoken, list) else [])]
    system = None
    if turns and turns[0][0] == "system":
        system, turns = turns[0][1], turns[1:]
    if turns and turns[0][0] == "assistant":  # upstream drops it too
        turns = turns[1:]
    for position, (role, text) in enumerate(turns):
        if role != ("user", "assistant")[position % 2]:
            raise DataError(
                f"sample {name}: turn {position + 1} does not alternate between human and gpt",
                "join neighbouring turns of one speaker",
            )
        if role == "assistant" and not text.strip():
            raise DataError(
                f"sample {name}: answer {position // 2 + 1} is empty, so that no token bears loss",
                "give every question an answer that is text",
            )
    if len(turns) % 2:  # an unanswered question bears no loss
        turns = turns[:-1]
    if not turns:
        raise DataError(f"sample {name}: no question with an answer", "remove the sample")
    return system, turns


def _turn(turn: Any, name: str) -> tuple[str, str]:
    """Role and text, in LLaVA's, ShareGPT's or OpenAI's words."""
    said = turn if isinstance(turn, dict) else {}
    role = _ROLES.get(str(said.get("from", said.get("role", ""))))
    text = said.get("value", said.get("content"))
    if isinstance(text, list) and all(isinstance(part, dict) for part in text):
        pieces = [IMAGE_TOKEN if p.get("type") == "image" else p.get("text") for p in text]
        text = "".join(pieces) if all(isinstance(piece, str) for piece in pieces) else None
    if role is None or not isinstance(text, str):
        raise DataError(
            f"sample {name}: a turn without 'from' (human or gpt) and a text 'value'",
            "see LLaVA's JSON format",
        )
    return role, text


def _inside(path: str, name: str) -> str:
    """The relative path, if it stays inside the folder of pictures."""
    normal = os.path.normpath(path)
    outside = normal.split(os.sep)[0] == ".." or "\0" in path
    if outside or PurePosixPath(path).is_absolute() or PureWindowsPath(path).drive:
        raise DataError(
            f"sample {name}: {path!r} leaves the folder of pictures",
            "give paths relative to --images",
        )
    return normal
