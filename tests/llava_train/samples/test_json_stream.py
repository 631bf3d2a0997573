"""JSON is read element by element, whatever the pieces that the file comes in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llava_cli.errors import DataError
from llava_train.samples import json_stream
from llava_train.samples.json_stream import fields, items, opens_with

ROWS: list[Any] = [
    {"id": 1, "text": 'a\\"] }, [ \n é 犬 😀'},
    {},
    [],
    [1, [2, {"x": None}]],
    "text, with ] and }",
    -12.5e-3,
    123456,
    True,
    {"long": "x" * 300, "list": list(range(50))},
]


@pytest.fixture(params=[1, 3, 64, 1 << 20])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of so many characters."""
    monkeypatch.setattr(json_stream, "_CHUNK", request.param)


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("indent", [None, 2])
def test_an_array_is_read_in_pieces_of_any_size(tmp_path: Path, indent: int | None) -> None:
    path = tmp_path / "x"
    path.write_text("\ufeff \n" + json.dumps(ROWS, indent=indent, ensure_ascii=False) + "\n")
    assert list(items(path)) == ROWS


@pytest.mark.usefixtures("chunk")
def test_lines_are_read_in_pieces_of_any_size(tmp_path: Path) -> None:
    path = tmp_path / "x"
    rows = [row for row in ROWS if isinstance(row, dict)]
    path.write_text("\n\n".join(json.dumps(row) for row in rows))
    assert list(items(path)) == rows


@pytest.mark.usefixtures("chunk")
def test_an_objects_arrays_are_read_in_pieces_of_any_size(tmp_path: Path) -> None:
    path = tmp_path / "x"
    content = {"info": {"a": 1}, "rows": ROWS, "empty": [], "n": 12, "other": [7], "last": [1, 2]}
    path.write_text(json.dumps(content))
    found = list(fields(path, {"rows", "empty", "n", "last"}))
    assert found == [*(("rows", row) for row in ROWS), ("n", 12), ("last", 1), ("last", 2)]


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize(
    "text", ["[1, 2", "[1 2]", "[1,]", '["a', "[}", "[1] x", '{"a": 1} {', "nope", '["\x01"]']
)
def test_what_is_broken_is_an_error_that_says_where(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"x\.json is not JSON: .*after character"):
        list(items(path))


def test_bytes_that_are_no_text_and_files_that_are_not_there(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b'[\xff\xfe, "a"]')
    with pytest.raises(DataError, match="not UTF-8"):
        list(items(path))
    with pytest.raises(DataError, match="cannot be read"):
        list(items(tmp_path / "none"))


def test_depth_without_end_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("[" * 200_000)
    with pytest.raises(DataError):
        list(items(path))


def test_what_a_file_opens_with(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text(" \n {")
    assert opens_with(path) == "{"
    path.write_text("")
    assert opens_with(path) == ""
