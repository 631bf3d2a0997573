"""Record docs/ask.svg, docs/chat.svg and docs/caption.svg: what the commands show on a terminal.

Run it from the checkout after the bundled model or the form of an output has changed:
`python docs/record.py` (or `python docs/record.py chat` for one). Every command is really run, in a
pseudo-terminal, with the bundled model; keys are typed as a person would. Nothing in a picture is
typed in by hand, and a picture needs nothing from elsewhere. Needs pyte, a terminal in Python, from
`pip install '.[dev]'`, and a POSIX system.
"""

from __future__ import annotations

import argparse
import fcntl
import functools
import os
import pty
import re
import select
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import pyte
from PIL import Image
from rich.console import Console
from rich.style import Style
from rich.terminal_theme import MONOKAI
from rich.text import Text

DOCS = Path(__file__).resolve().parent
COLUMNS, LINES = 88, 40
PATIENCE_S = 200.0
ENTER, CTRL_D = "\r", "\x04"
PROMPT = "$ "


@dataclass(frozen=True)
class Step:
    """One command, and what is typed into it."""

    command: str
    typed: tuple[str, ...] = ()
    """Keys, each when it asks for them."""


RECORDINGS: dict[str, tuple[Step, ...]] = {
    "ask": (Step('llava ask docs/example.png "what is unusual here?"'),),
    "chat": (
        Step(
            "llava chat docs/example.png",
            (
                "how many shapes are there?" + ENTER,
                "what is unusual here?" + ENTER,
                "/stats" + ENTER,
                CTRL_D,
            ),
        ),
    ),
    "caption": (
        Step("ls shapes"),
        Step('llava caption shapes --prompt "what is unusual here?"'),
        Step("head -n 1 shapes/*.txt"),
        Step("llava caption shapes"),
    ),
}


class Screen(pyte.Screen):
    """A terminal's screen that knows faint text, which it shows in grey."""

    def __init__(self, answer: Callable[[str], None]) -> None:
        super().__init__(COLUMNS, LINES)
        self._answer = answer

    def select_graphic_rendition(self, *attributes: int, **rest: Any) -> None:
        """Faint is bright black here; what ends it ends that."""
        mapped = [{2: 90, 22: 39}.get(number, number) for number in attributes]
        ends = [22] if 22 in attributes else []
        super().select_graphic_rendition(*ends, *mapped, **rest)

    def write_process_input(self, data: str) -> None:
        """A program asked where the cursor is."""
        self._answer(data)

    @property
    def at_prompt(self) -> bool:
        """Whether a chat waits for somebody to type."""
        return bool(self.display[self.cursor.y].rstrip().endswith(">"))

    def shows(self, text: str) -> bool:
        """Whether it stands in one of the lines."""
        return any(text in line for line in self.display)


class Session:
    """A terminal in which one command after the other is run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._master = -1
        self.screen = Screen(lambda data: self._type(data))
        self._stream = pyte.ByteStream(self.screen)

    def run(self, step: Step) -> None:
        """One command, to its end; SystemExit where it fails."""
        self._show(PROMPT, bold=True)
        self._show(step.command + "\r\n")
        self._master, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
        with subprocess.Popen(
            ["bash", "-c", step.command],
            cwd=self._folder,
            env=self._environment(),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        ) as process:
            os.close(theirs)
            try:
                self._converse(step)
            except BaseException:
                process.kill()
                raise
            code = process.wait(timeout=PATIENCE_S)
        os.close(self._master)
        if code:
            raise SystemExit("\n".join(self.screen.display).rstrip())

    def _converse(self, step: Step) -> None:
        for keys in step.typed:
            self._wait(lambda: self.screen.at_prompt)
            self._type(keys)
            if keys != CTRL_D:
                self._wait(functools.partial(self.screen.shows, keys.strip()))
        while self._read():
            pass

    def _environment(self) -> dict[str, str]:
        """This Python's `llava` in front, colours on, no history or settings of whoever records."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        home = str(self._folder / ".home")
        own = {"PATH": path, "TERM": "xterm-256color", "LLAVA_HOME": home, "XDG_CONFIG_HOME": home}
        kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS", "LINES")}
        return {**kept, **own}

    def _show(self, text: str, *, bold: bool = False) -> None:
        style = ("\x1b[1;32m", "\x1b[0m") if bold else ("", "")
        self._stream.feed(f"{style[0]}{text}{style[1]}".encode())

    def _type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def _wait(self, condition: Callable[[], bool]) -> None:
        while not condition():
            if not self._read():
                raise SystemExit("\n".join(self.screen.display).rstrip())

    def _read(self) -> bool:
        """Show what has come; False at the end."""
        deadline = time.monotonic() + PATIENCE_S
        ready, _, _ = select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise SystemExit("the command hangs")
        try:
            data = os.read(self._master, 65536)
        except OSError:  # how Linux says that the other end has closed
            return False
        self._stream.feed(data)
        return bool(data)


def text_of(screen: Screen) -> Text:
    """What stands on a screen, with its colours."""
    lines = []
    for number in range(LINES):
        cells = [screen.buffer[number][column] for column in range(COLUMNS)]
        line = Text()
        for style, run in groupby(cells, style_of):
            line.append("".join(cell.data for cell in run), style)
        line.rstrip()
        lines.append(line)
    while lines and not lines[-1].plain:
        lines.pop()
    return Text("\n").join(lines)


def style_of(cell: Any) -> Style:
    """A cell's style in rich's words."""
    return Style(
        color=colour_of(cell.fg),
        bgcolor=colour_of(cell.bg),
        bold=cell.bold or None,
        italic=cell.italics or None,
        underline=cell.underscore or None,
        reverse=cell.reverse or None,
    )


def colour_of(name: str) -> str | None:
    """pyte's names are a terminal's, but for brown; others are six hexadecimal digits."""
    if name == "default":
        return None
    if name == "brightblack":  # of a grey that can be read
        return "#949494"
    if re.fullmatch(r"[0-9a-f]{6}", name):
        return f"#{name}"
    name = name.replace("brown", "yellow").replace("bfightmagenta", "brightmagenta")
    return name.replace("bright", "bright_")


def picture_of(name: str, screen: Screen) -> str:
    """The SVG."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        console = Console(record=True, width=COLUMNS, file=nowhere, color_system="truecolor")
        console.print(text_of(screen))
        svg = console.export_svg(title="llava", theme=MONOKAI, unique_id=name)
    # The fonts that rich links to are fetched from a third party; the reader's own will do.
    return re.sub(r"\s*@font-face \{.*?\}", "", svg, flags=re.DOTALL)


def desk(folder: Path) -> None:
    """What the commands find: the example, and some pictures like it."""
    (folder / "docs").mkdir()
    shutil.copy(DOCS / "example.png", folder / "docs")
    (folder / "shapes").mkdir()
    with Image.open(DOCS / "example.png") as example:
        rgb = example.convert("RGB")
        mirrored = rgb.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        for number, picture in enumerate((rgb, mirrored, rgb.rotate(180)), 1):
            picture.save(folder / "shapes" / f"{number}.png")


def record(name: str, out: Path) -> None:
    """Make one picture."""
    with tempfile.TemporaryDirectory() as top:
        desk(Path(top))
        session = Session(Path(top))
        for step in RECORDINGS[name]:
            session.run(step)
        (out / f"{name}.svg").write_text(picture_of(name, session.screen), encoding="utf-8")


def main() -> None:
    """Make the pictures that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", nargs="*", choices=[*RECORDINGS, []], help="ask, chat or caption")
    parser.add_argument("--out", type=Path, default=DOCS)
    options = parser.parse_args()
    for name in options.name or RECORDINGS:
        record(name, options.out)


if __name__ == "__main__":
    main()
