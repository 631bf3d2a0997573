"""The choice of captions by noun phrases: exact caps, rare ones out, in two passes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from llava_train.samples import noun_filter
from llava_train.samples.noun_filter import count_phrases, kept, sampled
from llava_train.samples.phrases import noun_phrases, verbs
from llava_train.samples.reading import samples
from tests.llava_train.samples.conftest import Run, sample, write


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        ("a man riding a brown horse on the beach", ["man", "brown horse", "beach"]),
        ("Two dogs, and a cat!", ["two dogs", "cat"]),
        ("a parked car in front of the tall building", ["parked car", "front", "tall building"]),
        ("a car parked near a dining table", ["car", "dining table"]),
        ("3 of the 5", []),
        ("", []),
        ("Ein Café im Park", ["ein café im park"]),
        ("people walking slowly", ["people"]),
    ],
)
def test_phrases(text: str, phrases: list[str]) -> None:
    assert noun_phrases(text) == phrases


def test_verbs() -> None:
    assert list(verbs("What is the man holding while he walks past the building?")) == [
        "holding", "walks"
    ]  # fmt: skip


def words(text: str) -> list[str]:
    return text.split()


def chosen(texts: list[str], least: int, cap: int, seed: int = 0) -> list[str]:
    counts = count_phrases(texts, words, least)
    return list(kept(texts, str, words, counts, cap=cap, seed=seed))


def test_rare_phrases_bring_nothing_and_common_ones_exactly_the_cap() -> None:
    texts = ["rare"] * 2 + ["some"] * 3 + ["common"] * 1000 + ["common rare"] * 2 + ["odd"] * 2
    for seed in range(5):
        found = Counter(chosen(texts, least=3, cap=100, seed=seed))
        assert (found["odd"], found["some"]) == (0, 3)
        assert found["rare"] == found["common rare"] == 2  # in four captions together
        assert 98 <= found["common"] <= 100
    assert Counter(chosen(["common"] * 1000, 3, 100)) == {"common": 100}


def test_a_caption_stays_for_the_rarest_of_its_phrases() -> None:
    texts = ["common"] * 500 + ["common special"] * 5
    for seed in range(5):
        found = Counter(chosen(texts, 3, 10, seed))
        assert found["common special"] == 5
        assert found["common"] <= 10


def test_every_caption_of_a_common_phrase_is_as_likely() -> None:
    texts = [f"common n{i}" for i in range(20)]
    counts: Counter[str] = Counter()
    for seed in range(500):
        counts.update(chosen(texts, 3, 5, seed))
    assert sum(counts.values()) == 2500
    assert all(85 < n < 170 for n in counts.values())


def test_a_phrase_counts_once_a_caption() -> None:
    assert sorted(count_phrases(["a a a", "a b"], words, 1).often.values()) == [1, 2]


def test_counts_that_outgrow_memory_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"w{i % 97} w{i % 13} x" for i in range(2000)]
    whole = count_phrases(texts, words, 3)
    monkeypatch.setattr(noun_filter, "_IN_MEMORY", 7)
    assert count_phrases(texts, words, 3) == whole


def test_a_size_is_met_exactly() -> None:
    assert len(list(sampled(range(100), 100, 17, 1))) == 17
    assert list(sampled(range(5), 5, 9, 1)) == list(range(5))


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """CC3M's form: caption, tab, address."""
    lines = [f"a dog on the grass\thttp://x/{i}.jpg" for i in range(200)]
    lines += [f"a zebra near a tree\thttp://x/z{i}.jpg" for i in range(3)]
    lines += ["a single unicorn\thttp://x/u.jpg"]
    path = tmp_path / "cc3m.tsv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_the_command_writes_stage_1_samples(data: Run, table: Path, tmp_path: Path) -> None:
    out = tmp_path / "stage1.json"
    code, said, _ = data("filter", table, "-o", out, "--cap", "10", "--json")
    found = json.loads(said)
    assert code == 0
    assert (found["captions"], found["noun_phrases"], found["noun_phrases_counted"]) == (204, 5, 4)
    rows = list(samples(out))
    assert found["samples"] == found["pool"] == len(rows)
    texts = Counter(row["conversations"][1]["value"] for row in rows)
    assert texts["a zebra near a tree"] == 3 and texts["a single unicorn"] == 0
    assert 10 <= texts["a dog on the grass"] <= 20  # two phrases, ten each
    assert all(row["conversations"][0]["value"].count("<image>") == 1 for row in rows)
    assert len({row["id"] for row in rows}) == len(rows)
    assert (tmp_path / "stage1.json.card.json").exists()
    code, said, _ = data("filter", table, "-o", out, "--cap", "10", "--size", "5", "--json")
    assert json.loads(said)["samples"] == 5 == len(list(samples(out)))


def test_samples_and_rows_are_taken_too(data: Run, tmp_path: Path) -> None:
    rows = [sample(str(i), f"{i}.png", "Describe.", "a dog") for i in range(3)]
    path = write(tmp_path / "chat.json", rows)
    assert data("filter", path, "-o", tmp_path / "o.json")[0] == 0
    assert list(samples(tmp_path / "o.json")) == rows
    path = write(
        tmp_path / "rows.jsonl", [{"image": f"{i}.png", "caption": "a dog"} for i in range(3)]
    )
    assert data("filter", path, "-o", tmp_path / "o.json")[0] == 0
    assert [row["image"] for row in samples(tmp_path / "o.json")] == ["0.png", "1.png", "2.png"]


@pytest.mark.parametrize("text", ["", "[]", '[{"image": "a"}]', "caption\t\n", "[1]"])
def test_files_without_captions_are_refused(data: Run, tmp_path: Path, text: str) -> None:
    path = tmp_path / "x"
    path.write_text(text)
    assert data("filter", path, "-o", tmp_path / "o.json")[0] == 1
    assert not (tmp_path / "o.json").exists()


def test_an_unknown_tagger_is_a_usage_error(data: Run, table: Path, tmp_path: Path) -> None:
    assert data("filter", table, "-o", tmp_path / "o.json", "--tagger", "magic")[0] == 2
