"""LLaVA's published data comes through the Hub's own client: with its terms, whole, and resumed."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llava_train.samples.pull import DATA_SETS
from tests import hub_server
from tests.hub_server import Fault, Hub, Repo
from tests.llava_cli.cli.conftest import process_environment
from tests.llava_train.samples.conftest import Run

REPO = "datasets/liuhaotian/LLaVA-Pretrain"
JSON, PICTURES = "blip_laion_cc_sbu_558k.json", "images.zip"


def filled(hub: Hub) -> dict[str, bytes]:
    """Every data set's repository on a Hub, with small contents; gives those of blip-558k."""
    noise = random.Random(1)
    for found in DATA_SETS.values():
        repo = hub.repos.setdefault(f"datasets/{found.repo}", Repo({}, license="cc-by-4.0"))
        for name in (*found.files, *found.pictures, "README.md"):
            repo.files.setdefault(name, noise.randbytes(200_000 if "." in name else 10))
    return hub.repos[REPO].files


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with hub_server.attached(monkeypatch, tmp_path / "home") as found:
        filled(found)
        yield found


def visible(folder: Path) -> set[str]:
    """What stands there under names of its own."""
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


@pytest.mark.parametrize("name", DATA_SETS)
def test_files_are_fetched_and_the_terms_are_shown(
    data: Run, hub: Hub, tmp_path: Path, name: str
) -> None:
    wanted, out = DATA_SETS[name], tmp_path / "d"
    content = hub.repos[f"datasets/{wanted.repo}"].files
    code, said, err = data("pull", name, "-o", out)
    assert code == 0, err
    assert said.splitlines() == [str(out / file) for file in wanted.files]
    assert wanted.licence in err and str(wanted.samples) in err and "cc-by-4.0" in err
    assert all((out / file).read_bytes() == content[file] for file in wanted.files)
    assert any(request.server == "cdn" for request in hub.requests)  # by way of the redirect
    assert "README.md" not in visible(out) and not visible(out) & set(wanted.pictures)

    fetched = len(hub.sent())
    code, said, _ = data("pull", name, "-o", out, "--pictures", "--json")
    document = json.loads(said)
    assert (code, document["licence_on_the_hub"]) == (0, "cc-by-4.0")
    assert len(hub.sent()) - fetched == len(wanted.pictures)  # what is there is not fetched again
    assert all((out / file).read_bytes() == content[file] for file in wanted.pictures)
    card = json.loads((out / f"{name}.card.json").read_text())
    assert (card["repo"], card["commit"]) == (wanted.repo, hub_server.COMMIT)
    assert set(card["files"]) == {*wanted.files, *wanted.pictures}
    assert wanted.terms in (out / f"{name}.card.md").read_text()


def test_the_terms_are_shown_before_anything_is_fetched(
    data: Run, hub: Hub, tmp_path: Path
) -> None:
    hub.faults = [Fault("/blob/|/resolve/", times=99, status=403)]
    code, said, err = data("pull", "blip-558k", "-o", tmp_path / "d")
    assert (code, said) == (3, "")
    lines = err.splitlines()
    assert "558128 samples" in lines[0] and "licence: " in lines[1]
    assert lines[-2].startswith("error: ") and lines[-1].startswith("hint: ")
    assert not (tmp_path / "d").exists() or not visible(tmp_path / "d")


def test_a_line_that_is_cut_again_and_again_is_taken_up(
    data: Run, hub: Hub, tmp_path: Path
) -> None:
    hub.faults = [Fault("/blob/", times=9, cut_after=30_000), Fault("/blob/", status=503)]
    assert data("pull", "blip-558k", "-o", tmp_path / "d")[0] == 0
    assert (tmp_path / "d" / JSON).read_bytes() == hub.repos[REPO].files[JSON]
    starts = [request.range for request in hub.sent()]
    assert starts[0] is None and len(set(starts)) > 3  # each went on behind the one before


def test_what_arrives_damaged_never_stands_under_its_name(
    data: Run, hub: Hub, tmp_path: Path
) -> None:
    hub.faults = [Fault("/blob/", times=99, change=lambda content: b"x" + content[1:])]
    code, _, err = data("pull", "blip-558k", "-o", tmp_path / "d")
    assert code == 3 and "checksum" in err
    assert not visible(tmp_path / "d")
    hub.faults = []
    assert data("pull", "blip-558k", "-o", tmp_path / "d")[0] == 0
    assert (tmp_path / "d" / JSON).read_bytes() == hub.repos[REPO].files[JSON]


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_killed_pull_goes_on_where_it_was(tmp_path: Path) -> None:
    out = tmp_path / "d"
    with hub_server.running() as hub:
        content = filled(hub)
        hub.faults = [Fault("/blob/", hold_after=150_000)]
        env = process_environment(None, hub_server.environment(hub, tmp_path / "home"))
        command = [sys.executable, "-m", "llava_cli", "data", "pull", "blip-558k", "-o", str(out)]
        killed = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert hub.held.wait(100)
        while not (parts := [p for p in out.glob(".*.incomplete") if p.stat().st_size > 0]):
            assert killed.poll() is None
            time.sleep(0.01)
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
        came = parts[0].stat().st_size
        assert not visible(out)
        hub.release.set()
        hub.requests.clear()
        done = subprocess.run(command, env=env, capture_output=True, timeout=200, check=False)
        assert done.returncode == 0, done.stderr
        assert [request.range for request in hub.sent()] == [f"bytes={came}-"]
    assert (out / JSON).read_bytes() == content[JSON]
    assert visible(out) == {JSON, "blip-558k.card.json", "blip-558k.card.md"}
    assert not list(out.glob("*.incomplete")) and not list(out.glob(".*.incomplete"))


@pytest.mark.parametrize(
    ("status", "said"),
    [(401, "no dataset"), (404, "no dataset"), (429, "too many"), (500, "HTTP 500")],
)
def test_a_hub_that_refuses_is_one_line(
    data: Run, hub: Hub, tmp_path: Path, status: int, said: str
) -> None:
    hub.faults = [Fault("/api/datasets/", times=99, status=status)]
    code, out, err = data("pull", "mix665k", "-o", tmp_path / "d")
    assert (code, out, len(err.splitlines())) == (3, "", 2)
    assert said in err


def test_a_hub_that_cannot_be_reached_is_one_line(
    data: Run, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_server.use_endpoint(monkeypatch, "http://127.0.0.1:9")
    code, _, err = data("pull", "mix665k", "-o", tmp_path / "d")
    assert (code, len(err.splitlines())) == (3, 2)
    assert "cannot be reached" in err


def test_a_file_of_the_persons_own_is_not_replaced(data: Run, hub: Hub, tmp_path: Path) -> None:
    (tmp_path / JSON).write_text("mine")
    code, _, err = data("pull", "blip-558k", "-o", tmp_path)
    assert code == 1 and "is there already" in err
    assert ((tmp_path / JSON).read_text(), hub.sent()) == ("mine", [])


def test_a_file_in_place_of_the_folder_is_a_usage_error(
    data: Run, hub: Hub, tmp_path: Path
) -> None:
    (tmp_path / "d").touch()
    code, _, err = data("pull", "blip-558k", "-o", tmp_path / "d")
    assert (code, hub.requests) == (2, []) and "is a file" in err


def test_offline_nothing_is_asked(data: Run, hub: Hub, tmp_path: Path) -> None:
    code, _, err = data("pull", "blip-558k", "-o", tmp_path / "d", "--offline")
    assert (code, hub.requests) == (3, [])
    assert "offline" in err


def test_an_unknown_name_is_a_usage_error(data: Run) -> None:
    assert data("pull", "laion-5b")[0] == 2
