"""LLaVA's published data comes from the Hub, with its terms said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants

from llava_train.samples.pull import DATA_SETS
from tests.llava_train.samples.conftest import Run


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Plays the Hub; gives what was asked of it."""
    asked: list[tuple[str, str]] = []

    def download(repo: str, file: str, *, repo_type: str, local_dir: Path) -> str:
        assert repo_type == "dataset"
        asked.append((repo, file))
        local_dir.mkdir(parents=True, exist_ok=True)
        (local_dir / file).write_text("[]")
        return str(local_dir / file)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return asked


@pytest.mark.parametrize("name", DATA_SETS)
def test_files_are_fetched_and_the_terms_are_shown(
    data: Run, hub: list[tuple[str, str]], tmp_path: Path, name: str
) -> None:
    code, out, err = data("pull", name, "-o", tmp_path / "d")
    wanted = DATA_SETS[name]
    assert code == 0
    assert hub == [(wanted.repo, file) for file in wanted.files]
    assert out.splitlines() == [str(tmp_path / "d" / file) for file in wanted.files]
    assert wanted.licence in err and str(wanted.samples) in err
    code, out, _ = data("pull", name, "-o", tmp_path / "d", "--pictures", "--json")
    document: dict[str, Any] = json.loads(out)
    assert document["licence"] == wanted.licence
    assert len(document["files"]) == len(wanted.files) + len(wanted.pictures)


def test_offline_nothing_is_asked(data: Run, hub: list[tuple[str, str]], tmp_path: Path) -> None:
    code, _, err = data("pull", "blip-558k", "-o", tmp_path / "d", "--offline")
    assert (code, hub) == (3, [])
    assert "offline" in err


def test_a_hub_that_cannot_be_reached_is_one_line(
    data: Run, hub: list[tuple[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> str:
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    code, _, err = data("pull", "mix665k", "-o", tmp_path / "d")
    assert code == 3 and "did not give" in err


def test_an_unknown_name_is_a_usage_error(data: Run) -> None:
    assert data("pull", "laion-5b")[0] == 2
