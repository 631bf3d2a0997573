"""Where a picture is, and its pixels: upright, RGB, bounded.

`locate` decides while arguments are parsed whether a text names a picture; `Image.open` decodes it
as late as wanted. Not here: the preparation for a vision tower (`pixels.py`), the network itself
(`web.py`).
"""

from __future__ import annotations

import hashlib
import re
import stat
import sys
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import unquote_to_bytes

from llava_cli.errors import ImageError

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

Kind = Literal["file", "url", "data", "stdin", "clipboard", "memory"]

MAX_BYTES = 128 * 1024 * 1024
"""Largest encoded picture that is read, from wherever it comes."""

SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .apng .webp .gif .bmp .dib .tif .tiff .avif .avifs"
    " .ppm .pgm .pbm .pnm .ico .jp2 .j2k .mpo .heic .heif .hif .svg .tga .jxl .psd"
    " .raw .cr2 .nef .arw .dng".split()
)
"""What makes an argument look like a picture; whether it can be decoded, its bytes decide."""

MAX_GLOB_MATCHES = 10_000
_DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+)?((?:;[^,;\s]*)*),(.*)", re.DOTALL | re.IGNORECASE)
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+)://\S", re.IGNORECASE)
AS_PROMPT = "if it is the question and not a picture, give it with -p/--prompt"
"""Remedy where a picture may have been meant as words."""


@dataclass(frozen=True, eq=False)
class Image:
    """A picture that can be opened; two are equal when their bytes are."""

    source: str
    """What the user wrote (a data: URL shortened)."""
    kind: Kind
    path: Path | None = None
    """Kind file only."""
    data: bytes | None = field(default=None, repr=False)
    """The encoded picture, where it was read already."""
    background: str = "white"
    """What transparent pixels are laid on."""
    pixels: PilImage | None = field(default=None, repr=False)
    """The decoded picture, after `loaded` or `from_pil`."""

    @classmethod
    def from_path(cls, path: str | Path, background: str = "white") -> Image:
        """A picture file; the disk is not touched before it is opened."""
        return cls(source=str(path), kind="file", path=Path(path), background=background)

    @classmethod
    def from_bytes(cls, data: bytes, source: str, kind: Kind, background: str = "white") -> Image:
        """An encoded picture in memory."""
        return cls(source=source, kind=kind, data=data, background=background)

    @classmethod
    def from_pil(cls, pil: PilImage, source: str = "memory", background: str = "white") -> Image:
        """A decoded picture; brought to upright RGB by the same rules as a file."""
        from llava_cli import decode

        return cls(
            source=source,
            kind="memory",
            background=background,
            pixels=decode.to_rgb(pil, source, background),
        )

    def open(self, background: str | None = None) -> PilImage:
        """The pixels: upright, RGB uint8, first frame. Raises ImageError; never changes `self`."""
        if self.pixels is not None:
            return self.pixels.copy()
        from llava_cli import decode

        return decode.decode(self.read(), self.source, background or self.background)

    def loaded(self) -> Image:
        """The same picture with its bytes read and decoded once, for all later calls of `open`."""
        if self.pixels is not None:
            return self
        from llava_cli import decode

        data = self.read()
        pixels = decode.decode(data, self.source, self.background)
        return replace(self, data=data, pixels=pixels)

    def read(self) -> bytes:
        """The encoded bytes, at most MAX_BYTES of them."""
        if self.data is not None:
            return _checked_bytes(self.data, self.source)
        if self.kind == "url":
            from llava_cli import web

            return web.fetch(self.source, max_bytes=MAX_BYTES)
        if self.path is None:
            raise ImageError(f"{self.source}: there are no encoded bytes to read")
        return _read_file(self.path, self.source)

    @cached_property
    def sha256(self) -> str:
        """Identity: of the encoded bytes, or of size and pixels where there never were any."""
        if self.kind == "memory" and self.pixels is not None:
            header = f"{self.pixels.width}x{self.pixels.height}:".encode()
            return hashlib.sha256(header + self.pixels.tobytes()).hexdigest()
        return hashlib.sha256(self.read()).hexdigest()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Image):
            return NotImplemented
        return self is other or self.sha256 == other.sha256

    def __hash__(self) -> int:
        return hash(self.sha256)


def locate(text: str, background: str = "white") -> Image | None:
    """The picture that `text` names, or None; ImageError if it looks like one and cannot be read.

    A glob must match exactly one file here; `locate_all` takes any number.
    """
    found = locate_all(text, background)
    if len(found) > 1:
        raise ImageError(f"{text}: matches {len(found)} files, one picture was expected")
    return found[0] if found else None


def locate_all(text: str, background: str = "white") -> tuple[Image, ...]:
    """All pictures that one argument names: none for a text that is no picture.

    A URL is only recognised here, not yet fetched; everything else is there and readable.
    """
    if text == "-":
        return (_from_stdin(background),)
    if text == "@clip":
        return (_from_clipboard(background),)
    if re.match(r"https?://\S+$", text, re.IGNORECASE):
        return (Image(source=text, kind="url", background=background),)
    if text[:5].lower() == "data:" and (match := _DATA_URL.fullmatch(text)):
        return (_from_data_url(match, background),)
    if _exists(text):
        return (_located_file(Path(text), background),)
    if matches := _glob(text):
        return tuple(_located_file(path, background) for path in matches)
    if problem := _looks_like_image(text):
        raise ImageError(*problem)
    return ()


def _looks_like_image(text: str) -> tuple[str, str] | None:
    """Message and remedy for a text that must be meant as a picture, though nothing is there."""
    if match := _SCHEME.match(text):
        scheme = match[1].lower()
        if scheme == "file":
            return f"{text}: file: URLs are not read", "give the path of the file itself"
        if scheme in ("http", "https"):
            if not _has_suffix(text):
                return None  # a question that begins with an address
            return f"{text}: a URL cannot contain spaces", f"write %20 for a space; {AS_PROMPT}"
        if not re.search(r"\s", text):
            return (
                f"{text}: {scheme}: URLs are not read",
                "download it first, or give an http(s) URL",
            )
        return None
    if re.match(r"data:image/", text, re.IGNORECASE):
        return f"{_short(text)}: not a valid data: URL", "expected data:image/png;base64,…"
    has_suffix = _has_suffix(text)
    if text.endswith("?"):
        return None  # "red/green?" is a question; a pattern that matches nothing looks no better
    if "*" in text and (has_suffix or not re.search(r"\s", text)):
        return f"{text}: no file matches", f"check the pattern; {AS_PROMPT}"
    if has_suffix or _is_pathlike(text):
        return f"{text}: no such file", f"check the path; {AS_PROMPT}"
    return None


def _has_suffix(text: str) -> bool:
    return "\n" not in text and Path(text).suffix.lower() in SUFFIXES


def _is_pathlike(text: str) -> bool:
    """Whether a text without a picture's suffix can only be meant as a path."""
    if "\n" in text or not text.strip():
        return False
    if re.match(r"(\.{1,2}|~)[/\\]|[A-Za-z]:\\", text):
        return True
    if not re.search(r"\s", text):
        return "/" in text or "\\" in text
    parent = Path(text).parent
    return text.startswith("/") and parent != Path("/") and _exists(str(parent))


def _exists(text: str) -> bool:
    """Whether something of this name is on the disk; a text that cannot be a name is not."""
    try:
        return bool(text) and Path(text).exists()
    except (OSError, ValueError):  # too long, a NUL byte, no permission to look
        return False


def _glob(text: str) -> list[Path]:
    """The files that match a pattern, sorted; none for a text that is no pattern."""
    if not any(sign in text for sign in "*?[") or len(text) > 4096 or "\n" in text or "\0" in text:
        return []
    if re.search(r"\s", text) and not _has_suffix(text) and "/" not in text:
        return []  # a question that holds a question mark
    import glob
    from itertools import islice

    found = list(islice(glob.iglob(text, recursive=True), MAX_GLOB_MATCHES + 1))
    if len(found) > MAX_GLOB_MATCHES:
        raise ImageError(
            f"{text}: matches more than {MAX_GLOB_MATCHES} files", "narrow the pattern"
        )
    return sorted(path for name in found if not (path := Path(name)).is_dir())


def _located_file(path: Path, background: str) -> Image:
    """A file that was found to be readable and of a bearable size."""
    source = str(path)
    try:
        info = path.stat()
        if stat.S_ISDIR(info.st_mode):
            raise ImageError(
                f"{source}: is a directory, not a picture",
                f"name the pictures in it, for example '{source.rstrip('/')}/*.jpg'",
            )
        image = Image.from_path(path, background)
        if not stat.S_ISREG(info.st_mode):  # a pipe can be read only once
            return replace(image, data=_read_file(path, source))
        with path.open("rb"):
            pass
    except OSError as error:
        raise _unreadable(source, error) from error
    if info.st_size == 0:
        raise _empty(source)
    if info.st_size > MAX_BYTES:
        raise _too_large(source)
    return image


def _read_file(path: Path, source: str) -> bytes:
    try:
        with path.open("rb") as file:
            return _checked_bytes(file.read(MAX_BYTES + 1), source)
    except OSError as error:
        raise _unreadable(source, error) from error


def _checked_bytes(data: bytes, source: str) -> bytes:
    if not data:
        raise _empty(source)
    if len(data) > MAX_BYTES:
        raise _too_large(source)
    return data


def _unreadable(source: str, error: OSError) -> ImageError:
    if isinstance(error, FileNotFoundError):
        return ImageError(f"{source}: no such file", "check the path")
    if isinstance(error, IsADirectoryError):
        return ImageError(f"{source}: is a directory, not a picture", "name a picture in it")
    reason = error.strerror or str(error)
    return ImageError(f"{source}: cannot be read: {reason}", "check its permissions")


def _empty(source: str) -> ImageError:
    return ImageError(f"{source}: is empty (0 bytes)", "copy or download the picture again")


def _too_large(source: str) -> ImageError:
    limit = MAX_BYTES // 1024 // 1024
    return ImageError(f"{source}: is larger than {limit} MiB", "save a smaller copy of the picture")


def _from_stdin(background: str) -> Image:
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        raise ImageError(
            "-: there is no picture on standard input", "pipe one in: llava ask - '…' < photo.jpg"
        )
    try:
        data = sys.stdin.buffer.read(MAX_BYTES + 1)
    except OSError as error:
        raise _unreadable("-", error) from error
    return Image.from_bytes(_checked_bytes(data, "-"), "-", "stdin", background)


def _from_clipboard(background: str) -> Image:
    from llava_cli import decode

    return Image.from_bytes(decode.clipboard_png(), "@clip", "clipboard", background)


def from_data_url(text: str, background: str = "white") -> Image:
    """The picture in a data: URL; ImageError for any other text. Never looks at the disk."""
    match = _DATA_URL.fullmatch(text)
    if match is None:
        raise ImageError(f"{_short(text)}: not a valid data: URL", "data:image/png;base64,…")
    return _from_data_url(match, background)


def _from_data_url(match: re.Match[str], background: str) -> Image:
    source = _short(match[0])
    if len(match[3]) > 2 * MAX_BYTES:
        raise _too_large(source)
    data = unquote_to_bytes(match[3])
    if ";base64" in match[2].lower():
        import base64
        import binascii

        try:
            packed = b"".join(data.split())
            data = base64.b64decode(packed + b"=" * (-len(packed) % 4), validate=True)
        except (binascii.Error, ValueError) as error:
            raise ImageError(
                f"{source}: not valid base64", "expected data:image/png;base64,…"
            ) from error
    return Image.from_bytes(_checked_bytes(data, source), source, "data", background)


def _short(text: str, limit: int = 40) -> str:
    return text if len(text) <= limit else text[:limit] + "…"
