"""Pictures as the language model reads them, computed as seldom as possible.

A picture's features are looked for in memory, then in the disk cache, and only then computed; the
encoder itself is loaded when the first picture needs it. Legend: N picture tokens, D width of the
language model.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from llava_cli.cache import DiskCache
from llava_cli.engines.base import ImageInfo
from llava_cli.engines.gguf.layout import Part, Tile
from llava_cli.engines.gguf.vision import Rows, Squares
from llava_cli.engines.reduction import chosen
from llava_cli.images import Image
from llava_cli.models.gguf_header import read_header
from llava_cli.models.mmproj import is_llava

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

KIND = "picture"
_KEPT_BYTES = 256 * 1024 * 1024
"""Features that are kept in memory for later turns."""
_KEPT_PICTURES = 64
"""And no more pictures than somebody goes back to: a server sees new ones all day."""
_KEPT_SIZES = 10_000


@dataclass(frozen=True)
class Picture:
    """What is known of a picture before its features are."""

    key: str
    """Identity: of the file's bytes and of how they become what the model reads."""
    whole: str
    """The same without regard to how many tokens are wanted."""
    parts: tuple[Part, ...]
    """What stands in the prompt for it."""

    @property
    def count(self) -> int:
        """N"""
        return sum(part.count for part in self.parts if isinstance(part, Tile))

    @property
    def cells(self) -> int:
        """Cells of the prompt: N, and those of the tokens around the tiles."""
        return sum(p.count if isinstance(p, Tile) else len(p) for p in self.parts)


class Encoder(Protocol):
    """A loaded mmproj."""

    def layout(self, width: int, height: int) -> tuple[Part, ...]:
        """What stands in the prompt for a picture of so many pixels."""
        ...

    def features(self, picture: PILImage) -> Rows:
        """An upright RGB picture's features (N, D)."""
        ...

    def close(self) -> None:
        """Free it."""
        ...


class Pictures:
    """The pictures that one engine has seen."""

    def __init__(
        self,
        mmproj: Path,
        load: Callable[[], Encoder],
        cache: DiskCache | None,
        identity: Mapping[str, Any],
        image_tokens: int | None = None,
    ) -> None:
        """`identity`: what decides the features beside the picture, for the cache.

        `image_tokens`: tokens of one picture at most. Of a LLaVA's features so many
        are chosen; the encoder of another family makes pictures small enough by itself.
        """
        header = read_header(mmproj)
        self._squares = Squares(header.metadata) if is_llava(header) else None
        self._most = image_tokens
        self._load = load
        self._cache = cache
        self._identity = dict(identity)
        self._encoder: Encoder | None = None
        self._rows: OrderedDict[str, Rows] = OrderedDict()
        self._sizes: OrderedDict[str, tuple[int, int]] = OrderedDict()
        self.seconds = 0.0
        """Spent on pictures since the engine was made, without loading the encoder."""
        self.load_s = 0.0
        """Loading the encoder."""
        self.encoded = 0
        """Pictures that had to be computed since the engine was made."""

    @property
    def spent(self) -> tuple[float, float, int]:
        """`seconds`, `load_s` and `encoded` until now."""
        return self.seconds, self.load_s, self.encoded

    def look(self, image: Image) -> Picture:
        """What is known of a picture without computing its features."""
        started, loading = time.perf_counter(), self.load_s
        own = self._squares.how if self._squares is not None else [self._most]
        how = [image.sha256, image.background, *own]
        key = hashlib.sha256(json.dumps(how).encode()).hexdigest()
        picture = Picture(key, key, self._parts(image, key))
        self.seconds += time.perf_counter() - started - (self.load_s - loading)
        if self._most is None or self._squares is None or picture.count <= self._most:
            return picture
        return Picture(f"{key}/{self._most}", key, (Tile.plain(self._most),))

    def _parts(self, image: Image, whole: str) -> tuple[Part, ...]:
        if self._squares is not None and self._squares.grid is None:
            return self._squares.layout(0, 0)  # all pictures are alike: none is opened for this
        size = self._sizes.get(whole) or self._opened(image, whole).size
        return (self._squares or self.encoder).layout(*size)

    def info(self, image: Image) -> ImageInfo:
        """What became of a picture."""
        picture = self.look(image)
        width, height = self._sizes.get(picture.whole) or self._opened(image, picture.whole).size
        return ImageInfo(image.source, width, height, picture.count)

    def _opened(self, image: Image, whole: str) -> PILImage:
        """The pixels; their size is remembered."""
        pixels = image.open()
        self._remember_size(whole, pixels.size)
        return pixels

    def _remember_size(self, whole: str, size: tuple[int, int]) -> None:
        self._sizes[whole] = size
        if len(self._sizes) > _KEPT_SIZES:
            self._sizes.popitem(last=False)

    def rows(self, image: Image) -> Rows:
        """A picture's features (N, D)."""
        picture = self.look(image)
        if picture.key in self._rows:
            self._rows.move_to_end(picture.key)
            return self._rows[picture.key]
        started, loading = time.perf_counter(), self.load_s
        rows = self._kept(picture)
        if rows is None:
            rows = self._computed(image, picture)
        if len(rows) > picture.count:
            rows = chosen(rows, picture.count)
        self._rows[picture.key] = rows
        while len(self._rows) > 1 and self._keeps_too_much():
            self._rows.popitem(last=False)
        self.seconds += time.perf_counter() - started - (self.load_s - loading)
        return rows

    def _keeps_too_much(self) -> bool:
        size = sum(rows.nbytes for rows in self._rows.values())
        return size > _KEPT_BYTES or len(self._rows) > _KEPT_PICTURES

    def _kept(self, picture: Picture) -> Rows | None:
        """Features from the disk."""
        if self._cache is None:
            return None
        found = self._cache.get(KIND, self._key(picture))
        size = found.meta.get("size") if found is not None else None
        if found is None or not size:
            return None
        self._remember_size(picture.whole, (int(size[0]), int(size[1])))
        return np.frombuffer(found.payload, np.float32).reshape(found.meta["tokens"], -1)

    def _computed(self, image: Image, picture: Picture) -> Rows:
        encoder = self.encoder
        started = time.perf_counter()
        pixels = self._opened(image, picture.whole)
        rows = encoder.features(pixels)
        self.encoded += 1
        cache, seconds = self._cache, time.perf_counter() - started
        if cache is not None and cache.worth_keeping(seconds, rows.nbytes):
            meta = {"size": list(pixels.size), "tokens": len(rows)}
            cache.put(KIND, self._key(picture), meta, memoryview(rows.data).cast("B"))
        return rows

    def _key(self, picture: Picture) -> dict[str, Any]:
        return {**self._identity, "picture": picture.whole}

    @property
    def encoder(self) -> Encoder:
        """The encoder, loaded now if it was not needed before."""
        if self._encoder is None:
            started = time.perf_counter()
            self._encoder = self._load()
            self.load_s = time.perf_counter() - started
        return self._encoder

    def close(self) -> None:
        """Free the encoder; a second call does nothing."""
        if self._encoder is not None:
            self._encoder.close()
            self._encoder = None
