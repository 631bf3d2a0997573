"""The page of thumbnails and captions: whole in itself, harmless, searched and sorted."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image as PIL

from llava_cli.captioning.report import Row, write_report
from llava_cli.captioning.sources import Item
from tests.llava_cli.browser import rendered

NASTY = '</p><script>document.title="owned"</script><img src=x onerror="document.title=1">'


@pytest.fixture
def report(tmp_path: Path) -> Path:
    rows = []
    for name, caption, error in (
        ("b.png", "a red square", ""),
        ("a10.png", f"two blue circles {NASTY}", ""),
        ("a9.png", "red star", ""),
        ("broken.png", "", "broken.png: is damaged \x1b"),
    ):
        if caption:
            PIL.new("RGB", (900, 30), "red").save(tmp_path / name)
        rows.append(Row(Item(tmp_path / name, name), caption, error))
    target = tmp_path / "report.html"
    assert write_report(target, "photos & <b>", rows) == 4
    return target


def names(page: str) -> list[str]:
    """The pictures that are shown, in the order shown."""
    figures = re.findall(r"<figure([^>]*)>.*?<small[^>]*>(.*?)</small>", page, re.DOTALL)
    return [Path(name).name for attributes, name in figures if "hidden" not in attributes]


def test_the_page_needs_nothing_else(report: Path) -> None:
    text = report.read_text(encoding="utf-8")
    outside: list[str] = []

    class Links(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            outside.extend(
                value or ""
                for key, value in attrs
                if key in ("src", "href") and not (value or "").startswith("data:image/jpeg;base64")
            )

    Links().feed(text)
    assert outside == []
    assert text.count("data:image/jpeg;base64,") == 3
    assert "@" not in text.split("<style>")[0]
    assert NASTY not in text
    assert "\x1b" not in text


def test_it_is_searched_and_sorted_in_a_browser(report: Path, tmp_path: Path) -> None:
    url = report.as_uri()
    page = rendered(url, tmp_path / "profile")
    assert names(page) == ["b.png", "a10.png", "a9.png", "broken.png"]
    assert "4 pictures</output>" in page
    assert "<title>photos &amp; &lt;b&gt;</title>" in page  # the caption's script did not run
    page = rendered(f"{url}#q=RED&sort=name&kind=captioned", tmp_path / "profile")
    assert names(page) == ["a9.png", "b.png"]
    assert "2 of 4 pictures</output>" in page
    page = rendered(f"{url}#sort=short&kind=failed", tmp_path / "profile")
    assert names(page) == ["broken.png"]
