"""Encoded bytes or a Pillow picture -> upright RGB uint8 pixels, within limits.

The one place that touches Pillow's decoders and maps their failures. Not here: where the bytes
come from (`images.py`), the preparation for a vision tower (`pixels.py`).
"""

from __future__ import annotations

import io
import os
import re
import struct
import subprocess
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageColor, UnidentifiedImageError

from llava_cli.errors import ImageError, OutOfMemory, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_PIXELS = 120_000_000
"""Largest decoded picture: above the 108 megapixels of phones, below what exhausts a laptop."""

FORMATS = (
    *("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"),
    *("DIB", "PPM", "ICO", "JPEG2000", "TGA"),
)
"""Pillow decoders that are tried (MPO is part of JPEG); others run programs (EPS) or are no
pictures of things."""

_ORIENTATION_TAG = 0x0112
_EXIF_IFD, _TAKEN_TAG, _CHANGED_TAG = 0x8769, 0x9003, 0x0132
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What brings a picture upright, by its EXIF orientation (1 is upright)."""
_SIDEWAYS = {_UPRIGHT[number] for number in (5, 6, 7, 8)}

_DAMAGED = (
    *(OSError, ValueError, SyntaxError, EOFError, TypeError, LookupError, ArithmeticError),
    *(AttributeError, NotImplementedError, RuntimeError, struct.error, zlib.error),
)
"""What Pillow's decoders raise on bytes that are not what they claim to be."""


def decode(data: bytes, source: str, background: str = "white") -> Image.Image:
    """Decode the first frame; ImageError where the bytes are no picture, damaged or too large."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks; its bomb limit is ours, checked below
        picture = _opened(data, source)
        try:
            with _libtiff_silenced() if picture.format == "TIFF" else nullcontext():
                picture.load()
        except MemoryError as error:
            raise _out_of_memory(source) from error
        except Image.DecompressionBombError as error:
            raise _too_many_pixels(source) from error
        except _DAMAGED as error:
            raise _damaged(source) from error
        return to_rgb(picture, source, background)


def upright_size(data: bytes, source: str) -> tuple[int, int]:
    """Width and height of the picture that `decode` gives, from its header where that has both."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        picture = _opened(data, source)
        turned = _UPRIGHT.get(_orientation(picture)) in _SIDEWAYS
        return picture.size[::-1] if turned else picture.size


def _opened(data: bytes, source: str) -> Image.Image:
    """The picture with its header read, or ImageError."""
    try:
        picture: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise _too_many_pixels(source) from error
    except UnidentifiedImageError as error:
        raise _not_a_picture(data, source) from error
    except _DAMAGED as error:
        raise _damaged(source) from error
    if picture.width * picture.height > MAX_PIXELS:
        raise _too_many_pixels(source, f"{picture.width}×{picture.height} pixels")
    return picture


def to_rgb(picture: Image.Image, source: str, background: str = "white") -> Image.Image:
    """Upright, transparency laid on `background`, deep pixels scaled to 8 bits, RGB."""
    colour = background_rgb(background)
    try:
        turn = _UPRIGHT.get(_orientation(picture))
        if picture.mode.startswith("I") or picture.mode == "F":
            picture = _eight_bits(picture)
        if picture.has_transparency_data:
            rgba = picture.convert("RGBA")
            flat = Image.new("RGB", rgba.size, colour)
            flat.paste(rgba, mask=rgba.getchannel("A"))
        else:
            flat = picture.convert("RGB")
        upright = flat.transpose(turn) if turn is not None else flat
    except MemoryError as error:
        raise _out_of_memory(source) from error
    except _DAMAGED as error:
        raise _damaged(source) from error
    # A fresh picture: no EXIF or transparency that a later step could apply a second time.
    fresh = upright.copy() if upright is picture else upright
    fresh.info = {}
    return fresh


def background_rgb(name: str) -> tuple[int, int, int]:
    """A colour name or #rrggbb as numbers; UsageError for anything else."""
    try:
        return ImageColor.getrgb(name)[:3]
    except ValueError as error:
        raise UsageError(
            f"unknown background colour: {name}", "use a colour name or #rrggbb, for example white"
        ) from error


def clipboard_png() -> bytes:
    """The picture on the clipboard, encoded without loss."""
    from PIL import ImageGrab

    try:
        found = ImageGrab.grabclipboard()
    except (NotImplementedError, OSError, ValueError, subprocess.SubprocessError) as error:
        raise ImageError(
            "@clip: the clipboard cannot be read",
            "on Linux install wl-clipboard (Wayland) or xclip (X11), or save the picture to a file",
        ) from error
    if isinstance(found, list):  # copied files
        raise ImageError(
            "@clip: the clipboard holds files, not a picture", "give their paths instead"
        )
    if found is None:
        raise ImageError("@clip: there is no picture on the clipboard", "copy a picture first")
    packed = io.BytesIO()
    found.save(packed, "PNG")
    return packed.getvalue()


@contextmanager
def _libtiff_silenced() -> Iterator[None]:
    """libtiff writes its remarks to file descriptor 2 itself; the error we raise says enough."""
    try:
        saved = os.dup(2)
    except OSError:  # there is no stderr
        yield
        return
    devnull = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(devnull, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(devnull)


def _orientation(picture: Image.Image) -> int:
    """The EXIF orientation; 1 (upright) where EXIF is absent or unreadable."""
    try:
        value: Any = picture.getexif().get(_ORIENTATION_TAG, 1)
        return int(value)
    except _DAMAGED:
        return 1


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Scale 16-bit, 32-bit and float grey by their depth, where `convert` would clip."""
    import numpy as np

    values: NDArray[np.float64] = np.nan_to_num(np.asarray(picture, dtype=np.float64))
    deep = picture.mode.startswith("I;16") or picture.format in ("PNG", "PPM")
    scaled = _unit_range(values, 65535.0 if deep else None)
    grey = Image.fromarray(np.rint(scaled * 255.0).astype(np.uint8), "L")
    key = picture.info.get("transparency")
    if isinstance(key, int):
        grey.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8), "L"))
    return grey


def _unit_range(values: NDArray[np.float64], full: float | None) -> NDArray[np.float64]:
    """Bring values to 0..1 by the full scale; with no depth declared, by the smallest that fits."""
    import numpy as np

    low, high = float(values.min()), float(values.max())
    if full is None:
        full = next((scale for scale in (1.0, 255.0, 65535.0) if 0 <= low and high <= scale), None)
    if full is None:  # heights, distances, temperatures: no scale but their own
        return (values - low) / ((high - low) or 1.0)
    return np.clip(values / full, 0.0, 1.0)


def _not_a_picture(data: bytes, source: str) -> ImageError:
    head = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return ImageError(
            f"{source}: is a web page (HTML), not a picture",
            "give the address of the picture itself, not of the page that shows it",
        )
    if b"<svg" in head:
        return ImageError(f"{source}: is an SVG drawing", "export it as PNG first")
    if data[4:8] == b"ftyp" and data[8:12] in (
        b"heic",
        b"heix",
        b"hevc",
        b"mif1",
        b"msf1",
        b"heim",
    ):
        return ImageError(f"{source}: HEIC pictures cannot be read", "export it as JPEG first")
    if data.startswith(_SIGNATURES) or data[4:12] in (b"ftypavif", b"ftypavis"):
        return _damaged(source)
    kind = "is text, not a picture" if _is_text(data) else "is not a picture that can be read"
    return ImageError(f"{source}: {kind}", "JPEG, PNG, WebP, GIF, BMP, TIFF and AVIF are read")


_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")


def _is_text(data: bytes) -> bool:
    head = data[:512]
    return b"\0" not in head and sum(byte < 9 or 13 < byte < 32 for byte in head) == 0


def _damaged(source: str) -> ImageError:
    return ImageError(f"{source}: the picture is damaged or cut short", "copy or download it again")


def _too_many_pixels(source: str, size: str = "too many pixels") -> ImageError:
    return ImageError(
        f"{source}: {size}, more than the limit of {MAX_PIXELS // 1_000_000} megapixels",
        "save a smaller copy of the picture",
    )


def _out_of_memory(source: str) -> OutOfMemory:
    return OutOfMemory(f"{source}: not enough memory to decode it", "save a smaller copy")


def exif_date(data: bytes) -> str:
    """The day an encoded picture was taken, as YYYY-MM-DD; empty where it does not say."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
                exif = picture.getexif()
                found = exif.get_ifd(_EXIF_IFD).get(_TAKEN_TAG) or exif.get(_CHANGED_TAG)
        except (Image.DecompressionBombError, *_DAMAGED):
            return ""
    match = re.match(r"(\d{4}):(\d\d):(\d\d)", str(found or ""))
    return "-".join(match.groups()) if match and match[1] != "0000" else ""
