"""Markdown as it streams: finished blocks are printed once, only the last one is repainted.

Uses rich for the rendering of a block and nothing else of it: no markup, no Live, no hyperlinks.
"""

from __future__ import annotations

import time
from typing import TextIO

from markdown_it import MarkdownIt
from rich.console import Console
from rich.markdown import Markdown

from llava_cli.terminal.safe import VisibleStream

REPAINT_S = 0.06
"""Least time between two repaints of the unfinished block."""


class MarkdownStream:
    """Renders an answer block by block; `live` repaints the unfinished block in place."""

    def __init__(self, out: TextIO, *, live: bool) -> None:
        self._out = out
        self._live = live
        self._safe = VisibleStream()
        self._console = Console(
            file=out,
            force_terminal=live,
            color_system="auto" if live else None,
            no_color=not live,
            markup=False,
            highlight=False,
            emoji=False,
            legacy_windows=False,
        )
        self._pending = ""
        self._painted_rows = 0
        self._painted_at = float("-inf")
        self._any_finished = False

    def write(self, text: str) -> None:
        """Take the next piece of the answer."""
        self._pending += self._safe.feed(text)
        now = time.monotonic()
        if now - self._painted_at >= REPAINT_S:
            self._painted_at = now
            self._advance(final=False)

    def close(self) -> None:
        """Print what is left, in full."""
        self._pending += self._safe.close()
        self._advance(final=True)

    def _advance(self, *, final: bool) -> None:
        blocks = split_blocks(self._pending)
        finished = blocks if final else blocks[:-1]
        self._pending = "" if final else "".join(blocks[-1:])
        pieces = [self._erase()]
        for block in finished:
            pieces.append(self._separated(self._render(block)))
            self._any_finished = True
        if self._live and self._pending.strip():
            pieces.append(self._paint(self._separated(self._render(self._pending))))
        self._out.write("".join(pieces))
        self._out.flush()

    def _separated(self, rendered: str) -> str:
        """One empty line between two blocks."""
        return "\n" + rendered if self._any_finished else rendered

    def _erase(self) -> str:
        rows, self._painted_rows = self._painted_rows, 0
        return f"\r\x1b[{rows}A\x1b[J" if rows else ""

    def _paint(self, rendered: str) -> str:
        """The end of an unfinished block: what scrolled off the screen could not be erased."""
        rows = rendered.splitlines(keepends=True)[-max(1, self._console.height - 1) :]
        self._painted_rows = len(rows)
        return "".join(rows)

    def _render(self, block: str) -> str:
        with self._console.capture() as capture:
            self._console.print(_Block(block))
        lines = [line.rstrip(" ") for line in capture.get().split("\n")]
        return "\n".join(lines).strip("\n") + "\n"


class _Block(Markdown):
    """rich's rendering of text in which HTML, images and line ends are text, too."""

    def __init__(self, markup: str) -> None:
        super().__init__("", hyperlinks=False, code_theme="ansi_dark")
        self.markup = markup
        self.parsed = _parser().parse(markup)
        for token in self.parsed:
            for child in token.children or ():
                if child.type == "softbreak":
                    child.type = "hardbreak"


def _parser() -> MarkdownIt:
    """CommonMark in which nothing written vanishes: no raw HTML, images, or link definitions."""
    parser = MarkdownIt("commonmark", {"html": False})
    return parser.enable(["strikethrough", "table"]).disable(["image", "reference"])


def split_blocks(text: str) -> list[str]:
    """The top-level blocks in order; joined they are the text. All but the last are complete."""
    starts = [
        token.map[0]
        for token in _parser().parse(text)
        if token.level == 0 and token.nesting >= 0 and token.map
    ]
    if len(starts) < 2:
        return [text] if text else []
    lines = text.splitlines(keepends=True)
    bounds = [0, *starts[1:], len(lines)]
    return ["".join(lines[a:b]) for a, b in zip(bounds, bounds[1:], strict=False)]
