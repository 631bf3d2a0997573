"""JSON says exactly what was said, and steers no terminal while it does."""

from __future__ import annotations

import io
import json
import sys

import pytest

from llava_cli.terminal import documents

NASTY = '\x1b[31m [/INST] [red] \x00\x7f\x9b\u202e\u2028 ü 東京 🙂 \udcff "quoted" \\'


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp1252", "latin-1"])
@pytest.mark.parametrize("indent", [None, 2])
def test_values_survive_every_encoding(encoding: str, indent: int | None) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    text = documents.dumps({"text": NASTY}, indent=indent, stream=stream)
    assert json.loads(text.encode(encoding)) == {"text": NASTY}


def test_no_control_or_bidi_character_is_written() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    text = documents.dumps({"text": NASTY}, stream=stream)
    assert not set(text) & set("\x1b\x00\x7f\x9b\u202e\u2028\udcff")
    assert "東京" in text


def test_numbers_that_json_lacks_are_an_error() -> None:
    with pytest.raises(ValueError, match="JSON"):
        documents.dumps({"x": float("nan")})


def test_failure_is_two_lines(capsys: pytest.CaptureFixture[str]) -> None:
    documents.write_failure("ImageError", "a\nb\x1b.jpg: no such file", "check", as_json=False)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "error: a\\nb\\x1b.jpg: no such file\nhint: check\n"


def test_failure_as_json_is_exact(capsys: pytest.CaptureFixture[str]) -> None:
    documents.write_failure("ImageError", "a\nb\x1b.jpg", "check", as_json=True)
    error = json.loads(capsys.readouterr().err)["error"]
    assert error == {"type": "ImageError", "message": "a\nb\x1b.jpg", "hint": "check"}


def test_lines_of_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    documents.write_json_line({"text": "a\nb"})
    documents.write_json_line({"text": "c"})
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["text"] for line in lines] == ["a\nb", "c"]
    assert sys.stdout is not None
