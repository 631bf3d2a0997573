"""`llava caption` with the engine a fake: what is written where, and what is said about it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as PIL

from llava_cli.captioning.keepers import FORMATS
from llava_cli.captioning.presets import PRESETS
from llava_cli.cli import caption as command
from tests.llava_cli.cli.conftest import InProcess, Run

ANSWER = ("it is ", "PICTURE")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three pictures, and one in a subfolder."""
    folder = tmp_path / "photos"
    (folder / "below").mkdir(parents=True)
    for name in ("a.jpg", "b.png", "c.webp", "below/d.jpg"):
        PIL.new("RGB", (40, 30), "red").save(folder / name)
    return folder


def texts(folder: Path) -> dict[str, str]:
    """All text files and what they hold."""
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*.txt"))}


def prompts(llava: InProcess) -> list[str]:
    assert llava.engine is not None
    return sorted(conversation.messages[-1].text for conversation, _ in llava.engine.asked)


# ---- what is written


def test_each_picture_gets_a_file_beside_it(llava: InProcess, photos: Path) -> None:
    ran = llava("caption", photos, script=ANSWER)
    assert (ran.code, ran.out) == (0, "")
    assert texts(photos) == {
        "a.txt": "it is a.jpg\n",
        "b.txt": "it is b.png\n",
        "c.txt": "it is c.webp\n",
    }
    assert "3 written, 0 skipped, 0 failed" in ran.err


def test_nothing_else_is_left_in_the_folder(llava: InProcess, photos: Path) -> None:
    llava("caption", photos, script=ANSWER)
    assert sorted(p.name for p in photos.iterdir()) == [
        *("a.jpg", "a.txt", "b.png", "b.txt", "below", "c.txt", "c.webp")
    ]


def test_subfolders_with_r(llava: InProcess, photos: Path) -> None:
    assert llava("caption", photos, "-r", script=ANSWER).code == 0
    assert texts(photos)["below/d.txt"] == "it is d.jpg\n"


def test_json_summary(llava: InProcess, photos: Path) -> None:
    (photos / "a.txt").write_text("mine\n")
    (photos / "bad.jpg").write_bytes(b"\xff\xd8\xff nothing more")
    ran = llava("caption", photos, "--json", "-q", script=ANSWER)
    assert ran.code == 5
    assert {k: ran.json[k] for k in ("written", "skipped", "failed")} == {
        **{"written": 2, "skipped": 1, "failed": 1}
    }
    assert [f["path"] for f in ran.json["failures"]] == [str(photos / "bad.jpg")]
    assert "damaged" in ran.json["failures"][0]["error"]
    assert ran.json["images_per_s"] > 0
    assert ran.error["type"] == "PartialFailure"
    assert ran.error["hint"]


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("skip", "mine\n"),
        ("overwrite", "it is a.jpg\n"),
        ("append", "mine, it is a.jpg\n"),
        ("prepend", "it is a.jpg, mine\n"),
    ],
)
def test_existing(llava: InProcess, photos: Path, mode: str, expected: str) -> None:
    (photos / "a.txt").write_text("mine\n")
    (photos / "b.txt").write_text("")  # an empty file is no caption
    llava("caption", photos, "--existing", mode, script=ANSWER)
    assert texts(photos)["a.txt"] == expected
    assert texts(photos)["b.txt"] == "it is b.png\n"


def test_a_second_run_does_nothing_and_loads_no_model(llava: InProcess, photos: Path) -> None:
    llava("caption", photos, script=ANSWER)
    before = {p.name: p.stat().st_mtime_ns for p in photos.iterdir()}
    llava.engine = None
    ran = llava("caption", photos)
    assert llava.engine is None
    assert "0 written, 3 skipped, 0 failed" in ran.err
    assert {p.name: p.stat().st_mtime_ns for p in photos.iterdir()} == before


@pytest.mark.parametrize("mode", ["overwrite", "append"])
def test_a_finished_run_is_no_excuse_for_the_next(
    llava: InProcess, photos: Path, mode: str
) -> None:
    llava("caption", photos, "--existing", mode, script=["one"])
    ran = llava("caption", photos, "--existing", mode, script=["two"])
    assert "3 written" in ran.err
    assert texts(photos)["a.txt"] == {"overwrite": "two\n", "append": "one, two\n"}[mode]


def test_out_keeps_the_order_of_folders(llava: InProcess, photos: Path, tmp_path: Path) -> None:
    llava("caption", photos, "-r", "-o", tmp_path / "out", script=["x"])
    assert set(texts(tmp_path / "out")) == {"a.txt", "b.txt", "c.txt", "below/d.txt"}
    assert texts(photos) == {}


# ---- two pictures, one sidecar


def test_pictures_that_would_share_a_sidecar_are_refused(llava: InProcess, photos: Path) -> None:
    PIL.new("RGB", (9, 9)).save(photos / "a.png")
    ran = llava("caption", photos, "--json", script=ANSWER)
    assert ran.code == 5
    assert [Path(f["path"]).name for f in ran.json["failures"]] == ["a.jpg", "a.png"]
    assert all("share" in f["error"] for f in ran.json["failures"])
    assert set(texts(photos)) == {"b.txt", "c.txt"}


def test_with_one_file_for_all_they_share_nothing(llava: InProcess, photos: Path) -> None:
    PIL.new("RGB", (9, 9)).save(photos / "a.png")
    assert llava("caption", photos, "--format", "jsonl", script=ANSWER).code == 0
    rows = [json.loads(line) for line in (photos / "captions.jsonl").read_text().splitlines()]
    assert [row["path"] for row in rows] == ["a.jpg", "a.png", "b.png", "c.webp"]


def test_a_filter_leaves_one_of_them(llava: InProcess, photos: Path) -> None:
    PIL.new("RGB", (9, 9)).save(photos / "a.png")
    assert llava("caption", photos, "--include", "*.jpg", script=ANSWER).code == 0
    assert texts(photos) == {"a.txt": "it is a.jpg\n"}


def test_far_apart_in_a_list_the_second_is_refused(llava: InProcess, photos: Path) -> None:
    PIL.new("RGB", (9, 9)).save(photos / "a.png")
    names = [photos / n for n in ("a.jpg", "b.png", "a.png", "a.jpg")]
    ran = llava("caption", *names, "--json", script=ANSWER)
    assert (ran.code, ran.json["written"], ran.json["failed"]) == (5, 2, 1)
    assert "a.jpg" in ran.json["failures"][0]["error"]


# ---- which pictures


def test_include_exclude_limit(llava: InProcess, photos: Path) -> None:
    llava("caption", photos, "-r", "--include", "*.jpg", "--exclude", "below/*", script=["x"])
    assert set(texts(photos)) == {"a.txt"}
    llava("caption", photos, "-r", "--limit", "1", script=["x"])
    assert set(texts(photos)) == {"a.txt", "b.txt"}


@pytest.mark.parametrize("options", [["-0"], ["-0", "--from-file", "-"]])
def test_a_list_separated_by_nul(llava: InProcess, photos: Path, options: list[str]) -> None:
    odd = photos / "li\nne.jpg"
    (photos / "a.jpg").rename(odd)
    names = b"\0".join(os.fsencode(p) for p in (odd, photos / "b.png")) + b"\0"
    assert llava("caption", *options, script=["x"], stdin=names).code == 0
    assert set(texts(photos)) == {"li\nne.txt", "b.txt"}


def test_a_list_of_lines_and_a_pattern(llava: InProcess, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "list").write_text(f"{photos}/a.jpg\r\n\n{photos}/b.png")
    llava("caption", "--from-file", tmp_path / "list", script=["x"])
    assert set(texts(photos)) == {"a.txt", "b.txt"}
    llava("caption", f"{photos}/**/*.jpg", script=["x"])
    assert set(texts(photos)) == {"a.txt", "b.txt", "below/d.txt"}


def test_sidecars_that_a_shells_pattern_names_are_left_alone(
    llava: InProcess, photos: Path
) -> None:
    llava("caption", photos, script=["x"])
    ran = llava("caption", *sorted(p for p in photos.iterdir() if p.is_file()), script=["x"])
    assert (ran.code, "0 written, 3 skipped, 0 failed" in ran.err) == (0, True)


# ---- what is asked and what becomes of the answer


def test_variables_are_filled_in(llava: InProcess, photos: Path) -> None:
    exif = PIL.Exif()
    exif[0x0132] = "2024:05:06 07:08:09"
    PIL.new("RGB", (9, 9)).save(photos / "a.jpg", exif=exif)
    (photos / "a.txt").write_text("old {stem}\n")
    prompt = "{stem}|{name}|{dir}|{caption}|{exif.date}|{{}}"
    options = ("--existing", "overwrite", "--include", "a.*", "--prompt", prompt)
    assert llava("caption", photos, *options, "--suffix", " ({dir})", script=["x"]).code == 0
    assert prompts(llava) == ["a|a.jpg|photos|old {stem}|2024-05-06|{}"]
    assert texts(photos)["a.txt"] == "x (photos)\n"


@pytest.mark.parametrize("name", list(PRESETS))
def test_presets(llava: InProcess, photos: Path, name: str) -> None:
    llava("caption", photos / "a.jpg", "--preset", name, script=["x"])
    assert prompts(llava) == [PRESETS[name].prompt]


def test_help_offers_what_there_is() -> None:
    """Written out in the command so that help imports nothing."""
    assert tuple(PRESETS) == command._PRESETS
    assert set(FORMATS) == set(command._FORMATS)


def test_prompt_from_a_file(llava: InProcess, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("what is\n{name}?\n")
    llava("caption", photos / "a.jpg", "--prompt-file", tmp_path / "p.txt", script=["x"])
    assert prompts(llava) == ["what is\na.jpg?"]


def test_the_answer_is_finished(llava: InProcess, photos: Path) -> None:
    options = ["--ban", "quite", "--trigger", "ohwx", "--prefix", "photo of ", "--max-words", "4"]
    script = ["  A Quite red,", "\n quite\x00 small square here and there  "]
    assert llava("caption", photos / "a.jpg", *options, script=script).code == 0
    assert texts(photos)["a.txt"] == "ohwx, photo of A red, small square\n"


def test_lead_ins_are_stripped_on_request(llava: InProcess, photos: Path) -> None:
    script = ["The image", " shows a red square."]
    llava("caption", photos / "a.jpg", script=script)
    assert texts(photos)["a.txt"] == "The image shows a red square.\n"
    again = ["--existing", "overwrite", "--strip-lead-in"]
    llava("caption", photos / "a.jpg", *again, script=script)
    assert texts(photos)["a.txt"] == "A red square.\n"


def test_an_empty_answer_is_a_failure(llava: InProcess, photos: Path) -> None:
    ran = llava("caption", photos, "--json", script=[" \n"])
    assert (ran.code, ran.json["failed"], texts(photos)) == (5, 3, {})
    assert "said nothing" in ran.json["failures"][0]["error"]


# ---- failures


def test_retry_failed_tries_only_those(llava: InProcess, photos: Path) -> None:
    good = (photos / "b.png").read_bytes()
    (photos / "b.png").write_bytes(good[:40])
    assert llava("caption", photos, script=["x"]).code == 5
    PIL.new("RGB", (9, 9)).save(photos / "new.jpg")
    (photos / "b.png").write_bytes(good)
    ran = llava("caption", photos, "--retry-failed", "--json", script=["y"])
    assert (ran.code, ran.json["written"], ran.json["skipped"]) == (0, 1, 0)
    assert texts(photos)["b.txt"] == "y\n"
    assert "new.txt" not in texts(photos)
    assert not list(photos.glob(".llava*"))


def test_on_error_stop(llava: InProcess, photos: Path) -> None:
    (photos / "0.jpg").write_bytes(b"no")
    ran = llava("caption", photos, "--on-error", "stop", script=["x"])
    assert ran.code == 5
    assert "stopped at a picture that failed" in ran.err
    (photos / "0.jpg").unlink()
    assert llava("caption", photos, script=["x"]).code == 0
    assert len(texts(photos)) == 3


HOSTILE: dict[str, Any] = {
    "empty.jpg": b"",
    "cut.png": None,
    "page.jpg": b"<!doctype html><html></html>",
    "text.png": b"just words",
    "zip.webp": b"PK\x03\x04" + b"\0" * 50,
    "drawing.svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "phone.heic": b"\0\0\0\x18ftypheic" + b"\0" * 50,
    "bomb.png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\x01\x86\xa0\0\x01\x86\xa0\x08\x02\0\0\0",
    "raw.dng": b"II*\0" + b"\0" * 30,
}


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX files")
def test_hostile_files_are_named_and_the_rest_is_captioned(llava: InProcess, photos: Path) -> None:
    for name, data in HOSTILE.items():
        (photos / name).write_bytes(data or (photos / "b.png").read_bytes()[:60])
    (photos / "dangling.jpg").symlink_to("nowhere.jpg")
    (photos / "loop.jpg").symlink_to("loop.jpg")
    os.mkfifo(photos / "pipe.jpg")
    names = {*HOSTILE, "dangling.jpg", "loop.jpg", "pipe.jpg"}
    odd = os.fsdecode(b"n\xfft utf8 \x1b[2J.jpg")
    (photos / odd).write_bytes(b"no")
    ran = llava("caption", photos, "--json", script=ANSWER)
    assert ran.code == 5
    assert {Path(f["path"]).name for f in ran.json["failures"]} == {*names, odd}
    assert set(texts(photos)) == {"a.txt", "b.txt", "c.txt"}
    shown = llava("caption", photos, "-q", script=ANSWER)
    assert all(name in shown.err for name in names)
    assert "\x1b" not in shown.err


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="needs permissions")
def test_a_folder_without_permission_is_a_failure(llava: InProcess, photos: Path) -> None:
    (photos / "below").chmod(0)
    ran = llava("caption", photos, "-r", "--json", script=["x"])
    (photos / "below").chmod(0o700)
    assert (ran.code, ran.json["written"], ran.json["failed"]) == (5, 3, 1)


# ---- looking first


def test_dry_run_writes_nothing_and_loads_nothing(llava: InProcess, photos: Path) -> None:
    (photos / "a.txt").write_text("mine")
    before = sorted(photos.rglob("*"))
    ran = llava("caption", photos, "--dry-run")
    assert (ran.code, llava.engine) == (0, None)
    assert ran.out.splitlines() == [
        f"{photos / name}.{suffix} -> {photos / name}.txt"
        for name, suffix in (("b", "png"), ("c", "webp"))
    ]
    assert "would write 2, skip 1, refuse 0" in ran.err
    assert sorted(photos.rglob("*")) == before
    document = llava("caption", photos, "--dry-run", "--json").json
    assert (document["would_write"], document["written"], document["skipped"]) == (2, 0, 1)


@pytest.mark.parametrize("format", ["txt", "jsonl", "imagefolder", "webdataset"])
def test_preview_shows_and_writes_nothing(llava: InProcess, photos: Path, format: str) -> None:
    before = sorted(photos.rglob("*"))
    ran = llava("caption", photos, "--preview", "2", "--format", format, script=ANSWER)
    assert ran.code == 0
    assert ran.out == f"{photos}/a.jpg\nit is a.jpg\n\n{photos}/b.png\nit is b.png\n\n"
    assert sorted(photos.rglob("*")) == before
    document = llava("caption", photos, "--preview", "2", "--json", script=ANSWER).json
    assert document["previews"][0] == {"path": f"{photos}/a.jpg", "caption": "it is a.jpg"}


# ---- what is refused before anything happens


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        ([], 2, "no pictures were named"),
        (["missing"], 4, "no such file or folder"),
        (["EMPTY"], 2, "no pictures in"),
        (["PHOTOS", "--prompt", "{stm}"], 2, "did you mean {stem}?"),
        (["PHOTOS", "--prompt", " "], 2, "empty"),
        (["PHOTOS", "--prompt", "x", "--preset", "ocr"], 2, "exclude each other"),
        (["PHOTOS", "--prompt-file", "missing"], 2, "missing"),
        (["PHOTOS", "--batch-size", "0"], 2, "auto or a number"),
        (["PHOTOS", "--format", "yaml"], 2, "yaml"),
        (["PHOTOS", "--background", "nocolour"], 2, "nocolour"),
        (["--from-file", "missing"], 2, "no such list"),
        (["PHOTOS", "--dry-run", "--html", "x.html"], 2, "--html"),
    ],
)
def test_refusals(
    llava: InProcess, photos: Path, tmp_path: Path, arguments: list[str], code: int, word: str
) -> None:
    (tmp_path / "empty").mkdir()
    places = {"PHOTOS": str(photos), "EMPTY": str(tmp_path / "empty")}
    ran = llava("caption", *(places.get(a, a) for a in arguments))
    assert ran.code == code
    assert word in ran.err
    assert "hint: " in ran.err
    assert texts(photos) == {}


def test_a_missing_model_leaves_nothing_behind(run: Run, photos: Path) -> None:
    ran = run("caption", photos, "-m", "no/such-model")
    assert ran.code == 3
    assert not list(photos.glob(".*"))


def test_help_reads_like_the_readme(run: Run) -> None:
    out = run("caption", "--help").out
    assert out.index("Caption many pictures") < out.index("Examples:") < out.index("Usage:")
    assert "llava caption photos --retry-failed" in out


def test_html_shows_captions_and_failures(llava: InProcess, photos: Path, tmp_path: Path) -> None:
    (photos / "a.txt").write_text("from before\n")
    (photos / "bad.jpg").write_bytes(b"no")
    report = tmp_path / "out" / "report.html"
    ran = llava("caption", photos, "--html", report, script=ANSWER)
    assert ran.code == 5
    text = report.read_text(encoding="utf-8")
    assert "from before" in text
    assert "it is b.png" in text
    assert "is text, not a picture" in text
    assert text.count("<figure ") == 4
