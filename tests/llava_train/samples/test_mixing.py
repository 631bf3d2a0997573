"""Splits keep pictures together; mixtures have exactly the numbers asked for; both repeat."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from llava_train.samples.reading import samples
from tests.llava_train.samples.conftest import Run, sample, write


@pytest.fixture
def path(tmp_path: Path) -> Path:
    rows = [sample(f"{i}-{j}", f"{i}.png", f"Q{j}", "A") for j in range(3) for i in range(200)]
    rows += [sample(f"text-{i}", None) for i in range(50)]
    return write(tmp_path / "x.json", rows)


def test_a_picture_is_in_one_part_only(data: Run, path: Path, tmp_path: Path) -> None:
    out = tmp_path / "parts"
    parts = ("--part", "train=0.8", "--part", "val=0.1", "--part", "test=0.1")
    code, said, _ = data("split", path, *parts, "-o", out, "--json")
    counts = json.loads(said)["samples"]
    assert code == 0 and sum(counts.values()) == 650
    assert 450 < counts["train"] < 590
    found = {name: list(samples(out / f"{name}.json")) for name in counts}
    assert {name: len(rows) for name, rows in found.items()} == counts
    pictures = [{row.get("image") for row in rows} - {None} for rows in found.values()]
    assert sum(map(len, pictures)) == 200 == len(set.union(*pictures))
    card = json.loads((out / "card.json").read_text())
    assert card["samples"] == counts and len(card["source"]["sha256"]) == 64


def test_the_seed_decides(data: Run, path: Path, tmp_path: Path) -> None:
    def train(name: str, seed: str) -> bytes:
        out = tmp_path / name
        data("split", path, "--part", "a=1", "--part", "b=1", "-o", out, "--seed", seed)
        return (out / "a.json").read_bytes()

    assert train("1", "5") == train("2", "5") != train("3", "6")


@pytest.mark.parametrize(
    "part", ["train", "train=", "train=0", "train=x", "a/b=1", "=1", "a=1.2.3"]
)
def test_a_part_that_is_none_is_refused(data: Run, path: Path, tmp_path: Path, part: str) -> None:
    assert data("split", path, "--part", part, "-o", tmp_path / "o")[0] == 2
    assert not (tmp_path / "o").exists()


def test_a_mixture_has_the_numbers_asked_for(data: Run, tmp_path: Path) -> None:
    one = write(tmp_path / "one.json", [sample(f"a{i}") for i in range(10)])
    two = write(tmp_path / "two.jsonl", [sample(f"b{i}") for i in range(10)])
    three = write(tmp_path / "three.json", [sample(f"c{i}") for i in range(10)])
    four = write(tmp_path / "four.json", [sample(f"d{i}") for i in range(10)])
    out = tmp_path / "mix.json"
    code, said, _ = data(
        "mix", one, f"{two}=3", f"{three}=50%", f"{four}=2.5x", "-o", out, "--json"
    )
    assert code == 0 and json.loads(said)["samples"] == 10 + 3 + 5 + 25
    ids = [row["id"] for row in samples(out)]
    assert Counter(name[0] for name in ids) == {"a": 10, "b": 3, "c": 5, "d": 25}
    assert max(Counter(name for name in ids if name[0] != "d").values()) == 1
    assert set(Counter(name for name in ids if name[0] == "d").values()) == {2, 3}
    assert ids != sorted(ids)
    assert json.loads((tmp_path / "mix.json.card.json").read_text())["taken"][str(two)] == 3


def test_order_is_kept_or_shuffled_by_the_seed(data: Run, tmp_path: Path) -> None:
    rows = [sample(f"{i:03d}") for i in range(100)]
    path = write(tmp_path / "one.json", rows)

    def order(*options: str) -> list[str]:
        assert data("mix", path, "-o", tmp_path / "m.jsonl", *options)[0] == 0
        return [row["id"] for row in samples(tmp_path / "m.jsonl")]

    assert order("--no-shuffle") == [row["id"] for row in rows]
    assert order() == order("--seed", "0") != order("--seed", "1")
    assert sorted(order()) == [row["id"] for row in rows]


@pytest.mark.parametrize("amount", ["=11", "=0.5", "=x"])
def test_more_than_there_is_is_refused(data: Run, tmp_path: Path, amount: str) -> None:
    path = write(tmp_path / "one.json", [sample(f"{i}") for i in range(10)])
    assert data("mix", f"{path}{amount}", "-o", tmp_path / "m.json")[0] == 2


def test_a_file_is_not_mixed_into_itself(data: Run, tmp_path: Path) -> None:
    path = write(tmp_path / "one.json", [sample("a")])
    assert data("mix", path, "-o", path)[0] == 2
    assert list(samples(path)) == [sample("a")]
