"""What the frozen vision tower sees in every picture, computed once and read by every epoch.

The numbers are those that the connector's first product takes (bfloat16 under autocast), so a run
with the cache learns exactly what a run without it learns. Rows are written in the order of the
pictures; a killed run goes on where it was. Not here: the connector, which is trained.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from llava_cli.errors import LlavaError
from llava_train.sources import Picture

_BATCH = 32
"""Pictures through the tower at a time."""
Note = Callable[[str], None]
APicture = Picture | Path


class FeatureCache:
    """Rows (N, V) by picture, in one file that is mapped into memory."""

    def __init__(
        self, folder: Path, pictures: Sequence[APicture], shape: tuple[int, int], dtype: torch.dtype
    ) -> None:
        """`shape` is that of one picture: N positions, V values.

        Raises LlavaError when the disk has no room for all rows.
        """
        self.pictures = list(dict.fromkeys(pictures))
        self._place = {path: row for row, path in enumerate(self.pictures)}
        self._dtype = dtype
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        stored = {torch.bfloat16: np.uint16, torch.float32: np.float32}[dtype]
        whole = (len(self.pictures), *shape)
        path = folder / "features.bin"
        size = int(np.prod(whole)) * np.dtype(stored).itemsize
        try:
            with path.open("ab") as file:
                os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            raise LlavaError(
                f"{path} cannot hold {size / 1e9:.1f} GB: {error.strerror}",
                "make room, or use --set feature_cache=false",
            ) from error
        self._rows: npt.NDArray[np.generic] = np.memmap(path, stored, "r+", shape=whole)

    def fill(
        self,
        identity: str,
        pixels: Callable[[APicture], npt.NDArray[np.float32]],
        tower: Callable[[torch.Tensor], torch.Tensor],
        workers: int,
        note: Note,
    ) -> None:
        """Compute the rows that are missing.

        identity: digest of what the rows depend on besides the pictures (tower, layer, precision).
        tower: (P, 3, H, W) float32 to (P, N, V).
        """
        digest = hashlib.sha256(identity.encode())
        for path in self.pictures:
            stat = path.stat()
            digest.update(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
        first = self._done(digest.hexdigest())
        if first < len(self.pictures):
            note(f"reading {len(self.pictures) - first} pictures once")
        with ThreadPoolExecutor(workers, "llava-features") as pool:
            ahead = _ahead(pool, pixels, self.pictures, first)
            for number, start in enumerate(range(first, len(self.pictures), _BATCH)):
                batch = next(ahead)
                rows = tower(torch.from_numpy(batch)).to("cpu", self._dtype)
                self._rows[start : start + len(batch)] = _as_numpy(rows)
                if number % 64 == 63:
                    self._note_done(digest.hexdigest(), start + len(batch))
        self._note_done(digest.hexdigest(), len(self.pictures))

    def __getitem__(self, pictures: Sequence[APicture]) -> torch.Tensor:
        """(P, N, V) of these pictures."""
        rows = self._rows[[self._place[path] for path in pictures]]
        tensor = torch.from_numpy(rows)
        return tensor.view(torch.bfloat16) if self._dtype == torch.bfloat16 else tensor

    def remove(self) -> None:
        """Delete the files; the cache is of no use after its run."""
        for name in ("features.bin", "features.json"):
            (self._folder / name).unlink(missing_ok=True)
        self._folder.rmdir()

    def _done(self, digest: str) -> int:
        """How many rows an earlier call wrote for the same pictures and tower."""
        try:
            state = json.loads((self._folder / "features.json").read_text("utf-8"))
            return int(state["done"]) if state["digest"] == digest else 0
        except (OSError, ValueError, KeyError, TypeError):
            return 0

    def _note_done(self, digest: str, done: int) -> None:
        """Rows first, then the number that vouches for them."""
        self._rows.flush()  # type: ignore[attr-defined]
        aside = self._folder / "features.json.part"
        aside.write_text(json.dumps({"digest": digest, "done": done}), "utf-8")
        os.replace(aside, self._folder / "features.json")


def _ahead(
    pool: ThreadPoolExecutor,
    pixels: Callable[[APicture], npt.NDArray[np.float32]],
    pictures: Sequence[APicture],
    first: int,
) -> Iterator[npt.NDArray[np.float32]]:
    """Stacked pixels of the batches from picture `first` on, two batches decoded ahead."""
    waiting: list[list[Future[npt.NDArray[np.float32]]]] = []
    for start in range(first, len(pictures), _BATCH):
        waiting.append([pool.submit(pixels, path) for path in pictures[start : start + _BATCH]])
        if len(waiting) > 2:
            yield np.stack([future.result() for future in waiting.pop(0)])
    for batch in waiting:
        yield np.stack([future.result() for future in batch])


def _as_numpy(rows: torch.Tensor) -> npt.NDArray[np.generic]:
    """The same bytes; NumPy has no bfloat16."""
    bits = rows.contiguous()
    array: npt.NDArray[np.generic] = (
        bits.view(torch.int16).numpy().view(np.uint16)
        if rows.dtype == torch.bfloat16
        else bits.numpy()
    )
    return array
