"""Every kind of data file gives the same samples; what cannot be used is named."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PIL

from llava_cli.cli import main
from llava_cli.errors import DataError
from llava_cli.prompts import FORMATS, prompt_text
from llava_train.conversations import Sample, read, rendered, sample_of
from llava_train.dataset import gather
from llava_train.scienceqa import in_order


def record(number: int, **more: Any) -> dict[str, Any]:
    turns = [("human", "<image>\nQ"), ("gpt", f"A{number}")]
    return {"id": f"s{number}", "conversations": [{"from": f, "value": v} for f, v in turns]} | more


def png(side: int) -> bytes:
    buffer = io.BytesIO()
    PIL.new("RGB", (side, side), (side, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def sides(samples: list[Sample]) -> list[list[int]]:
    """Width of each sample's pictures, read from where they lie."""
    return [[p.read().open().width for p in s.images if not isinstance(p, str)] for s in samples]


def test_a_webdataset_tar_gives_its_pictures_without_unpacking(tmp_path: Path) -> None:
    members = [
        ("a/0.json", json.dumps(record(0)).encode()), ("a/0.png", png(3)),
        ("a/1.jpg", png(4)), ("a/1.txt", b"a caption"),
        ("b/1.json", json.dumps({"conversations": record(2)["conversations"]}).encode()),
        ("b/1.png", png(5)),
    ]  # fmt: skip
    samples = read([write_tar(tmp_path / "shard.tar", members)])
    assert sides(samples) == [[3], [4], [5]]
    assert [s.turns[1][1] for s in samples] == ["A0", "a caption", "A2"]


def test_a_folder_of_shards_is_read_as_data_convert_wrote_it(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"{number}.png").write_bytes(png(3 + number))
    rows = [record(number, image=f"{number}.png") for number in range(5)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    given = ["--images", str(tmp_path), "-o", str(tmp_path / "shards")]
    assert main(["data", "convert", "llava", str(tmp_path / "rows.json"), *given]) == 0
    found = gather([tmp_path / "shards"], None).samples
    assert sides(found) == [[3], [4], [5], [6], [7]]
    assert [s.turns[1][1] for s in found] == [f"A{number}" for number in range(5)]


def test_a_folder_without_shards_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no webdataset shards"):
        gather([tmp_path], None)


def test_a_compressed_tar_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "shard.tar.gz"
    with tarfile.open(path, "w:gz"):
        pass
    with pytest.raises(DataError, match="compressed"):
        read([path])


def test_parquet_with_pictures_inside_or_beside(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    inside = [record(i, image={"bytes": png(3 + i), "path": None}) for i in range(5)]
    inside.append({"id": "t", "image": None, "conversations": [
        {"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]})  # fmt: skip
    parquet.write_table(pyarrow.Table.from_pylist(inside), tmp_path / "in.pq", row_group_size=2)
    assert sides(read([tmp_path / "in.pq"])) == [[3], [4], [5], [6], [7], []]
    beside = [record(i, image=f"{i}.png") for i in range(2)]
    parquet.write_table(pyarrow.Table.from_pylist(beside), tmp_path / "beside")
    assert [s.images for s in read([tmp_path / "beside"])] == [("0.png",), ("1.png",)]
    several = [
        {"messages": [{"role": "user", "content": "<image><image>Q"},
                      {"role": "assistant", "content": "A"}], "images": [png(3), png(9)]}
    ]  # fmt: skip
    parquet.write_table(pyarrow.Table.from_pylist(several), tmp_path / "several.parquet")
    assert sides(read([tmp_path / "several.parquet"])) == [[3, 9]]


def test_sharegpt_words_are_understood_and_the_system_text_kept() -> None:
    messages = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Q"}]},
        {"role": "assistant", "content": "A"},
    ]
    sample = sample_of({"messages": messages, "images": ["a.png"]}, "x")
    assert prompt_text(rendered(sample, FORMATS["vicuna_v1"])) == (
        "S USER: <image>\nQ ASSISTANT: A</s>"
    )


@pytest.mark.parametrize(
    ("question", "written"),
    [
        ("<image>\n<image>\nwhich?", "<image>\n<image>\nwhich?"),
        ("this <image> or that <image>?", "this <image> or that <image>?"),
        ("<image> differs from <image> how?", "<image>\ndiffers from <image> how?"),
    ],
)
def test_several_pictures_stay_where_they_are(question: str, written: str) -> None:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": "A"}]
    sample = sample_of({"image": ["a.png", "b.png"], "conversations": turns}, "x")
    assert f"USER: {written} ASSISTANT: A" in prompt_text(rendered(sample, FORMATS["vicuna_v1"]))


@pytest.mark.parametrize("marks", [1, 3])
def test_as_many_marks_as_pictures(marks: int) -> None:
    turns = [{"from": "human", "value": "<image>" * marks + "Q"}, {"from": "gpt", "value": "A"}]
    with pytest.raises(DataError, match=f"s1.*there are {marks} <image>, and it has 2 pictures"):
        sample_of({"id": "s1", "image": ["a.png", "b.png"], "conversations": turns}, "x")


def test_v1_places_the_picture_before_or_behind_the_question() -> None:
    def where(place: str, question: str, number: int = 0) -> str:
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": "A"}]
        sample = sample_of({"id": number, "image": "a.png", "conversations": turns}, "x")
        text = prompt_text(rendered(sample, FORMATS["llava_v0"], place))
        return text.partition("Human: ")[2].partition("###")[0]

    before, behind = "<image>\nQ", "Q\n<image>"
    assert [where("front", q) for q in (before, behind)] == [before, before]
    assert [where("data", q) for q in (before, behind)] == [before, behind]
    drawn = [where("random", before, number) for number in range(400)]
    assert set(drawn) == {before, behind} and 150 < drawn.count(behind) < 250
    assert drawn == [where("random", behind, number) for number in range(400)]  # by sample alone


def write_records(path: Path, count: int, first: int = 0) -> Path:
    made = [record(first + i, image=f"{i}.png") for i in range(count)]
    path.write_text(json.dumps(made))
    return path


def test_a_mixture_lists_files_with_folders_and_weights(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        for i in range(4):
            (tmp_path / folder / f"{i}.png").write_bytes(png(3))
    write_records(tmp_path / "a.json", 4)
    write_records(tmp_path / "b.json", 3, first=10)
    (tmp_path / "mix.toml").write_text(
        '[[data]]\nfile = "a.json"\nimages = "one"\nweight = 0.5\n'
        '[[data]]\nfile = "b.json"\nimages = "two"\nweight = 2\n'
    )
    found = gather([tmp_path / "mix.toml"], None)
    assert [s.folder for s in found.samples] == [tmp_path / "one"] * 4 + [tmp_path / "two"] * 3
    assert np.array_equal(found.weights, [0.5] * 4 + [2.0] * 3)


@pytest.mark.parametrize(
    "entry", ["weight = 0", "weight = true", "wait = 1", 'images = 3', "weight = nan"]
)  # fmt: skip
def test_a_mixture_that_makes_no_sense_is_refused(tmp_path: Path, entry: str) -> None:
    (tmp_path / "mix.toml").write_text(f'[[data]]\nfile = "a.json"\n{entry}\n')
    with pytest.raises(DataError, match=r"mix\.toml"):
        gather([tmp_path / "mix.toml"], None)


def test_missing_pictures_are_left_out_up_to_the_limit_and_named(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(png(3))
    path = write_records(tmp_path / "a.json", 3)
    notes: list[str] = []
    with pytest.raises(DataError, match=r"s1.*1\.png is missing.*1 more") as caught:
        gather([path], tmp_path, broken_limit=1)
    assert "broken_limit=2" in caught.value.hint
    found = gather([path], tmp_path, broken_limit=2, note=notes.append)
    assert [s.name.split()[0] for s in found.samples] == ["s0"]
    assert any("2 samples left out" in note and "s1" in note and "s2" in note for note in notes)


def test_repeated_samples_and_ids_are_counted(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(png(3))
    same, other = record(1, image="0.png"), record(2, image="0.png") | {"id": "s1"}
    (tmp_path / "a.json").write_text(json.dumps([same, same, other]))
    notes: list[str] = []
    assert len(gather([tmp_path / "a.json"], tmp_path, note=notes.append).samples) == 3
    assert any("1 samples repeat" in note for note in notes)
    assert any("2 samples have the id of an earlier one: s1" in note for note in notes)


@pytest.mark.parametrize(
    "answer",
    ["The answer is B. BECAUSE: x y", "x y The answer is B.", "x y\n###\nANSWER: B."],
)
def test_scienceqa_answers_are_put_in_order(answer: str) -> None:
    turns = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": answer}]
    samples = [sample_of({"conversations": turns}, "q")]
    assert in_order(samples, "data") == samples
    said = {order: in_order(samples, order)[0].turns[1][1] for order in
            ("answer-first", "reasoning-first")}  # fmt: skip
    assert said == {
        "answer-first": "The answer is B. BECAUSE: x y",
        "reasoning-first": "x y The answer is B.",
    }


def test_other_answers_have_no_order() -> None:
    turns = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "B it is"}]
    with pytest.raises(DataError, match="q.*The answer is A"):
        in_order([sample_of({"conversations": turns}, "q")], "answer-first")
