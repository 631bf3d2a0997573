"""The GGUF engine beside llama.cpp's own programs: same model, picture, prompt, tokens, threads.

    python benchmarks/gguf.py --quick                 # the 1.1B shape
    python benchmarks/gguf.py --llama BUILD/bin       # the 7B shape, programs that are there
    python benchmarks/gguf.py --build DIR             # builds them from llama-cpp-python's sdist

The models have random weights (`llama/random_models.py`). Each measure is the median of --runs.
Without llama.cpp's programs only our own numbers are printed. Say with every number
which machine it comes from (`llava doctor`).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Run as a script, this file would stand in for the package `gguf`.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
from PIL import Image as PIL

from benchmarks.llama import floors, programs, random_models

QUESTION, SECOND = random_models.QUESTION, random_models.SECOND
ANSWER, CAPTION, CAPTIONS = 24, 48, 16
QUICK = {"shape": "1.1b", "runs": 1, "captions": 2, "slots": "2",
         "questions": 0, "loop": 1}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One run of a program."""

    wall_s: float
    first_s: float
    """Until the first character of the answer."""
    peak_mb: float
    text: str


@dataclass(frozen=True)
class Bench:
    """What is measured with."""

    text: Path
    mmproj: Path
    pictures: list[Path]
    square: Path
    """A picture of the model's own size: each program resizes in its own way."""
    threads: int
    home: Path
    runs: int
    llama: Path | None
    slots: tuple[int, ...]
    loop: int
    """Pictures of llama-mtmd-cli's loop; the others are reckoned to take as long."""

    def llava(self, *arguments: str, cache: bool = False) -> list[str]:
        """Our command line."""
        flags = ["-m", str(self.text), "--mmproj", str(self.mmproj), "-q"]
        flags += ["--threads", str(self.threads)] + ([] if cache else ["--no-cache"])
        return [sys.executable, "-m", "llava_cli", "ask", *arguments, *flags]


def run(command: list[str], home: Path) -> Run:
    """Run once; the first byte on stdout is the first of the answer."""
    environment = {**os.environ, "LLAVA_HOME": str(home)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package is compiled once
    started = time.perf_counter()
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env=environment,
    )  # fmt: skip
    if process.stdout is None:
        raise SystemExit("no pipe")
    data, first = b"", 0.0
    while piece := os.read(process.stdout.fileno(), 65536):
        data += piece
        if not first and data.strip():
            first = time.perf_counter() - started
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.perf_counter() - started
    if process.returncode:
        raise SystemExit(f"exit code {process.returncode}: {' '.join(command)}")
    unit = 1 if sys.platform == "darwin" else 1024
    return Run(wall, first, usage.ru_maxrss * unit / 2**20, data.decode("utf-8", "replace"))


def questions(bench: Bench) -> tuple[dict[str, float], dict[str, float]]:
    """First and second question, ours and llama-mtmd-cli's in turn: machines change by the hour."""
    ours: dict[str, list[float]] = {}
    theirs: dict[str, list[float]] = {}
    picture = bench.square
    _warm(bench.text, bench.mmproj)
    for _ in range(bench.runs):
        shutil.rmtree(bench.home / "cache", ignore_errors=True)
        first = run(bench.llava(str(picture), QUESTION, *_length(ANSWER), cache=True), bench.home)
        second = run(bench.llava(str(picture), SECOND, *_length(ANSWER), cache=True), bench.home)
        _note(ours, "first question, wall s", first.wall_s)
        _note(ours, "first question, peak MB", first.peak_mb)
        _note(ours, "second question, new process, first token s", second.first_s)
        for name, flags in programs.FLAGS.items() if bench.llama else ():
            done = run(programs.mtmd(bench, picture, QUESTION, ANSWER, flags), bench.home)
            _note(theirs, f"mtmd{name}, wall s", done.wall_s)
            _note(theirs, f"mtmd{name}, first token s", done.first_s)
            _note(theirs, f"mtmd{name}, peak MB", done.peak_mb)
            if flags == programs.BEST_FLAGS:  # the same kernels as ours
                _tell_equal(QUESTION, programs.equal(first, done))
    return _medians(ours), _medians(theirs)


def _tell_equal(question: str, equal: bool) -> None:
    verdict = "the same tokens as" if equal else "OTHER TOKENS THAN"
    sys.stdout.write(f"{verdict} llama-mtmd-cli: {question}\n")


def _warm(*paths: Path) -> None:
    """Into the page cache, so that nobody waits for a cold disk."""
    for path in paths:
        with path.open("rb") as file:
            while file.read(1 << 24):
                pass


def captions(bench: Bench) -> dict[str, float]:
    """All pictures in one process."""
    many = [str(picture) for picture in bench.pictures]
    found: dict[str, float] = {}
    for name, extra in (("", []), (", --image-tokens 144", ["--image-tokens", "144"])):
        command = bench.llava(*many, QUESTION, "--each", *_length(CAPTION), *extra)
        found[f"{len(many)} captions{name}, wall s"] = run(command, bench.home).wall_s
    return found


def _note(found: dict[str, list[float]], name: str, value: float) -> None:
    found.setdefault(name, []).append(value)


def _medians(found: dict[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in found.items()}


def speeds(bench: Bench) -> tuple[dict[str, float], dict[str, float]]:
    """Speeds inside the engine and llama-bench's, in turn; weights rearranged or not."""
    ours: dict[str, list[float]] = {}
    theirs: dict[str, list[float]] = {}
    for repack in (False, True):
        for _ in range(bench.runs):
            for name, value in apart(inside, bench, repack).items():
                _note(ours, name, value)
            if bench.llama:
                for name, value in programs.speeds(bench, CAPTION, repack).items():
                    _note(theirs, name, value)
    return _medians(ours), _medians(theirs)


def inside(bench: Bench, repack: bool) -> dict[str, float]:
    """Tokens a second of prefill and decoding; each was done once before, as in llama-bench."""
    engine = _engine(bench, repack)
    context = engine._context
    context.reserve(1024)
    ids = np.random.default_rng(0).integers(300, 20000, 512).tolist()

    def prefill() -> float:
        context.forget()
        started = time.perf_counter()
        context.read_tokens(ids)
        return len(ids) / (time.perf_counter() - started)

    def decode() -> float:
        context.forget()
        context.read_tokens(ids[:1])
        started = time.perf_counter()
        for token in ids[:CAPTION]:
            context.read_tokens([token])
        return CAPTION / (time.perf_counter() - started)

    prefill()
    how = ", weights rearranged" if repack else ""
    found = {
        f"prefill, 512 tokens{how}, tokens/s": prefill(),
        f"decode{how}, tokens/s": decode(),
    }
    engine.close()
    return found


def chat(bench: Bench) -> dict[str, float]:
    """Seconds to the first token of a second question."""
    from llava_cli.conversation import Conversation
    from llava_cli.engines.base import Sampling
    from llava_cli.images import Image

    engine = _engine(bench, False)
    asked = Conversation().add("user", Image.from_path(bench.pictures[0]), QUESTION)
    tokens = engine.generate(asked, Sampling(max_tokens=ANSWER))
    later = asked.add("assistant", "".join(token.text for token in tokens)).add("user", SECOND)
    stats = list(engine.generate(later, Sampling(max_tokens=2)))[-1].stats
    engine.close()
    return {"second question, same chat, first token s": stats.ttft_s}


def _engine(bench: Bench, repack: bool) -> Any:
    from llava_cli import engines, models
    from llava_cli.engines.tuning import Tuning

    files = models.resolve(str(bench.text), mmproj=str(bench.mmproj))
    return engines.load(files, threads=bench.threads, tuning=Tuning(repack=repack))


def apart(measure: Callable[..., dict[str, float]], *given: Any) -> dict[str, float]:
    """`measure` in a process of its own: a child's peak memory counts its parent's at the start."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, *given).result()


def own_time() -> dict[str, float]:
    """Our own Python for one token, without the model, at two lengths of an answer."""
    from llava_cli.engines import answer
    from llava_cli.engines.base import Sampling, Stats
    from llava_cli.prompts import FORMATS

    class Letters:
        """A vocabulary for which every token is a word."""

        bos: int | None = None

        def encode(self, text: str) -> list[int]:
            return [0] * len(text)

        def special(self, text: str) -> int | None:
            return None

        def piece(self, token: int) -> bytes:
            return b" word"

        def name(self, token: int) -> str:
            return "word"

        def is_end(self, token: int) -> bool:
            return False

    logits = np.random.default_rng(0).normal(size=32000).astype(np.float32)
    prompt = answer.Prefilled(logits, time.perf_counter(), Stats())
    stamps = []
    stream = answer.answer(
        prompt, lambda _: logits, Letters(), FORMATS["vicuna_v1"], Sampling(max_tokens=1700),
        continued=False,
    )  # fmt: skip
    for _ in stream:
        stamps.append(time.perf_counter())
    steps = np.diff(stamps) * 1e6
    return {
        f"own Python time a token at {at}, µs": float(np.median(steps[at - 20 : at + 20]))
        for at in (50, 1600)
    }


def draw(folder: Path, count: int) -> list[Path]:
    """Different pictures of photo size."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        rng = np.random.default_rng(number)
        coarse = PIL.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
        paths.append(folder / f"{number:02}.jpg")
        coarse.resize((1024, 768), PIL.Resampling.BICUBIC).save(paths[-1], quality=92)
    return paths


def _length(count: int) -> list[str]:
    return ["--max-tokens", str(count)]


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="the 1.1B shape, one run, 2 captions")
    parser.add_argument("--shape", choices=random_models.SHAPES, default="7b")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--work", type=Path, default=Path("benchmark-files"))
    parser.add_argument("--llama", type=Path, help="folder of llama-mtmd-cli and the others")
    parser.add_argument("--build", type=Path, help="build them there first (minutes)")
    parser.add_argument("--captions", type=int, default=CAPTIONS)
    parser.add_argument("--slots", default="1,4,8,16", help="llama-server's --parallel, best taken")
    parser.add_argument("--loop", type=int, default=CAPTIONS, help="captions of llama-mtmd-cli")
    parser.add_argument("--questions", type=int, default=3, help="more whose tokens are compared")
    parser.add_argument("--json", type=Path, help="also write every number to this file")
    if parser.parse_args().quick:
        parser.set_defaults(**QUICK)
    options = parser.parse_args()
    if options.llama and not (options.llama / "llama-mtmd-cli").exists():
        parser.error(f"no llama-mtmd-cli in {options.llama}; --build DIR builds it")
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    shape = random_models.SHAPES[options.shape]
    text, mmproj = random_models.make(shape, options.work, f"random-{options.shape}")
    pictures = draw(options.work / "pictures", options.captions)
    llama = programs.build(options.build) if options.build else options.llama
    square = options.work / "square.png"
    PIL.open(pictures[0]).resize((shape.image, shape.image)).save(square)
    bench = Bench(
        text, mmproj, pictures, square, options.threads, options.work / "home",
        options.runs, llama, tuple(map(int, options.slots.split(","))), options.loop,
    )  # fmt: skip
    if llama:
        compared = programs.EQUAL_QUESTIONS[: options.questions]
        for question, equal in programs.equal_answers(bench, run, compared, ANSWER):
            _tell_equal(question, equal)
    ours, theirs = questions(bench)
    mine, others = speeds(bench)
    ours |= own_time() | apart(chat, bench) | mine
    theirs |= others
    if options.captions > 1:
        ours |= captions(bench)
        theirs |= programs.captions(bench, run, QUESTION, CAPTION) if llama else {}
    limits = floors.floors(text, options.threads)
    for name, value in {**ours, **theirs, **limits}.items():
        sys.stdout.write(f"{value:10.2f}  {name}\n")
    for line in programs.ratios(ours, theirs, len(pictures)):
        sys.stdout.write(line + "\n")
    if options.json:
        numbers = {
            "shape": options.shape, "threads": options.threads,
            "ours": ours, "theirs": theirs, "floors": limits,
        }  # fmt: skip
        options.json.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
