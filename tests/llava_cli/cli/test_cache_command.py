"""`llava cache`, and which commands keep something where."""

from __future__ import annotations

from pathlib import Path

import pytest

from llava_cli.cache import DiskCache
from llava_cli.cli.settings import size_bytes
from llava_cli.errors import UsageError
from tests.llava_cli.cli.conftest import InProcess


@pytest.fixture
def filled(hermetic: Path) -> DiskCache:
    store = DiskCache(hermetic / "cache", 1 << 20)
    store.put("picture", {"n": 1}, {}, memoryview(bytes(3000)))
    store.put("state", {"n": 2}, {}, memoryview(bytes(5000)))
    return store


def test_ls_lists_what_is_kept(llava: InProcess, filled: DiskCache) -> None:
    found = llava("cache", "ls", "--json").json
    assert {entry["kind"] for entry in found["entries"]} == {"picture", "state"}
    assert found["bytes"] == sum(entry.bytes for entry in filled.entries()) > 8000
    assert (found["limit"], found["folder"]) == (4 << 30, str(filled.folder))
    text = llava("cache", "ls").out
    assert "2 entries" in text and "a picture's features" in text


def test_clear_removes_it(llava: InProcess, filled: DiskCache) -> None:
    assert llava("cache", "clear", "--json").json["removed"] == 2
    assert filled.entries() == []
    assert llava("cache", "clear").code == 0
    assert llava("cache", "ls", "--json").json["entries"] == []


def test_ask_keeps_its_pictures_in_the_home(
    llava: InProcess, picture: Path, hermetic: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAVA_CACHE_SIZE", "500M")
    llava("ask", picture, "what?")
    cache = llava.load_options["cache"]
    assert (cache.folder, cache.limit) == (hermetic / "cache", 500 << 20)


@pytest.mark.parametrize("off", ["--no-cache", "size"])
def test_a_cache_that_is_not_wanted_is_off(
    llava: InProcess, picture: Path, off: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if off == "size":
        monkeypatch.setenv("LLAVA_CACHE_SIZE", "0")
    flags = [off] if off.startswith("-") else []
    ran = llava("ask", picture, "what?", "--json", *flags)
    assert llava.load_options["cache"] is None
    assert ran.json["cache"]["image"] == "off"


def test_sizes_are_read_as_people_write_them() -> None:
    assert size_bytes("4GiB") == size_bytes("4g") == size_bytes(" 4 G ") == 4 << 30
    assert size_bytes("1.5GB") == 1_500_000_000
    assert (size_bytes("1000"), size_bytes("0"), size_bytes("2M")) == (1000, 0, 2 << 20)
    for text in ("", "G", "-1", "4X", "4 GiB more"):
        with pytest.raises(UsageError):
            size_bytes(text)


def test_a_size_that_is_none_is_a_usage_error(
    llava: InProcess, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAVA_CACHE_SIZE", "much")
    ran = llava("ask", picture, "what?", "--json")
    assert ran.code == 2 and "LLAVA_CACHE_SIZE" in ran.error["message"]
