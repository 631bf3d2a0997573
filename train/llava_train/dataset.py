"""LLaVA's training data as numbers, in an order that has no state.

`gather` reads the files of a run, `encode` turns all samples into numbers once, `Plan` says which
samples make up step N (a pure function of data, recipe, epoch and step). Not here: files and their
records (`sources.py`, `conversations.py`), which tokens bear loss (`labels.py`), tensors
(`loader.py`).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from llava_cli.errors import DataError, UsageError
from llava_cli.prompts import PromptFormat
from llava_cli.tiles import Grid
from llava_train.conversations import PLACE, Sample, read, read_source, rendered, repeated
from llava_train.labels import IGNORE_INDEX, Encoder
from llava_train.recipe import Recipe
from llava_train.sources import Picture, mixture

__all__ = ["PLACE", "EncodedData", "Gathered", "Plan", "encode", "gather", "read", "rendered"]
_CHUNK = 1024
"""Samples that go through the tokenizer together."""
_HELD = 1 << 31
"""Where the epochs' random numbers end and those of the samples held out begin."""
Note = Callable[[str], None]
Shapes = tuple[tuple[int, int], ...]
"""(width, height) of a sample's pictures."""


@dataclass(frozen=True)
class Gathered:
    """The samples of all files of a run."""

    samples: list[Sample]
    weights: npt.NDArray[np.float64]
    """How often each is read in an epoch."""


def gather(
    paths: Sequence[Path],
    images: Path | None,
    *,
    broken_limit: int = 0,
    note: Note = lambda t: None,
) -> Gathered:
    """Read and check all files; up to `broken_limit` samples without their picture are left out."""
    samples: list[Sample] = []
    weights: list[float] = []
    for source in mixture(paths, images):
        found = read_source(source)
        samples += found
        weights += [source.weight] * len(found)
    if not samples:
        raise DataError("the data holds no sample", "give --data a LLaVA JSON file")
    again = repeated(samples)
    if again:
        note(f"{len(again)} samples repeat an earlier one, word for word: {again[0]} first")
    _note_ids(samples, note)
    kept = [i for i, sample in enumerate(samples) if not _missing(sample, images)]
    lost = len(samples) - len(kept)
    if lost > broken_limit:
        gone = next(sample for sample in samples if _missing(sample, images))
        _complain(gone, images, lost)
    if not kept:
        raise DataError("no sample has its picture", "check --images")
    if lost:
        names = [s.name for s in samples if _missing(s, images)]
        note(f"{lost} samples left out, their picture is missing: {', '.join(names[:5])}")
    return Gathered([samples[i] for i in kept], np.array([weights[i] for i in kept]))


def _note_ids(samples: Sequence[Sample], note: Note) -> None:
    """Ids that several samples share; LLaVA's own mixture has such, so that they are no error."""
    seen: set[str] = set()
    twice = []
    for sample in samples:
        name = sample.name.rpartition(" (")[0]
        if name and name in seen:
            twice.append(name)
        seen.add(name)
    if twice:
        note(f"{len(twice)} samples have the id of an earlier one: {twice[0]} first")


def _missing(sample: Sample, images: Path | None) -> bool:
    folder = sample.folder or images
    return any(
        isinstance(image, str) and (folder is None or not (folder / image).is_file())
        for image in sample.images
    )


def _complain(sample: Sample, images: Path | None, lost: int) -> None:
    """Raise for a picture that is not there."""
    folder = sample.folder or images
    if folder is None:
        raise DataError(f"sample {sample.name} has a picture", "give --images DIR")
    gone = next(i for i in sample.images if isinstance(i, str) and not (folder / i).is_file())
    others = f", and those of {lost - 1} more samples" if lost > 1 else ""
    raise DataError(
        f"sample {sample.name}: {folder / gone} is missing{others}",
        f"check --images, or leave them out with --set broken_limit={lost}",
    )


@dataclass(frozen=True)
class EncodedData:
    """All samples as numbers, in flat arrays; a picture's positions are stored as one."""

    names: list[str]
    images: list[tuple[Picture, ...]]
    """Each sample's pictures, in order."""
    tokens: npt.NDArray[np.int32]
    """All ids of all samples."""
    loss: npt.NDArray[np.bool_]
    """Which of `tokens` bear loss."""
    starts: npt.NDArray[np.int64]
    """Sample i is tokens[starts[i]:starts[i + 1]]."""
    lengths: npt.NDArray[np.int64]
    """Positions of each sample, all of its pictures' included."""
    weights: npt.NDArray[np.float64]
    """How often each sample is read in an epoch."""
    image_tokens: int
    image_token_id: int
    pad_id: int
    cut: int
    """Samples that were cut to the greatest length."""
    fingerprint: str
    grid: Grid | None = None
    """How pictures are cut into tiles, if they are."""
    shapes: Sequence[Shapes] = ()
    """With a grid: (width, height) of each sample's pictures."""

    def __len__(self) -> int:
        return len(self.names)

    def squares(self, index: int) -> int:
        """How many squares the tower reads for a sample."""
        if self.grid is None:
            return len(self.images[index])
        return sum(map(self.grid.tiles, self.shapes[index]))

    def row(self, index: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Ids and labels of a sample, its picture's positions written out."""
        part = slice(self.starts[index], self.starts[index + 1])
        ids = self.tokens[part].astype(np.int64)
        labels = np.where(self.loss[part], ids, IGNORE_INDEX)
        repeat = np.ones(len(ids), np.int64)
        repeat[ids == self.image_token_id] = (
            self.image_tokens
            if self.grid is None
            else [self.grid.count(*shape) for shape in self.shapes[index]]
        )
        return np.repeat(ids, repeat), np.repeat(labels, repeat)


def encode(
    samples: Sequence[Sample],
    images: Path | None,
    encoder: Encoder,
    prompt_format: PromptFormat,
    pad_id: int,
    *,
    place: str = "front",
    weights: npt.NDArray[np.float64] | None = None,
    grid: Grid | None = None,
    shapes: Sequence[Shapes] = (),
) -> EncodedData:
    """Every sample through the tokenizer; a sample that teaches nothing is an error.

    place: where pictures stand, as `Recipe.image_place`.
    grid: of a model that cuts pictures into tiles; `shapes` has (width, height) of each sample's.
    """
    tokens: list[npt.NDArray[np.int32]] = []
    loss: list[npt.NDArray[np.bool_]] = []
    lengths: list[int] = []
    cut = 0
    for start in range(0, len(samples), _CHUNK):
        chunk = samples[start : start + _CHUNK]
        written = [(sample.name, rendered(sample, prompt_format, place)) for sample in chunk]
        taken = _positions(encoder, grid, chunk, shapes[start : start + _CHUNK])
        for encoded, counts in zip(encoder.encode_many(written, taken), taken, strict=True):
            ids = np.array(encoded.ids, np.int32)
            keep = _first_of_each_picture(ids == encoder.image_token_id, counts)
            tokens.append(ids[keep])
            loss.append((np.array(encoded.labels, np.int32) != IGNORE_INDEX)[keep])
            lengths.append(len(ids))
            cut += bool(encoded.cut)
    if weights is None:
        weights = np.ones(len(samples))
    flat, flags = np.concatenate(tokens), np.concatenate(loss)
    starts = np.cumsum([0, *(len(part) for part in tokens)])
    image_id = -1 if encoder.image_token_id is None else encoder.image_token_id
    named = [[str(i) for i in s.images] if len(s.images) > 1 else _only(s) for s in samples]
    digest = hashlib.sha256(json.dumps(named).encode())
    for array in (flat, flags, starts, *([weights] if (weights != 1).any() else [])):
        digest.update(array.tobytes())
    if grid:
        digest.update(repr((grid, list(shapes))).encode())
    return EncodedData(
        [sample.name for sample in samples], [pictures_of(sample, images) for sample in samples],
        flat, flags, starts, np.array(lengths), weights,
        encoder.image_tokens, image_id, pad_id, cut, digest.hexdigest(), grid, shapes,
    )  # fmt: skip


def _positions(
    encoder: Encoder, grid: Grid | None, samples: Sequence[Sample], shapes: Sequence[Shapes]
) -> list[list[int]]:
    """What each picture of each sample takes."""
    if grid is None:
        return [[encoder.image_tokens] * len(sample.images) for sample in samples]
    return [[grid.count(*shape) for shape in own] for own in shapes]


def _first_of_each_picture(
    pictured: npt.NDArray[np.bool_], positions: Sequence[int]
) -> npt.NDArray[np.bool_]:
    """Which ids to store: of a picture's equal positions only the first."""
    keep = ~pictured
    keep[np.flatnonzero(pictured)[np.cumsum([0, *positions])[:-1]]] = True
    return keep


def _only(sample: Sample) -> str | None:
    return str(sample.images[0]) if sample.images else None


def pictures_of(sample: Sample, images: Path | None) -> tuple[Picture, ...]:
    """Where a sample's pictures lie; an error if one does not."""
    if _missing(sample, images):
        _complain(sample, images, 1)
    folder = sample.folder or images or Path()
    return tuple(Picture(folder / i) if isinstance(i, str) else i for i in sample.images)


class Plan:
    """Which samples each step reads: a pure function of the data, the recipe and the step."""

    def __init__(self, data: EncodedData, recipe: Recipe) -> None:
        self._data = data
        self._recipe = recipe
        self._epoch: tuple[int, list[npt.NDArray[np.int64]]] = (-1, [])
        if recipe.val_samples >= len(data):
            raise UsageError(
                f"val_samples = {recipe.val_samples} of {len(data)} samples leave none to train on",
                "hold fewer out",
            )
        mixed = np.random.default_rng([recipe.seed, _HELD]).permutation(len(data))
        self.held_out = np.sort(mixed[: recipe.val_samples])
        """Samples that no step reads."""
        self._read = np.setdiff1d(np.arange(len(data)), self.held_out)
        self.samples_per_epoch = len(self._members(0))
        self.per_epoch = math.ceil(self.samples_per_epoch / recipe.batch)
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
        if self._recipe.pack:
            return self._packed(batch)
        size = self._recipe.micro_batch
        return [batch[start : start + size] for start in range(0, len(batch), size)]

    def _batches(self, epoch: int) -> list[npt.NDArray[np.int64]]:
        """One epoch: every sample as often as it weighs, the incomplete batch last."""
        rng = np.random.default_rng([self._recipe.seed, epoch])
        members = self._members(epoch)
        order = members[rng.permutation(len(members))]
        if self._recipe.grouping == "none":
            return self._cut(order)
        groups = [order]
        if self._recipe.grouping == "modality":
            pictured = np.array([bool(images) for images in self._data.images])[order]
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

    def _members(self, epoch: int) -> npt.NDArray[np.int64]:
        """The samples of an epoch, those of weight 2 twice, of 0.5 another half each time."""
        weights = self._data.weights[self._read]
        if (weights == 1).all():
            return self._read
        rng = np.random.default_rng([self._recipe.seed, _HELD, epoch])
        chosen = []
        for weight in np.unique(weights):
            group = self._read[weights == weight]
            chosen.append(np.repeat(group, int(weight)))
            some = round(len(group) * (weight % 1))
            chosen.append(rng.permutation(group)[:some])
        return np.sort(np.concatenate(chosen))

    def _packed(self, batch: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
        """First fit, longest first: rows of at most `pack` positions."""
        rows: list[list[int]] = []
        room: list[int] = []
        for index in batch.tolist():
            length = int(self._data.lengths[index])
            fits = next((i for i, left in enumerate(room) if left >= length), None)
            if fits is None:
                rows.append([])
                room.append(self._recipe.pack)
                fits = len(rows) - 1
            rows[fits].append(index)
            room[fits] -= length
        return [np.array(row) for row in rows]
