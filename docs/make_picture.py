"""Draw docs/ask.svg: a real terminal session of the command that README shows first.

Run it from the checkout after the bundled model or the output's form has changed:
`python docs/make_picture.py`. The answer in the picture is what the model says, never typed in.
"""

from __future__ import annotations

import os
import pty
import re
import shlex
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent
COMMAND = 'llava ask docs/example.png "what is unusual here?"'
COLUMNS = 88
REDRAW = re.compile(r"\r\x1b\[(\d+)A\x1b\[J")
"""So many lines up, and clear what follows: how the unfinished part of an answer is drawn anew."""


def run_in_terminal(command: str) -> str:
    """What a person would see: both streams, with their colours."""
    ours, theirs = pty.openpty()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "TERM": "xterm-256color", "COLUMNS": str(COLUMNS)}
    environment.pop("NO_COLOR", None)
    with subprocess.Popen(
        shlex.split(command), cwd=ROOT, env=environment, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        seen = b""
        while chunk := read(ours):
            seen += chunk
    os.close(ours)
    if process.returncode:
        raise SystemExit(seen.decode(errors="replace"))
    return seen.decode().replace("\r\n", "\n")


def settled(seen: str) -> str:
    """What stays on the screen when all is drawn."""
    while redraw := REDRAW.search(seen):
        lines = seen[: redraw.start()].split("\n")
        kept = lines[: -1 - int(redraw.group(1))]
        seen = "".join(line + "\n" for line in kept) + seen[redraw.end() :]
    return seen


def read(terminal: int) -> bytes:
    """The next bytes; none when the program has closed its end, which Linux reports as an error."""
    try:
        return os.read(terminal, 65536)
    except OSError:
        return b""


def main() -> None:
    """Write the picture."""
    console = Console(record=True, width=COLUMNS, file=open(os.devnull, "w", encoding="utf-8"))
    console.print(Text.assemble(("$ ", "bold green"), COMMAND))
    console.print(Text.from_ansi(settled(run_in_terminal(COMMAND))))
    svg = console.export_svg(title="llava", theme=MONOKAI, unique_id="ask")
    # The fonts that rich links to are fetched from a third party; the reader's own will do.
    svg = re.sub(r"\s*@font-face \{.*?\}", "", svg, flags=re.DOTALL)
    (ROOT / "docs" / "ask.svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
