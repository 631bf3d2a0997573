"""Pictures for tests: encoded, opened again, looked at; and PNG files written byte by byte."""

from __future__ import annotations

import io
import struct
import zlib

from PIL import Image as PIL

from llava_cli.images import Image

RED, WHITE = (255, 0, 0), (255, 255, 255)


def encoded(picture: PIL.Image, kind: str = "PNG", **settings: object) -> bytes:
    packed = io.BytesIO()
    picture.save(packed, kind, **settings)
    return packed.getvalue()


def opened(data: bytes, background: str = "white") -> PIL.Image:
    return Image.from_bytes(data, "test", "data", background).open()


def pixel(picture: PIL.Image, x: int, y: int) -> tuple[int, ...]:
    value = picture.getpixel((x, y))
    assert isinstance(value, tuple)
    return tuple(int(v) for v in value)


def near(found: tuple[int, ...], wanted: tuple[int, ...], by: int = 6) -> bool:
    return all(abs(a - b) <= by for a, b in zip(found, wanted, strict=True))


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, extra: bytes = b"") -> bytes:
    """A PNG of exactly these raw rows (each with its filter byte)."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + extra
        + png_chunk(b"IDAT", zlib.compress(rows))
        + png_chunk(b"IEND", b"")
    )
