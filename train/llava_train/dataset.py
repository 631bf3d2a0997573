"""LLaVA's training data: files in, batches of tensors out, in an order that has no state.

`read` gives checked samples, `encode` turns all of them into numbers once, `Plan` says which
samples make up step N (a pure function of data, recipe, epoch and step), `Loader` decodes pictures
in background threads, ahead of the loop. Not here: which tokens bear loss (`labels.py`) and how a
picture is prepared (`llava_cli.pixels`).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from llava_cli.conversation import Conversation
from llava_cli.errors import DataError, ImageError
from llava_cli.images import Image
from llava_cli.pixels import PixelConfig, normalise, prepare
from llava_cli.prompts import PromptFormat, Segment, render
from llava_train.features import FeatureCache
from llava_train.labels import IGNORE_INDEX, IMAGE_TOKEN, Encoder
from llava_train.recipe import Recipe

_ROLES = {"human": "user", "gpt": "assistant"}
_CHUNK = 1024
"""Samples that go through the tokenizer together."""


@dataclass(frozen=True)
class Sample:
    """One checked sample."""

    name: str
    image: str | None
    """Path of the picture inside the folder of pictures."""
    turns: tuple[tuple[str, str], ...]
    """(role, text) in order; the turn with the picture is `image_turn`."""
    image_turn: int = -1

    def conversation(self, picture: Image) -> Conversation:
        """The sample as a conversation; `picture` stands where its picture goes."""
        conversation = Conversation()
        for position, (role, text) in enumerate(self.turns):
            content = (picture, text) if position == self.image_turn else (text,)
            conversation = conversation.add(role, *content)  # type: ignore[arg-type]
        return conversation


def read(paths: Sequence[Path]) -> list[Sample]:
    """The samples of LLaVA JSON or JSON Lines files, in order."""
    samples = [
        _sample(record, f"{path.name}[{position}]")
        for path in paths
        for position, record in enumerate(_records(path))
    ]
    if not samples:
        raise DataError("the data holds no sample", "give --data a LLaVA JSON file")
    return samples


def _records(path: Path) -> list[Any]:
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}", "give a LLaVA JSON file") from error
    try:
        if text.lstrip().startswith("["):
            records = json.loads(text)
        else:
            records = [json.loads(line) for line in text.splitlines() if line.strip()]
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path} is not JSON: {error}", "give a list of samples, or one sample a line"
        ) from error
    return list(records)


def _sample(record: Any, place: str) -> Sample:
    """A record of a file as a checked sample."""
    if not isinstance(record, dict):
        raise DataError(f"sample {place} is not an object", "see LLaVA's JSON format")
    name = f"{record['id']} ({place})" if "id" in record else place
    turns = _turns(record.get("conversations"), name)
    image = record.get("image")
    if isinstance(image, list) and len(image) == 1:
        image = image[0]
    if image is None:
        return Sample(name, None, tuple(turns))
    if not isinstance(image, str):
        raise DataError(f"sample {name}: 'image' is not one path", "one picture a sample")
    places = [i for i, (role, text) in enumerate(turns) if role == "user" and IMAGE_TOKEN in text]
    if len(places) != 1:
        raise DataError(
            f"sample {name}: {len(places)} turns hold {IMAGE_TOKEN}, and it has one picture",
            f"put {IMAGE_TOKEN} into the turn that asks about the picture",
        )
    text = turns[places[0]][1].replace(IMAGE_TOKEN, "").strip()
    turns[places[0]] = ("user", text)
    return Sample(name, _inside(image, name), tuple(turns), places[0])


def _turns(conversations: Any, name: str) -> list[tuple[str, str]]:
    """(role, text) pairs that alternate and end with an answer."""
    turns: list[tuple[str, str]] = []
    for turn in conversations if isinstance(conversations, list) else []:
        role = _ROLES.get(turn.get("from", "")) if isinstance(turn, dict) else None
        if role is None or not isinstance(turn.get("value"), str):
            raise DataError(
                f"sample {name}: a turn without 'from' (human or gpt) and a text 'value'",
                "see LLaVA's JSON format",
            )
        turns.append((role, turn["value"]))
    if turns and turns[0][0] == "assistant":  # upstream drops it too
        turns = turns[1:]
    for position, (role, _) in enumerate(turns):
        if role != ("user", "assistant")[position % 2]:
            raise DataError(
                f"sample {name}: turn {position + 1} does not alternate between human and gpt",
                "join neighbouring turns of one speaker",
            )
    if len(turns) % 2:  # an unanswered question bears no loss
        turns = turns[:-1]
    if not turns:
        raise DataError(f"sample {name}: no question with an answer", "remove the sample")
    return turns


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


@dataclass(frozen=True)
class EncodedData:
    """All samples as numbers, in flat arrays; a picture's positions are stored as one."""

    names: list[str]
    images: list[Path | None]
    tokens: npt.NDArray[np.int32]
    """All ids of all samples."""
    loss: npt.NDArray[np.bool_]
    """Which of `tokens` bear loss."""
    starts: npt.NDArray[np.int64]
    """Sample i is tokens[starts[i]:starts[i + 1]]."""
    lengths: npt.NDArray[np.int64]
    """Positions of each sample, all of its picture's included."""
    image_tokens: int
    image_token_id: int
    pad_id: int
    cut: int
    """Samples that were cut to the greatest length."""
    fingerprint: str

    def __len__(self) -> int:
        return len(self.names)

    def row(self, index: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Ids and labels of a sample, its picture's positions written out."""
        part = slice(self.starts[index], self.starts[index + 1])
        ids = self.tokens[part].astype(np.int64)
        labels = np.where(self.loss[part], ids, IGNORE_INDEX)
        repeat = np.where(ids == self.image_token_id, self.image_tokens, 1)
        return np.repeat(ids, repeat), np.repeat(labels, repeat)


def encode(
    samples: Sequence[Sample],
    images: Path | None,
    encoder: Encoder,
    prompt_format: PromptFormat,
    pad_id: int,
) -> EncodedData:
    """Every sample through the tokenizer; a sample that teaches nothing is an error."""
    tokens: list[npt.NDArray[np.int32]] = []
    loss: list[npt.NDArray[np.bool_]] = []
    lengths: list[int] = []
    cut = 0
    for start in range(0, len(samples), _CHUNK):
        chunk = samples[start : start + _CHUNK]
        written = [(sample.name, rendered(sample, prompt_format)) for sample in chunk]
        for encoded in encoder.encode_many(written):
            ids = np.array(encoded.ids, np.int32)
            keep = _first_of_each_picture(ids, encoder)
            tokens.append(ids[keep])
            loss.append((np.array(encoded.labels, np.int32) != IGNORE_INDEX)[keep])
            lengths.append(len(ids))
            cut += bool(encoded.cut)
    paths = [_picture(sample, images) for sample in samples]
    flat, flags = np.concatenate(tokens), np.concatenate(loss)
    starts = np.cumsum([0, *(len(part) for part in tokens)])
    image_id = -1 if encoder.image_token_id is None else encoder.image_token_id
    digest = hashlib.sha256(json.dumps([sample.image for sample in samples]).encode())
    for array in (flat, flags, starts):
        digest.update(array.tobytes())
    return EncodedData(
        [sample.name for sample in samples], paths, flat, flags, starts, np.array(lengths),
        encoder.image_tokens, image_id, pad_id, cut, digest.hexdigest(),
    )  # fmt: skip


def rendered(sample: Sample, prompt_format: PromptFormat) -> tuple[Segment, ...]:
    """A sample written down in a format."""
    if not prompt_format.reads_question and (len(sample.turns) != 2 or not sample.image):
        raise DataError(
            f"sample {sample.name}: the prompt format {prompt_format.name} takes one picture, one "
            "question and one answer",
            "choose another prompt_format for conversations",
        )
    return render(sample.conversation(PLACE), prompt_format, complete=True)


def _first_of_each_picture(ids: npt.NDArray[np.int32], encoder: Encoder) -> npt.NDArray[np.bool_]:
    """Which ids to store: of a picture's equal positions only the first."""
    keep = ids != encoder.image_token_id
    keep[np.flatnonzero(~keep)[:: encoder.image_tokens]] = True
    return keep


def _picture(sample: Sample, images: Path | None) -> Path | None:
    """Where a sample's picture lies; an error if it does not."""
    if sample.image is None:
        return None
    if images is None:
        raise DataError(f"sample {sample.name} has a picture", "give --images DIR")
    path = images / sample.image
    if not path.is_file():
        raise DataError(f"sample {sample.name}: {path} is missing", "check --images")
    return path


PLACE = Image(source="the sample's picture", kind="memory")
"""Stands where a sample's picture goes while it is rendered; nothing is decoded for that."""


class Plan:
    """Which samples each step reads: a pure function of the data, the recipe and the step."""

    def __init__(self, data: EncodedData, recipe: Recipe) -> None:
        self._data = data
        self._recipe = recipe
        self._epoch: tuple[int, list[npt.NDArray[np.int64]]] = (-1, [])
        self.per_epoch = math.ceil(len(data) / recipe.batch)
        self.steps = recipe.steps or max(1, math.ceil(recipe.epochs * self.per_epoch - 1e-9))
        """Length of the whole run."""

    def batch(self, step: int) -> npt.NDArray[np.int64]:
        """Indices of the samples of a step (the first is 0)."""
        epoch, position = divmod(step, self.per_epoch)
        if self._epoch[0] != epoch:  # a cache, not a state: any step can be asked at any time
            self._epoch = (epoch, self._batches(epoch))
        return self._epoch[1][position]

    def micro_batches(self, step: int) -> list[npt.NDArray[np.int64]]:
        """A step's samples in micro-batches of like length, the longest first."""
        batch = self.batch(step)
        batch = batch[np.argsort(-self._data.lengths[batch], kind="stable")]
        size = self._recipe.micro_batch
        return [batch[start : start + size] for start in range(0, len(batch), size)]

    def _batches(self, epoch: int) -> list[npt.NDArray[np.int64]]:
        """One epoch: every sample once, the incomplete batch last."""
        rng = np.random.default_rng([self._recipe.seed, epoch])
        order = rng.permutation(len(self._data))
        if self._recipe.grouping == "none":
            return self._cut(order)
        groups = [order]
        if self._recipe.grouping == "modality":
            pictured = np.array([path is not None for path in self._data.images])[order]
            groups = [order[pictured], order[~pictured]]
        batches, rest = [], []
        for group in groups:
            whole = len(group) // self._recipe.batch * self._recipe.batch
            rest.append(group[whole:])
            size = self._recipe.batch * self._recipe.group_batches
            for start in range(0, whole, size):
                part = group[start : min(start + size, whole)]
                part = part[np.argsort(self._data.lengths[part], kind="stable")]
                batches += self._cut(part)
        shuffled = [batches[i] for i in rng.permutation(len(batches))]
        return shuffled + self._cut(np.concatenate(rest))

    def _cut(self, order: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
        size = self._recipe.batch
        return [order[start : start + size] for start in range(0, len(order), size)]


@dataclass(frozen=True)
class Batch:
    """A micro-batch, padded on the right. B samples of at most S positions, P pictures."""

    ids: torch.Tensor
    """(B, S) int64"""
    labels: torch.Tensor
    """(B, S) int64"""
    pixels: torch.Tensor | None
    """(P, 3, H, W) float32, in the order of the rows that have one"""
    tokens: int
    """Positions that are not padding."""
    features: torch.Tensor | None = None
    """(P, N, V) instead of pixels: what the frozen tower made of them."""

    @property
    def answer_tokens(self) -> int:
        """Positions whose next token bears loss."""
        return int((self.labels[:, 1:] != IGNORE_INDEX).sum())

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        if device.type == "cpu":
            return self

        def moved(part: torch.Tensor | None) -> torch.Tensor | None:
            return None if part is None else part.to(device, non_blocking=True)

        ids, labels = (part.to(device, non_blocking=True) for part in (self.ids, self.labels))
        return Batch(ids, labels, moved(self.pixels), self.tokens, moved(self.features))


class Loader:
    """Builds batches, with background threads that decode pictures ahead of the loop."""

    def __init__(
        self,
        data: EncodedData,
        config: PixelConfig,
        recipe: Recipe,
        features: FeatureCache | None = None,
    ) -> None:
        self._data = data
        self._features = features
        self._config = config
        self._recipe = recipe
        self._cache: dict[Path, npt.NDArray[np.uint8]] = {}
        self._room = recipe.pixel_cache_mb * 2**20
        self._lock = threading.Lock()

    def steps(
        self, plan: Callable[[int], list[npt.NDArray[np.int64]]], first: int, stop: int
    ) -> Iterator[list[Batch]]:
        """The micro-batches of steps first..stop-1."""
        with ThreadPoolExecutor(self._recipe.workers, "llava-data") as pool:
            waiting: deque[list[Future[Batch]]] = deque()
            ahead = iter(range(first, stop))
            try:
                for _ in range(first, stop):
                    while len(waiting) <= self._recipe.prefetch:
                        step = next(ahead, None)
                        if step is None:
                            break
                        waiting.append([pool.submit(self.batch, part) for part in plan(step)])
                    yield [future.result() for future in waiting.popleft()]
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def batch(self, indices: npt.NDArray[np.int64]) -> Batch:
        """One micro-batch of these samples."""
        rows = [self._data.row(int(index)) for index in indices]
        longest = max(len(ids) for ids, _ in rows)
        width = -(-longest // 8) * 8  # whole vectors for the matrix kernels
        ids = np.full((len(rows), width), self._data.pad_id, np.int64)
        labels = np.full((len(rows), width), IGNORE_INDEX, np.int64)
        for place, (row_ids, row_labels) in enumerate(rows):
            ids[place, : len(row_ids)] = row_ids
            labels[place, : len(row_labels)] = row_labels
        pictured = [int(i) for i in indices if self._data.images[int(i)] is not None]
        pixels, features = self._pictures(pictured) if pictured else (None, None)
        tokens = sum(len(row_ids) for row_ids, _ in rows)
        return Batch(torch.from_numpy(ids), torch.from_numpy(labels), pixels, tokens, features)

    def _pictures(self, indices: list[int]) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Pixels, or what the tower made of them."""
        if self._features is None:
            return torch.from_numpy(np.stack([self._pixels(i) for i in indices])), None
        paths = [path for i in indices if (path := self._data.images[i]) is not None]
        return None, self._features[paths]

    def _pixels(self, index: int) -> npt.NDArray[np.float32]:
        """(3, H, W) of a sample's picture."""
        path = self._data.images[index]
        if path is None:
            raise DataError(f"sample {self._data.names[index]} has no picture")
        prepared = self._cache.get(path)
        if prepared is None:
            prepared = decoded(path, self._config, f"sample {self._data.names[index]}")
            with self._lock:
                if self._room >= prepared.nbytes:
                    self._room -= prepared.nbytes
                    self._cache[path] = prepared
        return normalise(prepared, self._config)


def decoded(path: Path, config: PixelConfig, name: str) -> npt.NDArray[np.uint8]:
    """(H, W, 3) of a picture, prepared; `name` is whose picture it is."""
    try:
        return prepare(Image.from_path(path).open(), config)
    except ImageError as error:
        message = f"{name[0].upper()}{name[1:]}: {error.message}"
        raise DataError(message, error.hint) from error
