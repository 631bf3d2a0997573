"""Every source of a picture, and what counts as one."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import stat
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PIL
from PIL import ImageGrab

from llava_cli import images
from llava_cli.errors import ImageError
from llava_cli.images import Image, locate, locate_all
from tests.pictures import RED, WHITE, encoded, near, opened, pixel

# ---- where a picture can come from


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM"])
def test_each_format_gives_its_pixels(kind: str) -> None:
    found = opened(encoded(PIL.new("RGB", (20, 10), "red"), kind))
    assert found.mode == "RGB"
    assert found.size == (20, 10)
    assert near(pixel(found, 10, 5), RED)


def test_path_is_located_and_opened(tmp_path: Path) -> None:
    path = tmp_path / "without suffix"
    path.write_bytes(encoded(PIL.new("RGB", (4, 3), "red")))
    found = locate(str(path))
    assert found is not None
    assert (found.kind, found.source, found.open().size) == ("file", str(path), (4, 3))


def test_glob_gives_all_matches_in_order(tmp_path: Path) -> None:
    for name in ("b.png", "a.png", "c.txt"):
        (tmp_path / name).write_bytes(encoded(PIL.new("RGB", (4, 3))))
    (tmp_path / "d.png").mkdir()
    found = locate_all(f"{tmp_path}/*.png")
    assert [Path(image.source).name for image in found] == ["a.png", "b.png"]


def test_glob_of_several_is_not_one_picture(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ImageError, match="2 files"):
        locate(f"{tmp_path}/*.png")


def test_a_file_whose_name_holds_glob_signs_is_itself(tmp_path: Path) -> None:
    path = tmp_path / "a[1].png"
    path.write_bytes(encoded(PIL.new("RGB", (4, 3))))
    assert [image.source for image in locate_all(str(path))] == [str(path)]


def test_data_url_base64_and_percent() -> None:
    data = encoded(PIL.new("RGB", (4, 3), "red"))
    for url in (
        "data:image/png;base64," + base64.b64encode(data).decode(),
        "data:;base64," + base64.b64encode(data).decode().rstrip("="),
        "data:image/png," + "".join(f"%{byte:02x}" for byte in data),
    ):
        found = locate(url)
        assert found is not None
        assert found.kind == "data"
        assert found.open().size == (4, 3)
        assert len(found.source) <= 41


def test_stdin_is_read_once_as_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(PIL.new("RGB", (4, 3), "red"))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    found = locate("-")
    assert found is not None
    assert found.kind == "stdin"
    assert found.open().size == found.open().size == (4, 3)


def test_clipboard_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageGrab, "grabclipboard", lambda: PIL.new("RGB", (4, 3), "red"))
    found = locate("@clip")
    assert found is not None
    assert (found.kind, pixel(found.open(), 0, 0)) == ("clipboard", RED)


@pytest.mark.parametrize("held", [None, ["/tmp/a.txt"], NotImplementedError("no xclip")])
def test_clipboard_without_picture_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, held: object
) -> None:
    def grab() -> object:
        if isinstance(held, Exception):
            raise held
        return held

    monkeypatch.setattr(ImageGrab, "grabclipboard", grab)
    with pytest.raises(ImageError) as caught:
        locate("@clip")
    assert caught.value.hint


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_named_pipe_is_read_once(tmp_path: Path) -> None:
    data = encoded(PIL.new("RGB", (4, 3)))
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(path, os.O_WRONLY)
    os.write(writer, data)
    try:
        # the writer must close while `locate` reads; its bytes wait in the pipe
        import threading

        threading.Timer(0.05, os.close, [writer]).start()
        found = locate(str(path))
    finally:
        os.close(reader)
    assert found is not None
    assert found.open().size == found.open().size == (4, 3)


# ---- what is a picture and what is a question


@pytest.mark.parametrize(
    "text",
    [
        "what is unusual here?",
        "is it red/green or black?",
        "describe the picture",
        "What is **this**?",
        "describe",
        "yes/no?",
        "why?",
        "[INST] look [/INST]",
        "data: what is it",
        "https://example.org/a is where I found it, what is it?",
        "a\0b",
        "line one\nline two.jpg\nline three",
        "",
        "x" * 100_000,
        "¿Qué es esto?",
        "what is in a.jpg?",
        "/imagine a question with a slash",
    ],
)
def test_a_question_is_no_picture(text: str) -> None:
    assert locate(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "missing.jpg",
        "MISSING.JPEG",
        "my photo.png",
        "./missing",
        "../missing",
        "/nowhere/missing",
        "photos/missing",
        "*.jpg",
        "photos/*",
        "file:///etc/passwd",
        "s3://bucket/key",
        "ftp://host/a.png",
        "https://example.org/my photo.jpg",
        "data:image/png;base64 oops",
        "data:image/png;base64,§§§§",
        "data:image/png;base64,",
        "C:\\pictures\\missing",
    ],
)
def test_what_looks_like_a_picture_and_is_none_fails_at_once(text: str) -> None:
    with pytest.raises(ImageError) as caught:
        locate(text)
    assert caught.value.exit_code == 4
    assert caught.value.hint
    assert "\n" not in caught.value.message


def test_directory_is_no_picture(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="directory"):
        locate(str(tmp_path))


def test_empty_file_is_no_picture(tmp_path: Path) -> None:
    path = tmp_path / "empty.jpg"
    path.touch()
    with pytest.raises(ImageError, match="0 bytes"):
        locate(str(path))


def test_unreadable_file_is_an_image_error(tmp_path: Path) -> None:
    path = tmp_path / "locked.jpg"
    path.write_bytes(b"x")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("permissions do not bind this user")
    with pytest.raises(ImageError, match="ermission"):
        locate(str(path))
    path.chmod(stat.S_IRUSR | stat.S_IWUSR)


def test_file_larger_than_the_limit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "MAX_BYTES", 100)
    path = tmp_path / "large.png"
    path.write_bytes(b"x" * 101)
    with pytest.raises(ImageError, match="larger than"):
        locate(str(path))
    with pytest.raises(ImageError, match="larger than"):
        Image.from_path(path).read()


def test_file_that_vanished_is_an_image_error(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no such file"):
        Image.from_path(tmp_path / "gone.jpg").open()


# ---- values


def test_identity_is_the_hash_of_the_bytes(tmp_path: Path) -> None:
    data = encoded(PIL.new("RGB", (4, 3), "red"))
    path = tmp_path / "a.png"
    path.write_bytes(data)
    from_file, from_url = Image.from_path(path), Image.from_bytes(data, "x", "data")
    assert from_file.sha256 == hashlib.sha256(data).hexdigest()
    assert from_file == from_url
    assert len({from_file, from_url}) == 1
    assert from_file != Image.from_bytes(encoded(PIL.new("RGB", (4, 3))), "x", "data")


def test_decoded_pictures_differ_by_pixels_and_shape() -> None:
    a, b = Image.from_pil(PIL.new("RGB", (6, 2))), Image.from_pil(PIL.new("RGB", (2, 6)))
    assert a != b
    assert a == Image.from_pil(PIL.new("RGB", (6, 2)), source="elsewhere")


def test_from_pil_follows_the_same_rules() -> None:
    assert pixel(Image.from_pil(PIL.new("RGBA", (1, 1), (0, 0, 0, 0))).open(), 0, 0) == WHITE
    deep = PIL.fromarray(np.array([[40_000]], dtype=np.uint16))
    assert pixel(Image.from_pil(deep).open(), 0, 0) == (156, 156, 156)


def test_opening_hands_out_a_copy() -> None:
    image = Image.from_pil(PIL.new("RGB", (1, 1), "red"))
    image.open().putpixel((0, 0), (0, 0, 0))
    assert pixel(image.open(), 0, 0) == RED


def test_from_pil_does_not_share_the_callers_pixels() -> None:
    mine = PIL.new("RGB", (1, 1), "red")
    image = Image.from_pil(mine)
    mine.putpixel((0, 0), (0, 0, 0))
    assert pixel(image.open(), 0, 0) == RED
    assert mine.info == {}


def test_loaded_reads_the_file_once(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(PIL.new("RGB", (4, 3), "red")))
    loaded = Image.from_path(path).loaded()
    path.unlink()
    assert loaded.open().size == (4, 3)
    assert len(loaded.sha256) == 64
