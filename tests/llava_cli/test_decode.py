"""Bytes that are no picture, and pictures that are odd but fine."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PIL

from llava_cli import decode
from llava_cli.errors import ImageError, UsageError
from llava_cli.images import locate
from tests.pictures import RED, WHITE, encoded, near, opened, pixel, png, png_chunk

# ---- bytes that are no picture


def test_text_named_jpg_is_called_text(tmp_path: Path) -> None:
    path = tmp_path / "notes.jpg"
    path.write_text("hello, I am no picture")
    found = locate(str(path))
    assert found is not None
    with pytest.raises(ImageError, match="is text"):
        found.open()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
@pytest.mark.parametrize("keep", [0.9, 0.5, 0.1])
def test_truncated_picture_is_damaged(kind: str, keep: float) -> None:
    rng = np.random.default_rng(0)
    noise = PIL.fromarray(rng.integers(0, 256, (200, 200, 3), dtype=np.uint8))
    data = encoded(noise, kind)
    with pytest.raises(ImageError, match="damaged"):
        opened(data[: int(len(data) * keep)])


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"<!DOCTYPE html><html><body>404</body></html>", "HTML"),
        (b"\xef\xbb\xbf\n <HTML>", "HTML"),
        (b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 40, "HEIC"),
        (b"%PDF-1.7\n" + bytes(range(256)), "not a picture"),
        (b"\xff\xd8\xff\xe0", "damaged"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "text"),
    ],
)
def test_bytes_that_are_no_picture_are_named(data: bytes, word: str) -> None:
    with pytest.raises(ImageError, match=word) as caught:
        opened(data)
    assert caught.value.hint


def test_random_damage_never_escapes_as_another_error() -> None:
    """Flipped bytes either still decode or are an ImageError: nothing else leaves."""
    rng = np.random.default_rng(1)
    pattern = PIL.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8))
    outcomes = set()
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"):
        data = encoded(pattern, kind)
        for _ in range(40):
            damaged = bytearray(data)
            for place in rng.integers(0, len(data), 8):
                damaged[place] = rng.integers(0, 256)
            try:
                outcomes.add(opened(bytes(damaged)).mode)
            except ImageError:
                outcomes.add("error")
    assert outcomes == {"RGB", "error"}


def test_decompression_bomb_is_refused_before_its_pixels() -> None:
    bomb = png(50_000, 50_000, 8, 2, b"\0" * 1000)
    with pytest.raises(ImageError, match="megapixels"):
        opened(bomb)


def test_pixel_limit_is_ours_and_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "MAX_PIXELS", 100)
    assert opened(encoded(PIL.new("RGB", (10, 10)))).size == (10, 10)
    with pytest.raises(ImageError, match="101×1 pixels"):
        opened(encoded(PIL.new("RGB", (101, 1))))


def test_large_photo_of_a_phone_is_no_bomb() -> None:
    """108 megapixels: Pillow alone would warn."""
    assert opened(encoded(PIL.new("1", (12_000, 9_000)))).size == (12_000, 9_000)


def test_png_text_bomb_is_an_image_error() -> None:
    text = b"Comment\0\0" + zlib.compress(b"x" * 80_000_000)
    rows = b"\0\xff" * 4
    with pytest.raises(ImageError):
        opened(png(1, 4, 8, 0, rows, extra=png_chunk(b"zTXt", text)))


# ---- pictures that are odd, but fine


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_pictures_are_brought_upright(orientation: int, kind: str) -> None:
    upright = PIL.new("RGB", (48, 32), "blue")
    upright.paste("red", (0, 0, 24, 16))  # red top left
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's Transpose that stores it so
    stored = upright.transpose(PIL.Transpose(undo[orientation])) if orientation > 1 else upright
    exif = PIL.Exif()
    exif[0x0112] = orientation
    found = opened(encoded(stored, kind, exif=exif.tobytes()))
    assert found.size == (48, 32)
    assert near(pixel(found, 8, 4), RED, by=40)
    assert near(pixel(found, 40, 28), (0, 0, 255), by=40)
    assert found.getexif().get(0x0112) is None


def test_broken_exif_does_not_hide_the_picture() -> None:
    data = encoded(PIL.new("RGB", (8, 4), "red"), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert opened(data).size == (8, 4)


def test_rgba_is_laid_on_the_background() -> None:
    picture = PIL.new("RGBA", (2, 1), (0, 0, 0, 0))
    picture.putpixel((1, 0), (255, 0, 0, 128))
    assert pixel(opened(encoded(picture)), 0, 0) == WHITE
    assert near(pixel(opened(encoded(picture)), 1, 0), (255, 127, 127), by=1)
    assert pixel(opened(encoded(picture), "#00ff00"), 0, 0) == (0, 255, 0)


def test_grey_with_alpha_is_laid_on_the_background() -> None:
    picture = PIL.new("LA", (2, 1), (0, 0))
    picture.putpixel((1, 0), (100, 255))
    found = opened(encoded(picture), "red")
    assert (pixel(found, 0, 0), pixel(found, 1, 0)) == (RED, (100, 100, 100))


@pytest.mark.parametrize("transparency", [0, bytes([0, 255])])
def test_palette_with_transparency_is_laid_on_the_background(transparency: int | bytes) -> None:
    picture = PIL.new("P", (2, 1), 0)
    picture.putpalette([0, 0, 0, 255, 0, 0])
    picture.putpixel((1, 0), 1)
    found = opened(encoded(picture, transparency=transparency))
    assert (pixel(found, 0, 0), pixel(found, 1, 0)) == (WHITE, RED)


def test_colour_key_transparency_of_rgb_png() -> None:
    picture = PIL.new("RGB", (2, 1), (0, 0, 0))
    picture.putpixel((1, 0), RED)
    found = opened(encoded(picture, transparency=(0, 0, 0)))
    assert (pixel(found, 0, 0), pixel(found, 1, 0)) == (WHITE, RED)


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    values = np.array([[0, 257, 40_000, 65_535]], dtype=np.uint16)
    found = opened(encoded(PIL.fromarray(values)))
    assert [pixel(found, x, 0)[0] for x in range(4)] == [0, 1, 156, 255]
    tiff = opened(encoded(PIL.fromarray(values), "TIFF"))
    assert [pixel(tiff, x, 0)[0] for x in range(4)] == [0, 1, 156, 255]


def test_sixteen_bit_grey_with_colour_key() -> None:
    rows = b"\0" + struct.pack(">2H", 1000, 65_535)
    found = opened(png(2, 1, 16, 0, rows, extra=png_chunk(b"tRNS", struct.pack(">H", 1000))), "red")
    assert (pixel(found, 0, 0), pixel(found, 1, 0)) == (RED, WHITE)


def test_sixteen_bit_colour_is_scaled() -> None:
    rows = b"\0" + struct.pack(">3H", 65_535, 40_000, 257)
    assert near(pixel(opened(png(1, 1, 16, 2, rows)), 0, 0), (255, 156, 1), by=1)
    rows = b"\0" + struct.pack(">4H", 65_535, 40_000, 257, 0)
    assert pixel(opened(png(1, 1, 16, 6, rows)), 0, 0) == WHITE


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (np.array([[0.0, 0.5, 1.0]], dtype=np.float32), [0, 128, 255]),
        (np.array([[0.0, 128.0, 255.0]], dtype=np.float32), [0, 128, 255]),
        (np.array([[-10.0, 0.0, 10.0]], dtype=np.float32), [0, 128, 255]),
        (np.array([[0, 128, 255]], dtype=np.int32), [0, 128, 255]),
        (np.array([[np.nan, 0.0, 1.0]], dtype=np.float32), [0, 0, 255]),
    ],
)
def test_float_and_integer_tiffs_are_scaled(
    values: np.ndarray[tuple[int, int], np.dtype[np.float32]], wanted: list[int]
) -> None:
    found = opened(encoded(PIL.fromarray(values), "TIFF"))
    assert [pixel(found, x, 0)[0] for x in range(3)] == wanted


def test_sixteen_bit_pgm_is_scaled() -> None:
    data = b"P5\n2 1\n65535\n" + struct.pack(">2H", 40_000, 0)
    assert pixel(opened(data), 0, 0) == (156, 156, 156)


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_becomes_its_colours(kind: str) -> None:
    found = opened(encoded(PIL.new("CMYK", (16, 16), (0, 255, 255, 0)), kind))
    assert near(pixel(found, 8, 8), RED, by=10)


@pytest.mark.parametrize("mode", ["1", "L", "YCbCr", "LAB"])
def test_other_modes_become_rgb(mode: str) -> None:
    kind = "TIFF" if mode in ("YCbCr", "LAB") else "PNG"
    data = encoded(PIL.new(mode, (4, 4)), kind)
    try:
        assert opened(data).mode == "RGB"
    except ImageError as error:
        assert mode == "LAB", error


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "AVIF"])
def test_first_frame_of_an_animation(kind: str) -> None:
    frames = [PIL.new("RGB", (20, 10), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=50)
    assert near(pixel(opened(data), 10, 5), RED)


def test_very_long_and_very_flat() -> None:
    assert opened(encoded(PIL.new("RGB", (20_000, 3)))).size == (20_000, 3)


def test_background_that_is_no_colour_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="nocolour"):
        opened(encoded(PIL.new("RGBA", (2, 2))), "nocolour")
