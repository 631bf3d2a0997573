"""What people get wrong: one line that says it, one with the remedy, the promised exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llava_train.scene_files import write_scenes
from tests.llava_train.samples.conftest import Run

ENDPOINT = "--llm m --base-url http://127.0.0.1:9/v1"


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world, and files that are not what they are taken for."""
    folder = tmp_path_factory.mktemp("desk")
    write_scenes(folder / "world", n=5, seed=1, size=64, also=("coco", "vqa", "scienceqa"))
    (folder / "bad.json").write_text("not json")
    (folder / "object.json").write_text('{"a": 1}')
    (folder / "empty.json").write_text("[]")
    (folder / "numbers.json").write_text("[1, 2, 3]")
    (folder / "bytes.json").write_bytes(b"\xff\xfe\x00")
    (folder / "dir").mkdir()
    return folder


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("scenes -o empty.json --n 2", 2, "is a file"),
        ("scenes -o x --n 2 --also poem", 2, "poem"),
        (f"generate --captions bytes.json {ENDPOINT} -o g", 1, "not UTF-8"),
        (f"generate --captions object.json {ENDPOINT} -o g", 1, "names no pictures"),
        (f"generate --captions world/instruct.json {ENDPOINT} -o g", 1, "one JSON object"),
        (f"generate --captions world/captions.json {ENDPOINT} -o empty.json", 2, "is a file"),
        (f"generate --captions world/captions.json {ENDPOINT}", 2, "--out is missing"),
        (f"generate --captions world/captions.json {ENDPOINT} -o g --few-shot -1", 2, "-1"),
        (
            "generate --captions world/captions.json --instances world/coco_captions.json "
            f"{ENDPOINT} -o g",
            1,
            "none is a box",
        ),
        (
            "generate --captions world/captions.json --instances world/scenes.jsonl "
            f"{ENDPOINT} -o g",
            1,
            "text after the end",
        ),
        (
            f"generate --captions world/captions.json {ENDPOINT} -o g --image-prefix ../x",
            1,
            "picture outside the folder",
        ),
        ("generate --write-prompts world", 1, "not empty"),
        ("generate --write-prompts empty.json", 2, "is a file"),
        ("curate dir -o c", 1, "no pictures"),
        ("curate world/images -o empty.json", 2, "is a file"),
        ("validate empty.json", 1, "no sample"),
        ("validate world/instruct.json --tokenizer nowhere", 1, "no tokenizer"),
        ("stats bad.json", 1, "not JSON"),
        ("stats empty.json", 1, "no sample"),
        ("preview empty.json", 1, "no sample"),
        ("preview world/instruct.json --html dir", 2, "is a directory"),
        ("split world/instruct.json --part a=x -o s", 2, "no part"),
        ("split world/instruct.json --part a=1 -o empty.json", 2, "is a file"),
        ("split empty.json --part a=1 -o s", 1, "no samples"),
        ("mix nowhere.json -o m.json", 2, "not there"),
        ("mix world/instruct.json -o m.txt", 2, ".txt is no form"),
        ("mix empty.json=2x -o m.json", 1, "no samples"),
        ("mix bad.json -o m.json", 1, "not JSON"),
        ("convert scienceqa world/instruct.json -o o.json", 1, "one JSON object"),
        ("convert scienceqa world/scienceqa/problems.json --format X -o o.json", 2, "QCM"),
        (
            "convert scienceqa world/scienceqa/problems.json --split nope -o o.json "
            "--splits world/scienceqa/pid_splits.json",
            2,
            "train, val, test",
        ),
        (
            "convert vqa world/v2_OpenEnded_mscoco_scenes_questions.json -o o.json",
            2,
            "--annotations is missing",
        ),
        ("convert coco world/captions.json -o o.txt", 2, ".txt is no form"),
        ("convert llava world/instruct.json --images dir -o shards", 1, "check --images"),
        ("convert llava world/instruct.json -o world", 1, "other things than shards"),
        ("filter world/captions.json -o f.json", 1, "llava data convert coco"),
        ("filter world/stage1.json -o f", 2, "no form"),
        ("filter world/stage1.json -o f.json --least 999", 1, "lower --least"),
        ("filter empty.json -o f.json", 1, "no captions"),
        ("pull mix665k -o empty.json", 2, "is a file"),
    ],
)
def test_a_mistake_costs_two_lines_and_leaves_nothing(
    data: Run, desk: Path, monkeypatch: pytest.MonkeyPatch, line: str, code: int, said: str
) -> None:
    monkeypatch.chdir(desk)
    before = {path: path.read_bytes() for path in desk.rglob("*") if path.is_file()}
    got, out, err = data(*line.split())
    assert (got, out) == (code, ""), err
    error, hint = err.splitlines()[-2:]
    assert error.startswith("error: ") and hint.startswith("hint: ")
    assert said in err
    assert {path: path.read_bytes() for path in desk.rglob("*") if path.is_file()} == before


def test_what_cannot_be_written_is_said_with_a_remedy(
    data: Run, desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(desk)
    page = desk / "empty.json" / "page.html"
    code, _, err = data("preview", "world/instruct.json", "--html", page)
    assert code == 1
    assert err.splitlines()[-1] == "hint: a file is in the way: name another path"


def test_failures_are_one_json_document_where_json_is_asked_for(data: Run, desk: Path) -> None:
    code, out, err = data("stats", desk / "empty.json", "--json")
    assert (code, out) == (1, "")
    assert set(json.loads(err)["error"]) == {"type", "message", "hint"}
