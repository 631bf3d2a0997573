"""Every form of file gives back the samples that were written, and appears whole or not at all."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from llava_cli.errors import DataError
from llava_train.samples import writing
from llava_train.samples.files import Seen, whole
from llava_train.samples.reading import Form, form, samples
from llava_train.samples.writing import form_of, write_all, writer
from tests.llava_train.samples.conftest import Row, sample, write

NAMES = {"json": "x.json", "jsonl": "x.jsonl", "parquet": "x.parquet", "webdataset": "shards"}
ROWS = [
    sample("a", "0.png", "Qué?", "犬 🐕\n\nsecond", kind="detail", score=0.5),
    sample("b", None),
    {**sample("c"), "id": 7, "image": ["0.png"], "nested": {"x": [1, None]}},
]


@pytest.mark.parametrize("kind", NAMES)
def test_what_is_written_is_read_back(tmp_path: Path, kind: Form) -> None:
    path = tmp_path / NAMES[kind]
    assert write_all(path, ROWS) == 3
    assert (form_of(path), form(path)) == (kind, kind)
    assert list(samples(path)) == ROWS
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("kind", NAMES)
def test_the_form_is_in_the_bytes_and_not_in_the_name(tmp_path: Path, kind: Form) -> None:
    path = tmp_path / NAMES[kind]
    write_all(path, ROWS)
    source = path / "000000.tar" if path.is_dir() else path
    other = source.rename(tmp_path / "nameless")
    assert list(samples(other)) == ROWS


@pytest.mark.parametrize("kind", NAMES)
def test_a_failure_leaves_what_was_there(tmp_path: Path, kind: Form) -> None:
    path = tmp_path / NAMES[kind]
    write_all(path, ROWS)
    with pytest.raises(RuntimeError), writer(path, kind) as out:
        out.add(ROWS[0])
        raise RuntimeError
    assert list(samples(path)) == ROWS
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_nothing_is_an_empty_list(tmp_path: Path) -> None:
    assert write_all(tmp_path / "x.json", []) == 0
    assert json.loads((tmp_path / "x.json").read_text()) == []


def test_shards_hold_pictures_beside_their_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "PER_SHARD", 2)
    (tmp_path / "0.png").write_bytes(b"a picture")
    write_all(tmp_path / "shards", [sample(str(i)) for i in range(5)], images=tmp_path)
    shards = sorted((tmp_path / "shards").iterdir())
    assert [path.name for path in shards] == ["000000.tar", "000001.tar", "000002.tar"]
    with tarfile.open(shards[1]) as archive:
        assert archive.getnames() == [
            "000000002.png", "000000002.json", "000000003.png", "000000003.json"
        ]  # fmt: skip
        picture = archive.extractfile("000000003.png")
        assert picture is not None and picture.read() == b"a picture"
    assert [row["id"] for row in samples(tmp_path / "shards")] == list("01234")


def test_a_picture_outside_the_folder_is_not_packed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (tmp_path / "pictures").mkdir()
    with pytest.raises(DataError, match="leaves the folder"):
        write_all(tmp_path / "s", [sample("a", "../secret")], images=tmp_path / "pictures")
    assert not (tmp_path / "s").exists()


def test_a_folder_with_other_things_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(DataError, match="holds other things"):
        write_all(tmp_path / "mine", ROWS)
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"PAR1 and then nothing")
    with pytest.raises(DataError, match="not readable parquet"):
        list(samples(path))
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        info = tarfile.TarInfo("0.json")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"{a}"))
    with pytest.raises(DataError, match="not a readable shard"):
        list(samples(tmp_path / "t.tar"))
    with pytest.raises(DataError, match="is not an object"):
        list(samples(write(tmp_path / "n.json", [1])))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no webdataset shards"):
        form(tmp_path / "empty")


def test_letters_that_no_file_can_hold_are_escaped(tmp_path: Path) -> None:
    row: Row = sample("a", None, "Q \ud800", "A")
    write_all(tmp_path / "x.jsonl", [row])
    assert list(samples(tmp_path / "x.jsonl")) == [row]


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x"
    with whole(path) as file:
        file.write("half")
        assert not path.exists()
    assert path.read_text() == "half"


def test_a_set_knows_what_it_has_seen() -> None:
    seen = Seen()
    assert [seen.add(text) for text in ("a", "b", "a", "\ud800", "\ud800")] == [
        True, True, False, True, False
    ]  # fmt: skip
    seen.close()
