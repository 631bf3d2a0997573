"""Downloads over a loopback Hub with the real client: whatever breaks, what is kept is whole."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants, hf_hub_download, snapshot_download

from llava_cli.errors import ModelInvalid, ModelNotFound
from llava_cli.models import cache, hub
from llava_cli.models.hub import HubModel
from tests import hub_server
from tests.hub_server import Fault, Hub, Repo

BIG = hashlib.sha256(b"seed").digest() * 4000
FILES = {
    "model-Q4_K_M.gguf": BIG,
    "mmproj-model-f16.gguf": BIG[:50_000],
    "README.md": b"---\nlicense: mit\n---\n",
}
MODEL = HubModel("org/name")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A Hub with one GGUF model, and a cache of its own."""
    with hub_server.attached(monkeypatch, tmp_path) as running:
        running.repos["org/name"] = Repo(dict(FILES))
        yield running


def pulled() -> hub.Found:
    return hub.download(hub.plan(MODEL))


def contents() -> dict[str, bytes]:
    """What the snapshot holds."""
    folder = cache.snapshot("org/name", None)
    assert folder is not None
    return {name: (folder / name).read_bytes() for name in cache.file_names(folder)}


def test_a_pull_leaves_exactly_the_files_in_the_hubs_own_cache(server: Hub) -> None:
    found = pulled()
    assert contents() == FILES
    assert found.path.read_bytes() == BIG
    assert found.mmproj is not None and found.mmproj.name == "mmproj-model-f16.gguf"
    assert hub.find(MODEL) == found
    before = len(server.requests)
    # the client itself takes it as its own: nothing is fetched again
    assert Path(hf_hub_download("org/name", "model-Q4_K_M.gguf")) == found.path
    assert Path(snapshot_download("org/name", local_files_only=True)) == found.path.parent
    assert [r.method for r in server.requests[before:] if r.server == "cdn"] == []


def test_what_the_client_fetched_is_found_and_not_fetched_again(server: Hub) -> None:
    folder = Path(snapshot_download("org/name"))
    found = hub.find(MODEL)
    assert found is not None and found.path.parent == folder
    server.requests.clear()
    assert hub.plan(MODEL, check=True).missing == ()
    assert server.sent() == []


@pytest.mark.parametrize("cut", [0, 1, 999, 1000, 65_536, 65_537, len(BIG) - 1])
def test_a_connection_cut_at_any_byte_is_resumed_there(server: Hub, cut: int) -> None:
    server.faults = [Fault(r"/blob/", cut_after=cut)]
    pulled()
    assert contents() == FILES
    ranges = [request.range for request in server.sent()[:2]]
    assert ranges == [None, f"bytes={cut}-" if cut else None]


def test_an_interrupted_pull_goes_on_where_it_stopped(server: Hub) -> None:
    server.faults = [Fault(r"/blob/", cut_after=100_000), Fault(r"/blob/", cut_after=0, times=99)]
    with pytest.raises(ModelNotFound, match="cannot be reached") as caught:
        pulled()
    assert caught.value.hint
    assert hub.find(MODEL) is None
    server.faults.clear()
    server.requests.clear()
    needed = hub.plan(MODEL)
    assert needed.missing_bytes == needed.bytes - 100_000
    hub.download(needed)
    assert server.sent()[0].range == "bytes=100000-"
    assert contents() == FILES


def test_progress_starts_at_what_is_there_and_ends_at_the_size(server: Hub) -> None:
    server.faults = [Fault(r"/blob/", cut_after=30_000), Fault(r"/blob/", cut_after=0, times=99)]
    with pytest.raises(ModelNotFound):
        pulled()
    server.faults.clear()
    told: list[tuple[str, int]] = []
    hub.download(hub.plan(MODEL), lambda file, there: told.append((file.name, there)))
    big = [there for name, there in told if name == "model-Q4_K_M.gguf"]
    assert big[0] == 30_000 and big[-1] == len(BIG) and big == sorted(big)
    assert {name for name, _ in told} == set(FILES)


def test_a_hub_that_ignores_ranges_gives_a_whole_file(server: Hub) -> None:
    server.faults = [Fault(r"/blob/", cut_after=5000), Fault(r"/blob/", ignores_range=True)]
    pulled()
    assert contents() == FILES


def test_old_bytes_that_are_wrong_are_thrown_away_once(server: Hub) -> None:
    blob = cache.repo_folder("org/name") / "blobs" / hashlib.sha256(BIG).hexdigest()
    blob.parent.mkdir(parents=True)
    part = blob.with_name(f"{blob.name}.incomplete")
    for wrong in (b"x" * 5000, b"x" * len(BIG), b"x" * (len(BIG) + 1)):
        blob.unlink(missing_ok=True)
        part.write_bytes(wrong)
        pulled()
        assert blob.read_bytes() == BIG
        assert not part.exists()


def test_a_wrong_checksum_is_an_error_and_nothing_is_kept(server: Hub) -> None:
    server.faults = [Fault(r"/blob/", times=99, change=lambda content: b"X" + content[1:])]
    with pytest.raises(ModelInvalid, match="arrived damaged") as caught:
        pulled()
    assert caught.value.exit_code == 3 and caught.value.hint
    assert hub.find(MODEL) is None
    assert not any(path.is_file() for path in (cache.repo_folder("org/name") / "blobs").iterdir())


@pytest.mark.parametrize("change", [lambda c: c + b"more", lambda c: c * 3])
def test_a_file_longer_than_announced_is_not_read_to_its_end(server: Hub, change: Any) -> None:
    server.faults = [Fault(r"/blob/", times=99, change=change)]
    with pytest.raises(ModelInvalid, match="longer than"):
        pulled()


def test_small_files_are_checked_too(server: Hub) -> None:
    server.faults = [Fault(r"README", times=99, change=lambda content: content[::-1])]
    with pytest.raises(ModelInvalid, match=r"README\.md of org/name arrived damaged"):
        pulled()


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_passing_refusal_is_tried_again(server: Hub, status: int) -> None:
    server.faults = [Fault(r"/api/", status=status), Fault(r"/blob/", status=status, times=2)]
    pulled()
    assert contents() == FILES


@pytest.mark.parametrize(
    ("status", "headers", "said", "remedy"),
    [
        (
            401,
            {"X-Error-Message": "Invalid credentials in Authorization header"},
            "token",
            "HF_TOKEN",
        ),
        (401, {}, "no model org/name on the Hub", "hf auth login"),
        (
            403,
            {"X-Error-Message": "no entry"},
            "forbids the download of org/name: no entry",
            "token",
        ),
        (403, {"X-Error-Code": "GatedRepo"}, "gated", "agree at"),
        (404, {}, "no model org/name on the Hub", "check the name"),
        (404, {"X-Error-Code": "RevisionNotFound"}, "no revision", "@"),
        (418, {}, "did not give", "later"),
        (429, {"Retry-After": "77"}, "too many requests", "in 77 s"),
        (429, {"RateLimit": '"api";r=0;t=55'}, "too many requests", "in 55 s"),
        (500, {}, "problem of its own", "later"),
        (503, {}, "HTTP 503", "later"),
    ],
)
@pytest.mark.parametrize("path", ["/api/", "/resolve/"])
def test_every_refusal_is_one_line_with_a_remedy(
    server: Hub, path: str, status: int, headers: dict[str, str], said: str, remedy: str
) -> None:
    server.faults = [Fault(path, status=status, headers=headers, times=99)]
    with pytest.raises(ModelNotFound, match=said) as caught:
        pulled()
    assert caught.value.exit_code == 3
    assert remedy in caught.value.hint
    assert "\n" not in caught.value.message + caught.value.hint


def test_a_gated_model_names_where_to_agree(server: Hub) -> None:
    server.repos["org/name"].gated = True
    with pytest.raises(ModelNotFound, match="gated") as caught:
        pulled()
    assert f"{server.url}/org/name" in caught.value.hint


def test_the_token_goes_to_the_hub_and_not_to_its_storage(
    server: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    server.repos["org/name"].token = "hf_secret"
    server.repos["org/name"].gated = True
    pulled()
    assert {request.authorization for request in server.sent("hub")} == {"Bearer hf_secret"}
    assert {request.authorization for request in server.sent("cdn")} == {None}


def test_silence_ends_in_an_error_that_says_so(
    server: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    server.faults = [Fault(r"/blob/", silent_s=30, times=2)]
    pulled()  # two silences are sat out
    assert contents() == FILES


def test_a_closed_port_is_named_with_its_address(
    server: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_server.use_endpoint(monkeypatch, "http://127.0.0.1:9")
    with pytest.raises(ModelNotFound, match=r"127\.0\.0\.1:9.* cannot be reached") as caught:
        hub.plan(MODEL)
    assert "--offline" in caught.value.hint


@pytest.mark.parametrize("endpoint", ["nonsense", "http://", "ftp://x", "http://[::1"])
def test_a_nonsense_endpoint_is_explained(
    server: Hub, monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    hub_server.use_endpoint(monkeypatch, endpoint)
    with pytest.raises(ModelNotFound, match="cannot be reached"):
        hub.plan(MODEL)


def test_an_answer_that_is_no_hub_is_explained(server: Hub) -> None:
    server.faults = [Fault("/api/", times=9, status=200, body=b"<html>")]
    with pytest.raises(ModelNotFound, match="no answer of a Hub"):
        hub.plan(MODEL)


@pytest.mark.parametrize(
    "name", ["../../evil.gguf", "/etc/evil.gguf", "a/../../b.gguf", "a\\b.gguf", "c:x.gguf"]
)
def test_a_name_that_leaves_its_folder_is_refused(server: Hub, name: str) -> None:
    server.repos["org/name"].files[name] = BIG
    with pytest.raises(ModelInvalid, match="no download may have"):
        hub.plan(MODEL)


def test_a_full_disk_is_found_before_the_first_byte(
    server: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})()
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(ModelNotFound, match="disk is full") as caught:
        pulled()
    assert server.sent() == [] and "HF_HOME" in caught.value.hint


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_disk_that_fills_up_on_the_way_is_explained(server: Hub) -> None:
    blobs = cache.repo_folder("org/name") / "blobs"
    blobs.mkdir(parents=True)
    part = blobs / f"{hashlib.sha256(BIG).hexdigest()}.incomplete"
    part.symlink_to("/dev/full")
    with pytest.raises(ModelNotFound, match="disk is full") as caught:
        pulled()
    assert "llava rm" in caught.value.hint


def test_a_damaged_file_in_the_cache_is_fetched_again(server: Hub) -> None:
    found = pulled()
    blob = found.path.resolve()
    blob.write_bytes(b"X" + BIG[1:])
    assert hub.plan(MODEL).missing == ()
    needed = hub.plan(MODEL, check=True)
    assert [file.name for file in needed.missing] == ["model-Q4_K_M.gguf"]
    hub.download(needed)
    assert contents() == FILES


def test_a_new_commit_replaces_what_main_means(server: Hub) -> None:
    pulled()
    new = Repo({**FILES, "model-Q4_K_M.gguf": BIG[::-1]}, commit="d" * 40)
    server.repos["org/name"] = new
    server.requests.clear()
    pulled()
    assert contents()["model-Q4_K_M.gguf"] == BIG[::-1]
    assert len(server.sent()) == 1  # what stayed the same is not fetched again
    assert hub.find(HubModel("org/name", hub_server.COMMIT)) is not None


def test_a_branch_and_a_commit_can_be_named(server: Hub) -> None:
    server.repos["org/name"].branches = ("main", "v2")
    for revision in ("v2", hub_server.COMMIT):
        model = HubModel("org/name", revision)
        hub.download(hub.plan(model))
        assert hub.find(model) is not None
    assert hub.find(MODEL) is None


def test_two_pulls_at_once_share_one_download(server: Hub) -> None:
    server.faults = [Fault("/blob/", hold_after=2000)]
    needed = hub.plan(MODEL)
    threads = [threading.Thread(target=hub.download, args=(needed,)) for _ in range(3)]
    threads[0].start()
    assert server.held.wait(60)
    for thread in threads[1:]:
        thread.start()
    server.release.set()
    for thread in threads:
        thread.join(60)
    assert contents() == FILES
    assert len(server.sent()) == 2  # one of each large file


def test_without_links_the_files_themselves_lie_in_the_snapshot(
    server: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(Path, "symlink_to", refused)
    pulled()
    assert contents() == FILES
    server.requests.clear()
    assert hub.plan(MODEL, check=True).missing == ()
    assert hub.download(hub.plan(MODEL)) == hub.find(MODEL)
    assert server.sent() == []


def test_offline_uses_the_cache_and_names_the_pull_otherwise(server: Hub) -> None:
    with pytest.raises(ModelNotFound, match="llava is offline") as caught:
        hub.fetch(MODEL, offline=True)
    assert "llava pull org/name" in caught.value.hint
    pulled()
    server.requests.clear()
    assert hub.fetch(MODEL, offline=True).path.read_bytes() == BIG
    assert hub.fetch(MODEL, offline=False).path.read_bytes() == BIG
    assert server.requests == []


def test_consent_is_asked_before_anything_is_fetched(server: Hub) -> None:
    asked: list[int] = []

    def refuse(plan: hub.Plan) -> None:
        asked.append(plan.missing_bytes)
        raise ModelNotFound("no", "no")

    with pytest.raises(ModelNotFound):
        hub.fetch(MODEL, offline=False, consent=refuse)
    assert asked == [sum(map(len, FILES.values()))]
    assert server.sent() == []
