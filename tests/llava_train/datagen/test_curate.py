"""Curation: every picture is described once, continued when short, repaired, filtered, listed."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from llava_cli.cli import main
from llava_cli.conversation import Conversation
from tests.llava_train.datagen.conftest import read_lines
from tests.llava_train.datagen.server import Reply, serving

LONG = "The picture shows a red wall and a blue door in it. " * 10
Curate = Callable[..., tuple[int, Any, str]]


class Describer:
    """Says what a test tells it to; remembers what it was asked."""

    name, device, prompt_format = "fake", "cpu", "plain"

    def __init__(self) -> None:
        self.asked: list[Conversation] = []
        self.loaded = 0
        self.short = False

    def generate(self, conversation: Conversation, sampling: Any) -> Iterator[Any]:
        self.asked.append(conversation)
        first = len(conversation.messages) == 1
        text = "A short start." if first and self.short else LONG
        for word in text.split(" "):
            yield SimpleNamespace(text=f"{word} ")

    def close(self) -> None:
        """Nothing to free."""


@pytest.fixture
def describer(monkeypatch: pytest.MonkeyPatch) -> Describer:
    """In place of every engine."""
    from llava_cli.cli import models

    found = Describer()

    def load(*_: object) -> Describer:
        found.loaded += 1
        return found

    monkeypatch.setattr(models, "load", load)
    return found


@pytest.fixture
def curate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Curate:
    """`llava data curate` over three pictures, one of them broken."""
    pictures = tmp_path / "pictures"
    (pictures / "sub").mkdir(parents=True)
    for name, colour in (("a.png", "red"), ("sub/b.png", "blue")):
        Image.new("RGB", (8, 8), colour).save(pictures / name)
    (pictures / "c.jpg").write_bytes(b"no picture")

    def run(*more: str) -> tuple[int, Any, str]:
        out = tmp_path / "out"
        code = main(["data", "curate", str(pictures), "-o", str(out), "--json", *more])
        said, err = capsys.readouterr()
        return code, json.loads(said) if said else None, err

    return run


def test_descriptions_are_repaired_and_listed_to_check(
    curate: Curate, describer: Describer, tmp_path: Path
) -> None:
    with serving(
        lambda body, times: Reply(f"Repaired: {body['messages'][1]['content']}")
    ) as server:
        options = ("--llm", "fixer", "--base-url", server.url)
        code, document, _ = curate(*options)
        assert code == 5  # the broken picture
        assert (document["written"], document["missing"]) == (2, 1)
        assert [len(c.images) for c in describer.asked] == [1, 1]
        assert {body["model"] for body in server.asked} == {"fixer"}
        assert [m["role"] for m in server.asked[0]["messages"]] == ["system", "user"]
        code, document, _ = curate(*options)
        assert (document["described_now"], describer.loaded) == (0, 1)
        assert len(server.asked) == 1  # both descriptions are equal
    samples = json.loads((tmp_path / "out" / "curated.json").read_text())
    assert [row["image"] for row in samples] == ["a.png", "sub/b.png"]
    assert samples[0]["conversations"][1]["value"] == f"Repaired: {LONG.strip()}"
    with (tmp_path / "out" / "check.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["before_repair"] == LONG.strip() and rows[0]["keep"] == ""
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert (card["describing_model"], card["repairing_model"]) == ("bundled", "fixer")


def test_what_is_short_is_continued_once(
    curate: Curate, describer: Describer, tmp_path: Path
) -> None:
    describer.short = True
    code, document, _ = curate()
    assert document["continued_now"] == 2
    assert [len(c.messages) for c in describer.asked] == [1, 3, 1, 3]
    samples = json.loads((tmp_path / "out" / "curated.json").read_text())
    assert samples[0]["conversations"][1]["value"] == f"A short start. {LONG.strip()}"


def test_apologies_are_left_out(curate: Curate, describer: Describer, tmp_path: Path) -> None:
    with serving(lambda body, times: Reply(f"I'm sorry, I cannot help. {LONG}")) as server:
        _, document, _ = curate("--llm", "fixer", "--base-url", server.url)
    assert document["rejected"] == {"refusal": 2} and document["written"] == 0
    assert len(read_lines(tmp_path / "out" / "rejected.jsonl")) == 2


def test_a_folder_without_pictures_is_an_error(
    describer: Describer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "curate", str(tmp_path), "-o", str(tmp_path / "out")]) == 1
    assert "holds no pictures" in capsys.readouterr().err
