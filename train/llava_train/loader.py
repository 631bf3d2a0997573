"""Batches of tensors, with background threads that decode pictures ahead of the loop.

What does not decode is left out of its batch, counted and named, up to the recipe's limit. Not
here: which samples make up a step (`dataset.Plan`), how a picture is prepared
(`llava_cli.pixels`).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from llava_cli.errors import DataError, ImageError
from llava_cli.images import Image
from llava_cli.pixels import PixelConfig, normalise, prepare
from llava_cli.tiles import Grid
from llava_train.dataset import EncodedData, Shapes
from llava_train.features import FeatureCache
from llava_train.labels import IGNORE_INDEX
from llava_train.recipe import Recipe
from llava_train.sources import Picture

_ROUND = 8
"""Rows are as long as a multiple of it: whole vectors for the matrix kernels."""


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
    positions: torch.Tensor | None = None
    """(1, S) where a row holds several samples: each begins at 0 again."""
    samples: tuple[int, ...] = ()
    """Which samples of the data these are."""
    shapes: Shapes = ()
    """Where pictures are cut into tiles: (width, height) of each; `pixels` has all their squares,
    one picture's behind the other's."""

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
        return replace(
            self, ids=ids, labels=labels, pixels=moved(self.pixels),
            features=moved(self.features), positions=moved(self.positions),
        )  # fmt: skip


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
        self._cache: dict[Picture, list[npt.NDArray[np.uint8]]] = {}
        self._room = recipe.pixel_cache_mb * 2**20
        self._lock = threading.Lock()
        self.broken: dict[int, str] = {}
        """Samples whose picture cannot be decoded, and why."""

    def steps(
        self, plan: Callable[[int], list[npt.NDArray[np.int64]]], first: int, stop: int
    ) -> Generator[list[Batch]]:
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
        pixels, features, lost = self._pictures(indices)
        kept = [int(index) for index in indices if int(index) not in lost]
        cut = self._data.grid is not None
        shapes = [shape for i in kept for shape in self._data.shapes[i]] if cut else ()
        rows = [self._data.row(index) for index in kept]
        tokens = sum(len(ids) for ids, _ in rows)
        if self._recipe.pack:
            ids, labels, positions = _one_row(rows, self._data.pad_id)
        else:
            (ids, labels), positions = _padded(rows, self._data.pad_id), None
        return Batch(ids, labels, pixels, tokens, features, positions, tuple(kept), tuple(shapes))

    def _pictures(
        self, indices: npt.NDArray[np.int64]
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, set[int]]:
        """Pixels, or what the tower made of them; and the samples whose picture is broken."""
        if self._features is not None:
            wanted = [picture for i in indices for picture in self._data.images[int(i)]]
            return None, self._features[wanted] if wanted else None, set()
        prepared: list[npt.NDArray[np.float32]] = []
        lost = set()
        for index in map(int, indices):
            try:
                own = [s for p in self._data.images[index] for s in self._pixels(index, p)]
                prepared += own
            except DataError as error:
                self._note_broken(index, error)
                lost.add(index)
        return torch.from_numpy(np.stack(prepared)) if prepared else None, None, lost

    def _note_broken(self, index: int, error: DataError) -> None:
        """Remember the sample; one above the limit is an error."""
        with self._lock:
            self.broken[index] = error.message
            count = len(self.broken)
        if count > self._recipe.broken_limit:
            hint = error.hint or "repair the picture"
            if self._recipe.broken_limit:
                hint = f"{count} pictures are broken; raise broken_limit to go on without them"
            raise DataError(error.message, hint) from error

    def _pixels(self, index: int, picture: Picture) -> list[npt.NDArray[np.float32]]:
        """(3, H, W) of each square of one of a sample's pictures."""
        squares = self._cache.get(picture)
        if squares is None:
            name = f"sample {self._data.names[index]}"
            squares = decoded(picture, self._config, name, self._data.grid)
            size = sum(square.nbytes for square in squares)
            with self._lock:
                if self._room >= size:
                    self._room -= size
                    self._cache[picture] = squares
        return [normalise(square, self._config) for square in squares]


Row = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]


def _padded(rows: list[Row], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and labels (B, S), padded on the right."""
    width = -(-max((len(ids) for ids, _ in rows), default=0) // _ROUND) * _ROUND
    ids = np.full((len(rows), width), pad_id, np.int64)
    labels = np.full((len(rows), width), IGNORE_INDEX, np.int64)
    for place, (row_ids, row_labels) in enumerate(rows):
        ids[place, : len(row_ids)] = row_ids
        labels[place, : len(row_labels)] = row_labels
    return torch.from_numpy(ids), torch.from_numpy(labels)


def _one_row(rows: list[Row], pad_id: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, labels and positions (1, S) of samples one behind the other.

    A sample's first token is no target: what stands in front of it is another sample's end.
    """
    ids = [row for row, _ in rows]
    labels = [np.concatenate([[IGNORE_INDEX], row[1:]]) for _, row in rows]
    tail = -sum(map(len, ids)) % _ROUND
    ids.append(np.full(tail, pad_id))
    labels.append(np.full(tail, IGNORE_INDEX))
    positions = np.concatenate([np.arange(len(row)) for row in ids])
    joined = (np.concatenate(part).astype(np.int64)[None] for part in (ids, labels))
    first, second = (torch.from_numpy(part) for part in joined)
    return first, second, torch.from_numpy(positions.astype(np.int64)[None])


def decoded(
    picture: Picture | Path, config: PixelConfig, name: str, grid: Grid | None = None
) -> list[npt.NDArray[np.uint8]]:
    """(H, W, 3) of a picture, prepared, or of each of its tiles; `name` is whose picture it is."""
    try:
        image = picture.read() if isinstance(picture, Picture) else Image.from_path(picture)
        pixels = image.open()
        return grid.squares(pixels, config) if grid else [prepare(pixels, config)]
    except (ImageError, OSError) as error:
        text = error.message if isinstance(error, ImageError) else f"{picture}: {error}"
        hint = error.hint if isinstance(error, ImageError) else "check the file"
        raise DataError(f"{name[0].upper()}{name[1:]}: {text}", hint) from error
