"""Wrong pictures and models: one clear line, the remedy, the promised exit code.

Every picture is asked about with a model that does not exist (exit code 3): exit code 4 shows that
the picture was refused before any model was looked for, exit code 3 that the picture was taken.
"""

from __future__ import annotations

import io
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PIL

from tests.llava_cli.cli.conftest import Ran, Run

NO_MODEL = ("-m", "/no/such/model")
TAKEN, REFUSED = 3, 4


def refused(ran: Ran) -> str:
    """Exit code 4, nothing on stdout; what is wrong and what to do, a line each."""
    assert (ran.code, ran.out) == (REFUSED, "")
    wrong, remedy = ran.err.splitlines()
    assert wrong.startswith("error: ")
    assert remedy.startswith("hint: ")
    return ran.err


@pytest.fixture
def ask(run: Run, tmp_path: Path) -> Callable[[str, bytes], Ran]:
    """Write a file and ask about it."""

    def go(name: str, data: bytes) -> Ran:
        (tmp_path / name).write_bytes(data)
        return run("ask", name, "what is unusual here?", *NO_MODEL)

    return go


Ask = Callable[[str, bytes], Ran]


def encoded(picture: PIL.Image, kind: str, **settings: object) -> bytes:
    packed = io.BytesIO()
    picture.save(packed, kind, **settings)
    return packed.getvalue()


def turned() -> bytes:
    exif = PIL.Exif()
    exif[0x0112] = 6
    return exif.tobytes()


def noise() -> PIL.Image:
    return PIL.fromarray(np.random.default_rng(0).integers(0, 256, (99, 99, 3), dtype=np.uint8))


def test_missing_file(run: Run) -> None:
    assert "missing.jpg: no such file" in refused(run("ask", "missing.jpg", "hi", *NO_MODEL))


def test_missing_file_as_json(run: Run) -> None:
    ran = run("ask", "missing.jpg", "hi", "--json", *NO_MODEL)
    assert (ran.code, ran.out) == (REFUSED, "")
    assert ran.error["type"] == "ImageError"
    assert "missing.jpg" in ran.error["message"]
    assert ran.error["hint"]


def test_missing_file_given_with_i(run: Run) -> None:
    assert "no suffix" in refused(run("ask", "-i", "no suffix", "hi", *NO_MODEL))


def test_directory(run: Run, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    assert "directory" in refused(run("ask", "photos", "hi", *NO_MODEL))


def test_text_file_named_jpg(ask: Ask) -> None:
    assert "is text" in refused(ask("notes.jpg", b"just some notes\n"))


def test_truncated_jpeg(ask: Ask) -> None:
    assert "damaged" in refused(ask("half.jpg", encoded(noise(), "JPEG")[:2000]))


def test_empty_file(ask: Ask) -> None:
    assert "0 bytes" in refused(ask("empty.jpg", b""))


def test_decompression_bomb(ask: Ask) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    size = 30_000
    rows = zlib.compress(b"\0" * (size * (size // 8 + 1)), 1)
    bomb = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", size, size, 1, 0, 0, 0, 0))
        + chunk(b"IDAT", rows)
        + chunk(b"IEND", b"")
    )
    assert "megapixels" in refused(ask("bomb.png", bomb))


def test_damaged_tiff_leaves_no_remarks_of_libtiff(ask: Ask) -> None:
    """Its decoder writes to stderr itself, past Python."""
    data = bytearray(encoded(noise(), "TIFF", compression="tiff_lzw"))
    data[3000:3500] = np.random.default_rng(0).bytes(500)
    assert "damaged" in refused(ask("scan.tif", bytes(data)))


def test_unmatched_pattern(run: Run) -> None:
    assert "no file matches" in refused(run("ask", "*.jpg", "hi", *NO_MODEL))


def test_file_url(run: Run) -> None:
    assert "file:" in refused(run("ask", "file:///etc/passwd", "hi", *NO_MODEL))


def test_garbage_on_stdin(run: Run) -> None:
    assert "-: is text" in refused(run("ask", "-", "hi", *NO_MODEL, stdin=b"garbage"))


def test_nothing_on_stdin(run: Run) -> None:
    assert "0 bytes" in refused(run("ask", "-", "hi", *NO_MODEL))


def test_name_with_escapes_is_written_out(run: Run) -> None:
    ran = run("ask", "\x1b[31mred\u202e.jpg", "hi", *NO_MODEL)
    assert "\\x1b[31mred\\u202e.jpg" in refused(ran)
    assert "\x1b" not in ran.err


# ---- odd, but pictures: they are taken (and then the model is missing)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("cmyk.jpg", encoded(PIL.new("CMYK", (9, 9)), "JPEG")),
        ("deep.png", encoded(PIL.fromarray(np.full((9, 9), 40_000, np.uint16)), "PNG")),
        ("palette.png", encoded(PIL.new("P", (9, 9)), "PNG", transparency=0)),
        (
            "moving.gif",
            encoded(noise(), "GIF", save_all=True, append_images=[PIL.new("RGB", (99, 99))]),
        ),
        ("long.png", encoded(PIL.new("RGB", (20_000, 3)), "PNG")),
        ("turned.jpg", encoded(noise(), "JPEG", exif=turned())),
        ("no suffix", encoded(noise(), "WEBP")),
    ],
    ids=["cmyk", "16-bit", "palette", "animation", "20000x3", "turned", "no suffix"],
)
def test_odd_pictures_are_taken(ask: Ask, name: str, data: bytes) -> None:
    ran = ask(name, data)
    assert ran.code == TAKEN, ran.err
    assert "/no/such/model" in ran.err


def test_picture_on_stdin_is_taken(run: Run) -> None:
    assert run("ask", "-", "hi", *NO_MODEL, stdin=encoded(noise(), "PNG")).code == TAKEN


# ---- URLs


class Pages(BaseHTTPRequestHandler):
    """A picture, a web page, and nothing else."""

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        kind, body = {
            "/photo": ("image/png", encoded(noise(), "PNG")),
            "/page": ("text/html", b"<!doctype html><html></html>"),
        }.get(self.path, ("", b""))
        self.send_response(200 if body else 404)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def address() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Pages)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_url_of_a_picture_is_taken(run: Run, address: str) -> None:
    assert run("ask", f"{address}/photo", "hi", *NO_MODEL).code == TAKEN


def test_url_that_serves_html(run: Run, address: str) -> None:
    assert "HTML" in refused(run("ask", f"{address}/page", "hi", *NO_MODEL))


def test_url_that_is_missing(run: Run, address: str) -> None:
    assert "404" in refused(run("ask", f"{address}/photo.jpg", "hi", *NO_MODEL))


def test_unreachable_url(run: Run) -> None:
    assert "cannot be reached" in refused(run("ask", "http://127.0.0.1:9/a.jpg", "hi", *NO_MODEL))


def test_offline_refuses_urls(run: Run, address: str) -> None:
    assert "--offline" in refused(run("ask", f"{address}/photo", "hi", "--offline", *NO_MODEL))


# ---- questions and models


def test_empty_question(run: Run, picture: Path) -> None:
    ran = run("ask", picture, "", *NO_MODEL)
    assert (ran.code, ran.out) == (2, "")
    assert len(ran.err.splitlines()) == 2


def test_unknown_model(run: Run, picture: Path) -> None:
    ran = run("ask", picture, "hi", "-m", "llava-1.6-90b")
    assert (ran.code, ran.out) == (3, "")
    assert len(ran.err.splitlines()) == 2


def test_hub_model_while_offline(run: Run, picture: Path) -> None:
    ran = run("ask", picture, "hi", "-m", "llava-hf/llava-1.5-7b-hf", "--offline")
    assert (ran.code, ran.out) == (3, "")
    assert len(ran.err.splitlines()) == 2


@pytest.mark.parametrize(
    "data",
    [b"", b"GGUF", b"GGUF" + b"\xff" * 64, b"no gguf at all" * 9],
    ids=["empty", "cut", "garbage", "text"],
)
def test_corrupt_gguf(run: Run, picture: Path, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "model.gguf").write_bytes(data)
    (tmp_path / "mmproj-model.gguf").write_bytes(data)
    ran = run("ask", picture, "hi", "-m", "model.gguf")
    assert (ran.code, ran.out) == (3, "")
    assert len(ran.err.splitlines()) == 2


def test_folder_without_a_model(run: Run, picture: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    ran = run("ask", picture, "hi", "-m", "./empty")
    assert (ran.code, ran.out) == (3, "")


def test_cache_folder_that_cannot_be_written(run: Run, picture: Path, tmp_path: Path) -> None:
    """A file stands where the folders should be: not even root can write there."""
    (tmp_path / "file").touch()
    places = {"HF_HOME": str(tmp_path / "file"), "LLAVA_HOME": str(tmp_path / "file" / "x")}
    ran = run("ask", picture, "hi", "-q", script=["fine"], env=places)
    assert (ran.code, ran.out) == (0, "fine\n")
    ran = run("ask", picture, "hi", "-m", "org/name", env=places)
    assert (ran.code, ran.out) == (3, "")
    assert len(ran.err.splitlines()) == 2
