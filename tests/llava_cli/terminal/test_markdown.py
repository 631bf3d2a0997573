"""Markdown as it streams: every block once, nothing lost, nothing that steers the terminal."""

from __future__ import annotations

import io
import re
import time

import pytest

from llava_cli.terminal import markdown
from llava_cli.terminal.markdown import MarkdownStream, split_blocks

LONG = """# Title

A paragraph with **bold** words
on two lines.

- one
- two

  still two

3. three
4. four

```python
x = 1

y = 2
```

| a | b |
|---|---|
| 1 | 2 |

> quoted

The end."""


class Screen:
    """A terminal of some size: text, newline, carriage return, cursor up, erase below."""

    def __init__(self, rows: int = 24) -> None:
        self.rows = rows
        self.lines: list[str] = [""]
        self.row = self.column = 0

    def feed(self, text: str) -> None:
        for part in re.findall(r"\x1b\[[0-9;]*[A-Za-z]|\n|\r|[^\x1b\n\r]+", text):
            if part == "\n":
                self._to(self.row + 1, 0)
            elif part == "\r":
                self.column = 0
            elif part.startswith("\x1b["):
                self._control(part)
            else:
                line = self.lines[self.row].ljust(self.column)
                end = self.column + len(part)
                self.lines[self.row] = line[: self.column] + part + line[end:]
                self.column = end

    def _to(self, row: int, column: int) -> None:
        while len(self.lines) <= row:
            self.lines.append("")
        self.row, self.column = row, column

    def _control(self, code: str) -> None:
        if code.endswith("A"):
            visible_top = max(0, len(self.lines) - self.rows)
            self.row -= int(code[2:-1])
            assert self.row >= visible_top, "moved above the screen: cannot erase there"
        elif code.endswith("J"):
            self.lines[self.row] = self.lines[self.row][: self.column]
            del self.lines[self.row + 1 :]
        else:
            assert code.endswith("m"), code

    @property
    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.lines).strip("\n")


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)


def streamed(text: str, *, live: bool, size: int = 5, repaint_s: float = 0.0) -> str:
    out = io.StringIO()
    stream = MarkdownStream(out, live=live)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(markdown, "REPAINT_S", repaint_s)
        for start in range(0, len(text), size):
            stream.write(text[start : start + size])
        stream.close()
    return out.getvalue()


def on_screen(written: str, rows: int = 24) -> str:
    screen = Screen(rows)
    screen.feed(written)
    return screen.text


@pytest.mark.parametrize("size", [2, 7, 50])
def test_the_screen_ends_as_if_printed_at_once(size: int) -> None:
    assert on_screen(streamed(LONG, live=True, size=size)) == on_screen(
        streamed(LONG, live=True, size=100_000)
    )


def test_all_content_reaches_the_screen() -> None:
    text = on_screen(streamed(LONG, live=True))
    for word in ("Title", "bold", "on two lines", "still two", "3 three", "4 four", "x = 1"):
        assert word in text
    assert "**" not in text


def test_without_live_there_is_no_escape_byte() -> None:
    written = streamed(LONG, live=False)
    assert "\x1b" not in written
    assert "• one" in written


def test_a_block_taller_than_the_screen_is_printed_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LINES", "6")
    text = "\n".join(f"- item {index}" for index in range(40))
    shown = on_screen(streamed(text, live=True, size=50), rows=6)
    assert [f"• item {index}" in shown for index in range(40)] == [True] * 40
    assert shown.count("item 7\n") == 1


def test_finished_blocks_are_written_once() -> None:
    """Bytes grow with the text, not with its square."""
    paragraph = "word " * 30 + "\n\n"
    short, long = (len(streamed(paragraph * n, live=True, size=50)) for n in (2, 20))
    assert long < 12 * short


def test_repaints_are_bounded_in_time() -> None:
    started = time.monotonic()
    written = streamed("word " * 2000, live=True, size=5, repaint_s=0.06)
    repaints = written.count("\x1b[J")
    assert repaints <= (time.monotonic() - started) / 0.06 + 2


@pytest.mark.parametrize(
    "text",
    [
        "[/INST] and [red]x[/red] and [bold]",
        "<image> <b>bold</b> </s> <!-- hidden --> <script>alert(1)</script>",
        "[INST]: hello\n\n[foo]: https://example.org 'x'",
        "<div>\nblock\n</div>",
        ":smile: stays",
        "C:\\new\\table",
    ],
)
def test_what_is_no_markdown_stays_readable(text: str) -> None:
    shown = on_screen(streamed(text, live=True))
    for word in text.split():
        assert word in shown


@pytest.mark.parametrize("nasty", ["\x1b[2J", "\x1b]8;;http://x\x07", "\x9b31m", "\u202e", "\x08"])
def test_controls_in_an_answer_are_written_out(nasty: str) -> None:
    for text in (f"before {nasty} after", f"`{nasty}`", f"```\n{nasty}\n```", f"# {nasty}"):
        written = streamed(text, live=False)
        assert nasty not in written
        assert nasty[0].encode("unicode_escape").decode() in written


def test_a_link_shows_where_it_leads() -> None:
    written = streamed(
        "[safe](https://example.org/evil) ![alt](https://example.org/b.png)", live=True
    )
    assert "\x1b]8" not in written
    assert "example.org/evil" in on_screen(written)
    assert "example.org/b.png" in on_screen(written)


@pytest.mark.parametrize(
    "text", ["", "\n", "one", "a\n\nb", LONG, "```\nopen\n\nfence", "1. a\n\n2. b"]
)
def test_blocks_joined_are_the_text(text: str) -> None:
    assert "".join(split_blocks(text)) == text


def test_only_the_last_block_can_still_grow() -> None:
    assert split_blocks("one\n\ntwo\nthree\n\n```\na\n\nb") == [
        "one\n\n",
        "two\nthree\n\n",
        "```\na\n\nb",
    ]


def test_empty_answer_prints_nothing() -> None:
    assert streamed("", live=True) == ""
