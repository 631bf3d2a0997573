"""Sources from the Hub and results to it: what is asked for, and what a refusal looks like."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llava_cli.errors import LlavaError, ModelNotFound, UsageError
from llava_convert import hub


class Api:
    """Stands for huggingface_hub's, and remembers."""

    names: tuple[str, ...] = ()
    calls: list[tuple[str, dict[str, Any]]] = []
    failure: Exception | None = None

    def list_repo_files(self, repo: str, revision: str | None) -> tuple[str, ...]:
        return self.names

    def create_repo(self, repo: str, exist_ok: bool) -> str:
        if self.failure is not None:
            raise self.failure
        self.calls.append(("create", {"repo": repo, "exist_ok": exist_ok}))
        return f"https://hub/{repo}"

    def upload_folder(self, **arguments: Any) -> None:
        self.calls.append(("upload", arguments))


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> type[Api]:
    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    Api.calls, Api.failure = [], None
    return Api


@pytest.mark.parametrize(
    ("names", "wanted", "unwanted"),
    [
        (("model.safetensors", "pytorch_model.bin"), "*.safetensors", "pytorch_model*.bin"),
        (("pytorch_model.bin", "training_args.bin"), "pytorch_model*.bin", "*.safetensors"),
    ],
)
def test_pickles_are_fetched_only_where_there_is_nothing_else(
    api: type[Api], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, names: tuple[str, ...],
    wanted: str, unwanted: str,
) -> None:  # fmt: skip
    api.names = names
    asked: dict[str, Any] = {}

    def download(repo: str, **arguments: Any) -> str:
        asked.update(arguments, repo=repo)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert hub.fetch_folder("org/name@main", offline=False) == tmp_path
    assert asked["repo"] == "org/name" and asked["revision"] == "main"
    patterns = asked["allow_patterns"]
    assert wanted in patterns and unwanted not in patterns
    assert "mm_projector.bin" in patterns and "*.bin" not in patterns


def test_offline_a_model_that_was_never_fetched_is_missing() -> None:
    with pytest.raises(ModelNotFound, match="not on this disk"):
        hub.fetch_folder("nobody/nothing", offline=True)


def test_only_the_named_files_are_uploaded(api: type[Api], tmp_path: Path) -> None:
    files = [tmp_path / "m-Q8_0.gguf", tmp_path / "README.md"]
    (tmp_path / "secret.txt").write_text("mine")
    assert hub.push("org/m-gguf", tmp_path, files) == "https://hub/org/m-gguf"
    (first, _), (second, arguments) = api.calls
    assert (first, second) == ("create", "upload")
    assert arguments["allow_patterns"] == ["m-Q8_0.gguf", "README.md"]
    assert arguments["folder_path"] == tmp_path


def test_a_hub_that_does_not_answer_is_one_line(api: type[Api], tmp_path: Path) -> None:
    api.failure = ConnectionError("no route to host")
    with pytest.raises(LlavaError, match="no route to host") as caught:
        hub.push("org/m", tmp_path, [])
    assert caught.value.hint


@pytest.mark.parametrize(("repo", "offline"), [("just-a-name", False), ("org/name", True)])
def test_what_cannot_be_uploaded_is_refused_first(repo: str, offline: bool) -> None:
    with pytest.raises(UsageError):
        hub.check_target(repo, offline=offline)


@pytest.mark.parametrize(
    ("reference", "meant"),
    [("org/name", True), ("org/name@v1", True), ("./org/name", False), ("/a/b", False),
     ("name", False), ("a/b/c", False)],
)  # fmt: skip
def test_what_is_taken_for_a_hub_id(
    reference: str, meant: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert hub.is_hub_id(reference) == meant
    if reference == "org/name":
        (tmp_path / "org" / "name").mkdir(parents=True)
        assert not hub.is_hub_id(reference)
