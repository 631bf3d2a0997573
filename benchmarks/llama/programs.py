"""llama.cpp's own programs, for `gguf.py`: built from llama-cpp-python's sdist, and run."""

from __future__ import annotations

import base64
import json
import math
import re
import statistics
import subprocess
import sys
import tarfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

PROGRAMS = ("llama-mtmd-cli", "llama-server", "llama-bench")
BEST_FLAGS = ("--no-repack", "--no-warmup")
FLAGS: dict[str, tuple[str, ...]] = {"": (), " best": BEST_FLAGS}
PORT = 18089
STARTED = ", its start included"
EQUAL_QUESTIONS = ("What is this?", "What is unusual here?", "Describe the image in detail.")

LIMITS: dict[str, tuple[tuple[str, float], ...]] = {
    # ours: (theirs with default flags, bound), (theirs with the best flags, bound)
    "first question, wall s": (("mtmd, wall s", 0.52), ("mtmd best, wall s", 1.0)),
    "second question, new process, first token s": (
        ("mtmd, first token s", 0.08),
        ("mtmd best, first token s", 0.15),
    ),
    "second question, same chat, first token s": (
        ("mtmd, first token s", 0.04),
        ("mtmd best, first token s", 0.07),
    ),
    "first question, peak MB": (("mtmd, peak MB", 0.75), ("mtmd best, peak MB", 1.05)),
    # llama-bench has our settings: rearranged weights beside rearranged ones
    "prefill, 512 tokens, weights rearranged, tokens/s": (("bench prefill", 0.97),),
    "decode, weights rearranged, tokens/s": (("bench decode", 0.97),),
    "prefill, 512 tokens, tokens/s": (("bench best prefill", 0.97),),
    "decode, tokens/s": (("bench best decode", 0.97),),
}


def build(folder: Path) -> Path:
    """The programs, built from the sources of the installed llama-cpp-python."""
    binaries = folder / "build" / "bin"
    if all((binaries / name).exists() for name in PROGRAMS):
        return binaries
    source = sources(folder)
    made = str(folder / "build")
    options = ["-DCMAKE_BUILD_TYPE=Release", "-DLLAMA_CURL=OFF", "-DGGML_NATIVE=ON"]
    subprocess.run(["cmake", "-S", str(source), "-B", made, *options], check=True)
    subprocess.run(["cmake", "--build", made, "-j", "--target", *PROGRAMS], check=True)
    return binaries


def sources(folder: Path) -> Path:
    """llama.cpp as it lies in the sdist of the installed llama-cpp-python, fetched once."""
    place = "llama_cpp_python-*/vendor/llama.cpp"
    if not any(folder.glob(place)):
        version = metadata.version("llama-cpp-python")
        folder.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-build-isolation"]
        flags = ["--no-binary", ":all:", "-d", str(folder), f"llama-cpp-python=={version}"]
        subprocess.run([*pip, *flags], check=True)
        with tarfile.open(next(folder.glob("llama_cpp_python-*.tar.gz"))) as archive:
            archive.extractall(folder, filter="data")
    return next(folder.glob(place))


def speeds(bench: Any, count: int, repack: bool) -> dict[str, float]:
    """llama-bench with weights rearranged, its default, or not."""
    return (
        _bench(bench, "bench", count, ())
        if repack
        else _bench(bench, "bench best", count, ("--repack", "0"))
    )


def captions(
    bench: Any, run: Callable[[list[str], Path], Any], question: str, count: int
) -> dict[str, float]:
    """All pictures by llama-mtmd-cli one by one, and by llama-server."""
    found: dict[str, float] = {}
    for name, flags in FLAGS.items():
        some = bench.pictures[: bench.loop]  # all runs are alike: a few tell how long all take
        walls = [run(mtmd(bench, p, question, count, flags), bench.home).wall_s for p in some]
        found[f"mtmd{name} loop, wall s"] = statistics.mean(walls) * len(bench.pictures)
    for name, flags in FLAGS.items():
        best = min(_server(bench, question, count, slots, flags) for slots in bench.slots)
        found[f"server{name}, wall s"], found[f"server{name}{STARTED}, wall s"] = best
    return found


def equal_answers(
    bench: Any, run: Callable[[list[str], Path], Any], questions: Sequence[str], count: int
) -> Iterator[tuple[str, bool]]:
    """Questions to us and to llama-mtmd-cli with the same kernels, and whether they agree."""
    for question in questions:
        theirs = run(mtmd(bench, bench.square, question, count, BEST_FLAGS), bench.home)
        asked = bench.llava(str(bench.square), question, "--max-tokens", str(count))
        yield question, equal(run(asked, bench.home), theirs)


def equal(ours: Any, theirs: Any) -> bool:
    """Whether two runs answered alike.

    llama-mtmd-cli writes from another thread and may end before its last words are out: what it
    wrote is compared.
    """
    return bool(theirs.text.strip()) and ours.text.strip().startswith(theirs.text.strip())


def ratios(ours: Mapping[str, float], theirs: Mapping[str, float], count: int) -> Iterator[str]:
    """Our numbers over theirs, with the bound that each should keep."""
    limits = dict(LIMITS)
    limits[f"{count} captions, wall s"] = (
        ("mtmd loop, wall s", 0.4),
        ("mtmd best loop, wall s", 0.8),
    )
    limits[f"{count} captions, wall s "] = (
        ("server, wall s", 0.7),
        ("server best, wall s", 1.0),
        # we have to start, too: nothing is promised beside this
        (f"server{STARTED}, wall s", math.inf),
        (f"server best{STARTED}, wall s", math.inf),
    )
    limits[f"{count} captions, --image-tokens 144, wall s"] = (
        ("server, wall s", 0.32),
        ("server best, wall s", 0.5),
    )
    for name, pair in limits.items():
        for other, bound in pair:
            if other in theirs and name.strip() in ours:
                ratio = ours[name.strip()] / theirs[other]
                good = ratio >= bound if "tokens/s" in name else ratio <= bound
                sign = "≥" if "tokens/s" in name else "≤"
                kept = "" if good else "  MISSED"
                limit = f"{sign} {bound:4}" if bound < math.inf else " " * 6
                yield f"{ratio:10.3f}  {limit}  {name.strip()} / {other}{kept}"


def mtmd(bench: Any, picture: Path, question: str, count: int, flags: tuple[str, ...]) -> list[str]:
    """The command line of llama-mtmd-cli."""
    return [
        str(bench.llama / "llama-mtmd-cli"), "-m", str(bench.text), "--mmproj", str(bench.mmproj),
        "--image", str(picture), "-p", f"\n{question}", "-n", str(count), "--temp", "0",
        "--ignore-eos", "-t", str(bench.threads), "--jinja", *flags,
    ]  # fmt: skip


def _bench(bench: Any, name: str, count: int, flags: tuple[str, ...]) -> dict[str, float]:
    """Tokens a second of prefill and decoding."""
    command = [
        str(bench.llama / "llama-bench"), "-m", str(bench.text), "-p", "512", "-n", str(count),
        "-t", str(bench.threads), "-r", "1", "-o", "json", *flags,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.stderr.write(f"llama-bench {' '.join(flags)}: {done.stderr[-300:]}\n")
        return {}
    rows = json.loads(re.sub(r"^[^\[]*", "", done.stdout, count=1))
    kinds = {True: "prefill", False: "decode"}
    return {f"{name} {kinds[row['n_gen'] == 0]}": float(row["avg_ts"]) for row in rows}


def _server(
    bench: Any, question: str, count: int, slots: int, flags: tuple[str, ...]
) -> tuple[float, float]:
    """Wall seconds for all pictures, asked at once: of the server when it is ready, and with its
    start."""
    room = 768 * slots
    command = [
        str(bench.llama / "llama-server"), "-m", str(bench.text), "--mmproj", str(bench.mmproj),
        "--port", str(PORT), "--parallel", str(slots), "-c", str(room), "-t", str(bench.threads),
        "--jinja", *flags,
    ]  # fmt: skip
    started = time.perf_counter()
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait(server)
        ready = time.perf_counter()
        with ThreadPoolExecutor(len(bench.pictures)) as pool:
            list(pool.map(lambda p: _ask_server(p, question, count), bench.pictures))
        answered = time.perf_counter()
        return answered - ready, answered - started
    finally:
        server.terminate()
        server.wait()


def _wait(server: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        if server.poll() is not None:
            raise SystemExit("llama-server did not start")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health", timeout=5) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.5)
    raise SystemExit("llama-server does not answer")


def _ask_server(picture: Path, question: str, count: int) -> None:
    url = "data:image/jpeg;base64," + base64.b64encode(picture.read_bytes()).decode()
    content = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": question},
    ]
    body = {
        "messages": [{"role": "user", "content": content}],
        "max_tokens": count,
        "temperature": 0,
        "ignore_eos": True,
    }
    request = urllib.request.Request(
        f"http://127.0.0.1:{PORT}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=3600) as answer:
        answer.read()
