"""How soon does `llava caption` start in a folder of 100,000 pictures, and does its memory grow?

Example: python benchmarks/caption.py --n 100000 --folders 100

Three cases, each with the bundled model: nothing was captioned; all but a hundred have a sidecar;
the same with the journal of a run that was killed. Prints seconds to the first caption
(start of the program and loading included), the processor seconds of those, and the program's
memory at the first caption and the most it took until the end, or until --captions are written.
The pictures are hard links to one small PNG. `--folders 1` puts all into one folder.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from PIL import Image as PIL

from llava_cli.captioning.journal import Journal

MIB = 1024 * 1024
LEFT = 100
"""Pictures without a caption where the others have one."""
MOST_LINKS = 30_000
"""To one file; some file systems take no more than 65,000."""
PAGE = os.sysconf("SC_PAGE_SIZE")


def make(top: Path, n: int, folders: int) -> list[Path]:
    """n pictures in so many folders, in the order in which they are found."""
    pictures: list[Path] = []
    original = top / "original.png"
    for number in range(n):
        if number % MOST_LINKS == 0:
            original.unlink(missing_ok=True)
            PIL.new("RGB", (64, 64), "red").save(original)
        picture = top / "photos" / f"{number * folders // n:04}" / f"{number:07}.png"
        if not pictures or picture.parent != pictures[-1].parent:
            picture.parent.mkdir(parents=True)
        os.link(original, picture)
        pictures.append(picture)
    return pictures


def captioned(pictures: list[Path]) -> None:
    """Sidecars beside all but the last."""
    for picture in pictures[:-LEFT]:
        picture.with_suffix(".txt").write_text("A caption.\n", encoding="utf-8")


def killed(pictures: list[Path]) -> None:
    """Sidecars, and the journal of a run that was killed shortly before its end."""
    captioned(pictures)
    folder = pictures[0].parent.parent
    journal = Journal(folder / ".llava-caption-txt.sqlite")
    journal.begin("an earlier run")
    for picture in pictures[:-LEFT]:
        journal.done(picture.relative_to(folder).as_posix(), "A caption.")
    journal.close(finished=False)


CASES: dict[str, Callable[[list[Path]], None]] = {
    "fresh": lambda pictures: None,
    "captioned": captioned,
    "killed": killed,
}


def measure(case: str, pictures: list[Path], most: int) -> dict[str, object]:
    """One case: a run that is ended after so many captions."""
    CASES[case](pictures)
    asked = pictures[:most] if case == "fresh" else pictures[-LEFT:]
    sidecars = [picture.with_suffix(".txt") for picture in asked]
    folder = str(pictures[0].parent.parent)
    command = [sys.executable, "-m", "llava_cli", "caption", folder, "-r", "--json"]
    started = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not any(path.exists() for path in sidecars):
            time.sleep(0.01)
        first_s, processor_s = time.monotonic() - started, processor_seconds(process.pid)
        memory = [resident(process.pid)]
        while process.poll() is None:
            memory.append(resident(process.pid))
            if case == "fresh" and sidecars[-1].exists():
                process.kill()
            time.sleep(0.2)
        summary = process.communicate()[0]
    counts = json.loads(summary) if summary else {"written": most}
    return {
        "case": case,
        "first_caption_s": round(first_s, 2),
        "processor_s": round(processor_s, 2),
        "memory_at_first_mib": round(memory[0] / MIB, 1),
        "most_memory_mib": round(max(memory) / MIB, 1),
        "seconds": round(time.monotonic() - started, 1),
        **{name: counts[name] for name in ("written", "skipped", "failed") if name in counts},
    }


def resident(pid: int) -> int:
    """Resident bytes of a process; 0 when it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1]) * PAGE
    except (OSError, IndexError):
        return 0


def processor_seconds(pid: int) -> float:
    """Processor time of a process so far, all its threads."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> int:
    """Measure all cases."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=100_000)
    parser.add_argument("--folders", type=int, default=100)
    parser.add_argument("--captions", type=int, default=500, help="written in a fresh folder")
    parser.add_argument("--case", choices=[*CASES], action="append")
    options = parser.parse_args()
    for case in options.case or CASES:
        with tempfile.TemporaryDirectory() as top:
            pictures = make(Path(top), options.n, options.folders)
            found = measure(case, pictures, min(options.captions, options.n))
            sys.stdout.write(json.dumps(found) + "\n")
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
