"""Do rows stream? Time and greatest memory of `llava data` commands on files of any length.

    python benchmarks/data_streams.py --rows 1000000 --work /tmp/streams

Writes a file of samples and one of captions with so many rows, then runs each command on them as a
process of its own and prints rows a second and its greatest resident memory. `generate` asks an
endpoint of this script's own until a budget ends that after about `--asked` requests; the rest is
planned, looked up and listed as missing, so what counts is reading, planning and writing.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

WORDS = (
    "dog cat horse man woman child car tree house street beach table cup chair bird boat".split()
)
COLOURS = "red green blue brown white black small large old young".split()
ANSWER = "The picture shows several things beside each other in front of a wide background. " * 5


class Endpoint(BaseHTTPRequestHandler):
    """Answers every request with the same description."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        message = {"message": {"content": ANSWER}, "finish_reason": "stop"}
        data = json.dumps({"choices": [message], "model": "m"}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Silence."""


def caption(rng: random.Random) -> str:
    """A sentence of a few words."""
    one, two = rng.sample(WORDS, 2)
    return f"a {rng.choice(COLOURS)} {one} next to a {rng.choice(COLOURS)} {two} {rng.random():.6f}"


def write_samples(path: Path, rows: int) -> None:
    """LLaVA JSON with one conversation of two questions a row."""
    rng = random.Random(1)
    with path.open("w") as file:
        for i in range(rows):
            turns = [
                {"from": "human", "value": f"<image>\nWhat is near the {rng.choice(WORDS)}?"},
                {"from": "gpt", "value": f"There is {caption(rng)}."},
                {"from": "human", "value": f"Is a {rng.choice(WORDS)} there?"},
                {"from": "gpt", "value": "No."},
            ]
            row = {"id": str(i), "image": f"{i}.jpg", "conversations": turns}
            file.write(("[\n" if i == 0 else ",\n") + json.dumps(row))
        file.write("\n]\n")


def write_coco(path: Path, rows: int) -> None:
    """COCO's layout: so many captions and boxes, five of each a picture."""
    rng = random.Random(2)
    pictures = max(1, rows // 5)
    with path.open("w") as file:
        file.write('{"images": [')
        for i in range(pictures):
            row = {"id": i, "file_name": f"{i}.jpg", "width": 640, "height": 480}
            file.write((",\n" if i else "") + json.dumps(row))
        file.write('],\n"annotations": [')
        for i in range(rows):
            row = {"id": i, "image_id": i % pictures, "caption": caption(rng)}
            file.write((",\n" if i else "") + json.dumps(row))
        file.write('],\n"instances": [')
        for i in range(rows):
            box = [rng.randrange(500), rng.randrange(400), 50, 60]
            row = {"image_id": i % pictures, "category_id": 1, "bbox": box, "iscrowd": 0}
            file.write((",\n" if i else "") + json.dumps(row))
        file.write('],\n"categories": [{"id": 1, "name": "dog"}]}')


def measured(name: str, rows: int, *arguments: str) -> None:
    """Run a command; one line about it."""
    program = (
        "import resource, sys\nfrom llava_cli.cli import main\ncode = main(sys.argv[1:])\n"
        "peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "sys.stderr.write(f'\\npeak {peak}\\n')\nsys.exit(code)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program, "data", *arguments, "--json"],
        capture_output=True,
        text=True,
    )
    seconds = time.monotonic() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if "\npeak " not in done.stderr or done.returncode not in (0, 5):
        sys.exit(
            f"{name} failed ({done.returncode}):\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        )
    peak = int(done.stderr.rsplit("peak ", 1)[1]) / 1024  # kibibytes on Linux
    sys.stdout.write(
        f"{name:22}{rows:>10} rows {seconds:8.1f} s {cpu:8.1f} s CPU "
        f"{rows / cpu:>9.0f} rows/s of CPU {peak:7.0f} MiB\n"
    )
    sys.stdout.flush()


def main() -> None:
    """Write the files, run the commands."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--asked", type=int, default=200)
    parser.add_argument("--work", type=Path, required=True, help="a folder with room")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    samples, coco = given.work / "samples.json", given.work / "coco.json"
    write_samples(samples, given.rows)
    write_coco(coco, given.rows)
    sys.stdout.write(f"{os.cpu_count()} cores, Python {sys.version.split()[0]}\n")
    n, out = given.rows, given.work
    measured("validate", n, "validate", str(samples))
    measured("stats", n, "stats", str(samples))
    measured("mix", n, "mix", str(samples), "-o", str(out / "mix.jsonl"))
    measured(
        "convert to parquet", n, "convert", "llava", str(samples), "-o", str(out / "s.parquet")
    )
    measured("convert coco", n, "convert", "coco", str(coco), "-o", str(out / "captions.jsonl"))
    measured("filter", n, "filter", str(out / "captions.jsonl"), "-o", str(out / "f.jsonl"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    common = ["generate", "--captions", str(coco), "--llm", "m", "--kind", "detail"]
    measured("generate, estimate", n, *common, "--estimate-cost")
    # As many tokens as that number of requests may take, each of about 2,200 and the answer.
    budget = str(given.asked * 4000)
    options = ["--base-url", url, "--budget-tokens", budget, "-o", str(out / "generated")]
    measured("generate", n, *common, *options)
    server.shutdown()


if __name__ == "__main__":
    main()
