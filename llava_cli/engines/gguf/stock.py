"""Third-party mmproj files that llama.cpp would run one layer short, set right in a copy.

llama.cpp's older converters dropped the tower's last layer, which LLaVA does not read, and did not
say so; without `clip.vision.feature_layer` today's llama.cpp leaves out the last layer once more.
The copy has that key; it is made where temporary files are and removed once it is loaded. Which
files need it, `models.mmproj` knows.
"""

from __future__ import annotations

import math
import shutil
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llava_cli.models.gguf_header import GGUFHeader
from llava_cli.models.mmproj import missing_feature_layer

_COUNT_AT, _KEYS_AT = 16, 24
"""Bytes of a GGUF file: the number of keys, and the first key."""
_INT32, _STRING, _ARRAY = 5, 8, 9


@contextmanager
def loadable(header: GGUFHeader) -> Iterator[Path]:
    """A file that llama.cpp runs rightly: the one that was given, or for a while its copy."""
    layer = missing_feature_layer(header)
    if layer is None:
        yield header.path
        return
    with tempfile.TemporaryDirectory(prefix="llava-") as folder:
        path = Path(folder) / header.path.name
        _write(header, layer, path)
        yield path


def _write(header: GGUFHeader, layer: int, path: Path) -> None:
    """A new key in front of the others; its length is a multiple of the alignment of the data."""
    alignment = math.lcm(32, int(header.metadata.get("general.alignment", 32)))
    key = _text("clip.vision.feature_layer")
    key += struct.pack("<IIQi", _ARRAY, _INT32, 1, layer)
    rest = _text("llava.padding") + struct.pack("<I", _STRING)
    filler = -(len(key) + len(rest) + 8) % alignment
    keys = key + rest + _text(" " * filler)
    with header.path.open("rb") as source, path.open("xb") as target:
        start = source.read(_KEYS_AT)
        (count,) = struct.unpack_from("<Q", start, _COUNT_AT)
        target.write(start[:_COUNT_AT] + struct.pack("<Q", count + 2) + keys)
        shutil.copyfileobj(source, target, 1 << 22)


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data
