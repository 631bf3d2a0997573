"""Counts are exact; pages stand alone and carry nothing that is not escaped."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from llava_train.samples.draws import reservoir
from tests.llava_train.samples.conftest import Run, sample, write

EVIL = "<script>alert(1)</script>&\"'"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    rows = [
        sample("a", "0.png", "What is the man riding?", "A horse.", "Where?", "On a beach.",
               kind="conversation"),
        sample("b", "0.png", "Describe the horse.", "word " * 45, kind="detail"),
        sample("c", None, "What is two and two?", "Four."),
        {"id": "broken"},
    ]  # fmt: skip
    return write(tmp_path / "x.json", rows)


def test_counts(data: Run, path: Path) -> None:
    code, out, _ = data("stats", path, "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["samples"], found["left_out"], found["questions"]) == (3, 1, 4)
    assert (found["pictures"], found["text_only"]) == (1, 1)
    assert found["kinds"] == {"conversation": 1, "detail": 1, "unknown": 1}
    assert found["turns"] == {"1": 2, "2": 1}
    assert found["words_per_answer"] == {"0": 3, "40": 1}
    assert found["words_per_answer_mean"] == pytest.approx((2 + 3 + 45 + 1) / 4)
    assert found["nouns"] == {"two": 2, "man": 1, "horse": 1}
    assert found["verbs"]["riding"] == found["verbs"]["describe"] == 1
    assert found["openings"]["what is"] == 2
    assert found["tokens_per_sample"] == {}


def test_tokens_are_counted_under_a_tokenizer(data: Run, path: Path) -> None:
    _, out, _ = data("stats", path, "--json", "--tokenizer", "llava-demo", "--image-tokens", "36")
    assert sum(json.loads(out)["tokens_per_sample"].values()) == 3


class Page(HTMLParser):
    """What a browser would see."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_statistics_make_a_page_of_their_own(data: Run, path: Path, tmp_path: Path) -> None:
    html = tmp_path / "stats.html"
    assert data("stats", path, "--html", html, "-q")[0] == 0
    page = Page(html.read_text())
    assert "svg" in page.tags and "script" not in page.tags and page.loads == []
    assert "riding" in page.text


def test_a_preview_shows_pictures_faults_and_nothing_raw(data: Run, tmp_path: Path) -> None:
    Image.new("RGB", (900, 30), "red").save(tmp_path / "0.png")
    rows = [
        sample(EVIL, "0.png", EVIL, EVIL),
        sample("b", "none.png"),
        sample("c", "../0.png"),
        {"id": "d", "image": "0.png", "conversations": [{"from": "gpt", "value": 5}, 7]},
        "text",
    ]
    html = tmp_path / "p.html"
    path = write(tmp_path / "x.json", rows)
    assert data("preview", path, "--images", tmp_path, "--html", html, "-q")[0] == 0
    page = Page(html.read_text())
    assert "script" not in page.tags and EVIL in page.text
    assert page.tags.count("section") == 5 and page.tags.count("img") == 2
    assert all(load.startswith("data:image/jpeg;base64,") for load in page.loads)
    assert "no such file" in page.text and "bad_image" in page.text and "bad_turn" in page.text


def test_the_terminal_shows_samples_with_their_faults(data: Run, path: Path) -> None:
    code, out, _ = data("preview", path, "--n", "10")
    assert code == 0
    assert "human: <image>\nWhat is the man riding?" in out and "gpt: A horse." in out
    assert "! no_conversations" in out
    _, out, _ = data("preview", path, "--n", "1", "--json")
    assert json.loads(out)["id"] == "a"


def test_chance_is_fair_and_repeatable() -> None:
    counts = [0] * 10
    for seed in range(400):
        for row in reservoir(range(10), 3, seed):
            counts[row] += 1
    assert sum(counts) == 1200 and all(80 < n < 160 for n in counts)
    assert reservoir(range(99), 5, 1) == reservoir(range(99), 5, 1) != reservoir(range(99), 5, 2)
    assert reservoir(range(2), 5, 1) == [0, 1]
