"""Every format, read back by what consumes it."""

from __future__ import annotations

import csv
import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as PIL

from llava_cli.captioning import xmp
from llava_cli.captioning.keepers import keeper_of, output_of
from llava_cli.captioning.run import Existing, Job, Outcome, Run
from llava_cli.captioning.sources import Sources
from llava_cli.captioning.wording import Template
from llava_cli.engines.base import Sampling
from tests.llava_cli.cli.fake_llava import FakeEngine, fake_files

CAPTION = 'a "PICTURE", 1 < 2 & \u00fc \U0001f642 \u2028 ]]> \\ end'


def caption(
    folder: Path,
    format: str,
    out: Path | None = None,
    existing: Existing = "skip",
    script: str = CAPTION,
    *paths: str,
) -> list[Outcome]:
    """A whole run without the command line."""
    sources = Sources(paths or (str(folder),), recursive=True)
    keeper = keeper_of(output_of(format, sources.root, out))
    job = Job(sources, Template("what?"), Sampling(), existing=existing)
    keeper.begin(job.fingerprint("fake"))
    run = Run(job, keeper, lambda: FakeEngine(fake_files(None), [script]))
    outcomes = list(run.outcomes())
    keeper.publish(whole=True)
    keeper.journal.close(finished=True, all_seen=True)
    return outcomes


def said(name: str) -> str:
    return CAPTION.replace("PICTURE", name)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "below").mkdir(parents=True)
    for name in ("a.jpg", "a.png", "Größe, mit Komma.jpg", "below/d.jpg"):
        PIL.new("RGB", (40, 30), "red").save(folder / name)
    return folder


NAMES = ("a.jpg", "a.png", "Größe, mit Komma.jpg", "below/d.jpg")


@pytest.mark.parametrize("elsewhere", [False, True])
def test_imagefolder_loads_with_datasets(
    photos: Path, tmp_path: Path, elsewhere: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    (photos / "broken.jpg").write_bytes(b"no picture")
    out = tmp_path / "out" if elsewhere else None
    outcomes = caption(photos, "imagefolder", out)
    assert [o.item.relative for o in outcomes if o.kind == "failed"] == ["broken.jpg"]
    loaded: Any = datasets.load_dataset(
        "imagefolder", data_dir=str(out or photos), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert set(loaded.features) == {"image", "text"}
    assert sorted(loaded["text"]) == sorted(said(Path(name).name) for name in NAMES)
    assert {row["image"].size for row in loaded} == {(40, 30)}


@pytest.mark.filterwarnings("ignore")
def test_webdataset_reads_the_shards(photos: Path, tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    caption(photos, "webdataset", tmp_path / "out")
    shard = str(tmp_path / "out" / "captions-000000.tar")
    samples = list(webdataset.WebDataset(shard, shardshuffle=False).decode("pil"))
    assert len(samples) == len({sample["__key__"] for sample in samples}) == 4
    assert {sample["txt"] for sample in samples} == {said(Path(name).name) for name in NAMES}
    for sample in samples:
        picture = sample.get("jpg") or sample.get("png")
        assert picture.size == (40, 30)
        assert sample["json"]["caption"] == sample["txt"]


def test_a_webdataset_tar_is_captioned(photos: Path, tmp_path: Path) -> None:
    caption(photos, "webdataset", tmp_path / "in")
    shard = str(tmp_path / "in" / "captions-000000.tar")
    outcomes = caption(tmp_path, "jsonl", tmp_path / "c.jsonl", "skip", "PICTURE", shard)
    assert [o.kind for o in outcomes] == ["written"] * 4
    rows = [json.loads(line) for line in (tmp_path / "c.jsonl").read_text().splitlines()]
    assert {row["path"] for row in rows} == {
        f"in/captions-000000.tar/{n:09d}.{s}" for n, s in enumerate(("jpg", "jpg", "png", "jpg"))
    } or len(rows) == 4
    assert {row["caption"] for row in rows} == {row["path"].rsplit("/", 1)[1] for row in rows}
    again = caption(tmp_path, "webdataset", tmp_path / "out", "skip", "new", shard)
    assert [o.kind for o in again] == ["written"] * 4


def test_shards_are_cut_and_old_ones_go(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llava_cli.captioning.shards.SHARD_SAMPLES", 3)
    out = tmp_path / "out"
    caption(photos, "webdataset", out)
    assert sorted(p.name for p in out.iterdir()) == ["captions-000000.tar", "captions-000001.tar"]
    PIL.new("RGB", (9, 9)).save(photos / "new.jpg")
    assert sorted(o.kind for o in caption(photos, "webdataset", out)) == [
        *["skipped"] * 4,
        "written",
    ]
    assert sorted(p.name for p in out.iterdir()) == ["captions-000000.tar", "captions-000001.tar"]


def test_kohya_metadata(photos: Path) -> None:
    """{full path: {"caption": text}}, as its merge_captions_to_metadata.py --full_path writes."""
    target = photos / "meta_cap.json"
    key = str(photos / "a.jpg")
    target.write_text(json.dumps({key: {"tags": "1girl", "train_resolution": [512, 512]}}))
    caption(photos, "kohya")
    found = json.loads(target.read_text(encoding="utf-8"))
    assert set(found) == {str(photos / name) for name in NAMES}
    assert all(Path(key).is_file() for key in found)
    assert found[key]["tags"] == "1girl"
    assert found[key]["train_resolution"] == [512, 512]
    assert found[key]["caption"] == " ".join(said("a.jpg").split())


def test_csv_by_the_csv_module(photos: Path) -> None:
    caption(photos, "csv")
    with (photos / "captions.csv").open(encoding="utf-8", newline="") as file:
        rows = {row["path"]: row["caption"] for row in csv.DictReader(file)}
    assert rows == {name: said(Path(name).name) for name in NAMES}


@pytest.mark.parametrize("format", ["json", "jsonl"])
def test_json(photos: Path, format: str) -> None:
    caption(photos, format)
    text = (photos / f"captions.{format}").read_text(encoding="utf-8")
    rows = json.loads(text) if format == "json" else [json.loads(x) for x in text.splitlines()]
    assert {row["path"]: row["caption"] for row in rows} == {
        name: said(Path(name).name) for name in NAMES
    }


@pytest.mark.parametrize("format", ["json", "jsonl", "csv", "imagefolder", "kohya"])
@pytest.mark.parametrize("existing", ["skip", "overwrite", "append"])
def test_an_earlier_file_is_continued(photos: Path, format: str, existing: Existing) -> None:
    (photos / "a.png").rename(photos / "later.png")
    caption(photos, format, script="first")
    (photos / "later.png").rename(photos / "a.png")
    outcomes = caption(photos, format, None, existing, "second")
    kinds = {o.item.relative: o.kind for o in outcomes}
    assert kinds["a.png"] == "written"
    assert kinds["a.jpg"] == ("skipped" if existing == "skip" else "written")
    captions = {o.item.relative: o.caption for o in outcomes}
    joined = "first, second" if format == "kohya" else "first\nsecond"
    wanted = {"skip": "first", "overwrite": "second", "append": joined}[existing]
    assert captions["a.jpg"] == wanted
    assert captions["a.png"] == "second"
    assert all(o.kind == "skipped" for o in caption(photos, format, script="third"))


@pytest.mark.parametrize("format", ["json", "jsonl", "csv", "imagefolder", "kohya"])
def test_a_file_of_another_kind_is_not_overwritten(photos: Path, format: str) -> None:
    from llava_cli.captioning.tables import FILES
    from llava_cli.errors import DataError

    target = photos / FILES[format]
    target.write_text("x,y\n[1, 2]\n")
    with pytest.raises(DataError) as caught:
        caption(photos, format)
    assert caught.value.hint
    assert target.read_text() == "x,y\n[1, 2]\n"


def test_xmp_is_read_by_an_rdf_reader(photos: Path) -> None:
    (photos / "a.png").unlink()
    caption(photos, "xmp")
    root = ET.parse(photos / "a.xmp").getroot()
    assert root.tag == "{adobe:ns:meta/}xmpmeta"
    (item,) = root.iter(f"{{{xmp.RDF}}}li")
    assert item.text == said("a.jpg")
    assert item.get(xmp.LANG) == "x-default"


LIGHTROOM = b"""<?xpacket begin="\xef\xbb\xbf" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:crs="http://ns.adobe.com/camera-raw-settings/1.0/"
 xmlns:xmp="http://ns.adobe.com/xap/1.0/" crs:Exposure2012="+0.35" xmp:Rating="4"/>
</rdf:RDF></x:xmpmeta><?xpacket end="w"?>"""


def test_xmp_of_another_program_keeps_everything_else(photos: Path) -> None:
    (photos / "a.png").unlink()
    (photos / "a.xmp").write_bytes(LIGHTROOM)
    caption(photos, "xmp")
    data = (photos / "a.xmp").read_bytes()
    assert xmp.read_description(data) == said("a.jpg")
    assert b'crs:Exposure2012="+0.35"' in data
    assert b'xmp:Rating="4"' in data
    assert {o.kind for o in caption(photos, "xmp")} == {"skipped"}


@pytest.mark.parametrize(
    "data", [b"<a><b></a>", b"<html/>", b"<!DOCTYPE x [<!ENTITY a 'b'>]><x/>", b"\xff\xfe"]
)
def test_what_is_no_xmp_is_a_failure_and_stays(photos: Path, data: bytes) -> None:
    (photos / "a.png").unlink()
    (photos / "a.xmp").write_bytes(data)
    kinds = {o.item.relative: o.kind for o in caption(photos, "xmp")}
    assert kinds["a.jpg"] == "failed"
    assert (photos / "a.xmp").read_bytes() == data


def test_sidecars_and_tars_do_not_go_together(photos: Path, tmp_path: Path) -> None:
    caption(photos, "webdataset", tmp_path / "in")
    shard = str(tmp_path / "in" / "captions-000000.tar")
    outcomes = caption(tmp_path, "txt", None, "skip", "x", shard)
    assert {o.kind for o in outcomes} == {"failed"}
    assert "--format webdataset" not in outcomes[0].caption


def test_a_damaged_tar_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"no tar at all")
    (outcome,) = caption(
        tmp_path, "jsonl", tmp_path / "o.jsonl", "skip", "x", str(tmp_path / "x.tar")
    )
    assert outcome.kind == "failed"
