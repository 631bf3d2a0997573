"""Hub ids, with a hub that is played: the right files are chosen, every refusal is explained."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants

from llava_cli import models
from llava_cli.errors import ModelInvalid, ModelNotFound
from llava_cli.models.hub import choose

GGUFS = ["README.md", "llava-F16.gguf", "llava-Q4_K_M.gguf", "mmproj-llava-f16.gguf", "x-Q2_K.gguf"]
HF = ["config.json", "model.safetensors", "pytorch_model.bin", "tokenizer.json", "sub/old.json"]


@pytest.mark.parametrize(
    ("names", "quant", "engine", "chosen"),
    [
        (GGUFS, None, "auto", ("llava-Q4_K_M.gguf", "mmproj-llava-f16.gguf")),
        (GGUFS, "f16", "auto", ("llava-F16.gguf", "mmproj-llava-f16.gguf")),
        (GGUFS, "Q2_K", "gguf", ("x-Q2_K.gguf", "mmproj-llava-f16.gguf")),
        (HF, None, "auto", ["config.json", "model.safetensors", "tokenizer.json"]),
        (HF + GGUFS, None, "torch", ["config.json", "model.safetensors", "tokenizer.json"]),
    ],
)
def test_the_files_of_a_model_are_chosen_and_never_a_pickle(
    names: list[str], quant: str | None, engine: str, chosen: Any
) -> None:
    assert choose("org/name", names, quant, engine) == chosen


@pytest.mark.parametrize(
    ("names", "quant", "said"),
    [
        (["a-Q8_0.gguf"], None, "no mmproj"),
        (GGUFS, "Q9_9", "no Q9_9 model"),
        (HF, "Q4_K_M", "no GGUF files"),
        (["pytorch_model.bin", "config.json"], None, "no model that can be used"),
        ([], None, "no model that can be used"),
        (["a-Q4_K_M-00001-of-00002.gguf", "mmproj.gguf"], None, "several pieces"),
    ],
)
def test_a_repository_without_a_usable_model_is_explained(
    names: list[str], quant: str | None, said: str
) -> None:
    with pytest.raises((ModelNotFound, ModelInvalid), match=said):
        choose("org/name", names, quant, "auto")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Plays the Hub: what listing answers, what a download gives, what is in the cache."""

    def play(listing: Any, download: Any = None, cached: Path | None = None) -> None:
        def list_repo_files(*_: object, **__: object) -> list[str]:
            if isinstance(listing, Exception):
                raise listing
            return list(listing)

        def snapshot_download(*_: object, local_files_only: bool = False, **__: object) -> str:
            if local_files_only:
                if cached is None:
                    raise huggingface_hub.errors.LocalEntryNotFoundError("nothing there")
                return str(cached)
            if isinstance(download, Exception):
                raise download
            return str(download)

        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", list_repo_files)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)

    return play


@pytest.fixture
def snapshot(text_gguf: Any, mmproj_gguf: Any, tmp_path: Path) -> Path:
    text_gguf(tmp_path / "llava-Q4_K_M.gguf", llava__prompt_format="vicuna_v1")
    text_gguf(tmp_path / "llava-F16.gguf", llava__prompt_format="vicuna_v1")
    mmproj_gguf(tmp_path / "mmproj-llava-f16.gguf")
    return tmp_path


def answer(status: int, kind: type[Exception]) -> Exception:
    """An error as huggingface_hub raises it for an answer of the Hub."""
    error = kind.__new__(kind)
    Exception.__init__(error, f"{status} from the Hub")
    error.response = type("Response", (), {"status_code": status})()  # type: ignore[attr-defined]
    return error


def test_a_hub_id_gives_exactly_the_wanted_pair(hub: Any, snapshot: Path) -> None:
    hub(GGUFS, snapshot)
    files = models.resolve("org/name")
    assert files.reference == "org/name"
    assert (files.path.name, files.mmproj) == (
        "llava-Q4_K_M.gguf",
        snapshot / "mmproj-llava-f16.gguf",
    )
    assert models.resolve("org/name@main:f16").path.name == "llava-F16.gguf"


def test_without_a_network_the_cache_answers(hub: Any, snapshot: Path) -> None:
    hub(ConnectionError("no route"), cached=snapshot)
    assert models.resolve("org/name").path.name == "llava-Q4_K_M.gguf"
    hub(AssertionError("the network was used"), cached=snapshot)
    assert models.resolve("org/name:f16", offline=True).path.name == "llava-F16.gguf"


def test_without_a_network_and_a_cache_the_reason_is_said(hub: Any) -> None:
    hub(ConnectionError("no route"))
    with pytest.raises(ModelNotFound, match="cannot be reached .no route.") as caught:
        models.resolve("org/name")
    assert caught.value.hint


@pytest.mark.parametrize(
    ("kind", "said", "remedy"),
    [
        ("GatedRepoError", "gated", "hf auth login"),
        ("RepositoryNotFoundError", "no model org/name", "hf auth login"),
        ("RevisionNotFoundError", "no revision v9", "@"),
        ("HfHubHTTPError", "503 from the Hub", "later"),
    ],
)
def test_what_the_hub_refuses_is_explained(hub: Any, kind: str, said: str, remedy: str) -> None:
    hub(answer(503, getattr(huggingface_hub.errors, kind)))
    with pytest.raises(ModelNotFound, match=said) as caught:
        models.resolve("org/name@v9")
    assert remedy in caught.value.hint


@pytest.mark.parametrize(
    ("number", "said", "remedy"),
    [
        (errno.EROFS, "cache cannot be written: /cache", "HF_HOME"),
        (errno.EACCES, "cache cannot be written", "HF_HOME"),
        (errno.ENOSPC, "disk is full", "HF_HOME"),
    ],
)
def test_a_cache_that_cannot_be_written_is_explained(
    hub: Any, number: int, said: str, remedy: str
) -> None:
    hub(GGUFS, OSError(number, "refused", "/cache"))
    with pytest.raises(ModelNotFound, match=said) as caught:
        models.resolve("org/name")
    assert remedy in caught.value.hint
