"""Run commands in turn and compare their wall time, CPU time and peak memory.

Example: python benchmarks/compare.py "llava ask a.png hello" "llava ask --engine torch a.png hello"

The commands alternate, so that a machine that slows down slows all of them; the median of the runs
counts. Not a benchmark of answers' quality: that is `llava eval`.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Measure:
    """What one run of one command took."""

    wall_s: float
    cpu_s: float
    """User and system time of the command and of the processes it waited for."""
    peak_mb: float
    """Never below some 15 MB, this script's own size, which the system counts before the exec."""


def measure(command: str) -> Measure:
    """Run once; a command that fails ends the comparison, for its time would mean nothing."""
    start = time.perf_counter()
    process = subprocess.Popen(
        shlex.split(command), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    wall_s = time.perf_counter() - start
    # wait4 has reaped the process behind Popen's back.
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"exit code {process.returncode}: {command}")
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss counts bytes there, KiB elsewhere
    peak_mb = usage.ru_maxrss * unit / 2**20
    return Measure(wall_s, usage.ru_utime + usage.ru_stime, peak_mb)


def median(measures: list[Measure]) -> Measure:
    """The median of each number on its own."""
    columns = zip(*(asdict(m).values() for m in measures), strict=True)
    return Measure(*(round(statistics.median(column), 4) for column in columns))


def arguments() -> argparse.Namespace:
    """What to run and how often."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("commands", nargs="+", metavar="COMMAND")
    parser.add_argument("--runs", type=int, default=5, help="measured runs of each (default 5)")
    parser.add_argument("--warmup", type=int, default=1, help="unmeasured runs of each (default 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every run to FILE")
    return parser.parse_args()


def main() -> None:
    """Print one line a command."""
    options = arguments()
    runs: dict[str, list[Measure]] = {command: [] for command in options.commands}
    for number in range(options.warmup + options.runs):
        for command, measures in runs.items():
            result = measure(command)
            if number >= options.warmup:
                measures.append(result)
    sys.stdout.write("wall s   CPU s  peak MB  command\n")
    for command, measures in runs.items():
        m = median(measures)
        sys.stdout.write(f"{m.wall_s:6.3f}  {m.cpu_s:6.3f}  {m.peak_mb:7.0f}  {command}\n")
    if options.json:
        rows = {command: [asdict(m) for m in measures] for command, measures in runs.items()}
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
