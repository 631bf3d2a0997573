"""`llava caption --help` reads like the guide's page, and offers what there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from llava_cli.captioning.keepers import FORMATS
from llava_cli.captioning.presets import PRESETS
from llava_cli.cli import caption as command
from tests.llava_cli.cli.conftest import Run


def test_help_offers_what_there_is() -> None:
    """Written out in the command so that help imports nothing."""
    assert tuple(PRESETS) == command._PRESETS
    assert set(FORMATS) == set(command._FORMATS)


def test_help_reads_like_the_readme(run: Run) -> None:
    out = run("caption", "--help").out
    assert out.index("Caption many pictures") < out.index("Examples:") < out.index("Usage:")
    assert "llava caption photos --retry-failed" in out
    titles = ["Which pictures", "What is asked", "Where captions go"]  # as on the guide's page
    places = [out.index(f"\n{title}:\n") for title in (*titles, "Which model", "Every command")]
    assert places == sorted(places)


@pytest.mark.checkout
def test_the_guides_page_has_the_helps_headings_and_names_its_options(run: Run) -> None:
    page = (Path(__file__).parents[3] / "docs" / "caption.md").read_text(encoding="utf-8")
    own = run("caption", "--help").out.partition("How answers are chosen:")[0]
    for title in re.findall(r"^(W.+):$", own, re.MULTILINE):
        assert f"\n## {title}\n" in page
    options = re.findall(r"^  (?:(-\w), )?(--[a-z-]+)", own, re.MULTILINE)
    assert len(options) > 20
    assert [(s, o) for s, o in options if o not in page and (not s or f"{s}`" not in page)] == []
