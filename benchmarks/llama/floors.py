"""What this machine gives, to hold an engine's speed against, for `gguf.py`.

A token is decoded by reading every weight once: at most the memory's bandwidth over the weights'
bytes. A prompt needs two operations a weight and token; torch's int8 matrix product says how many a
second are had here by one good routine, which is no bound for another.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

READ_BYTES = 2**29
"""Each thread reads so much: far more than any cache holds."""
TOKENS, WIDTH, INNER = 512, 4096, 11008
"""The product of a 7B's feed-forward layer with a whole piece of prompt."""


def floors(model: Path, threads: int) -> dict[str, float]:
    """Tokens a second at these rates, and the rates.

    Without torch, whose int8 product is measured, there is none for the prompt.
    """
    from gguf import GGUFReader

    read = [t for t in GGUFReader(model).tensors if t.name != "token_embd.weight"]
    size, weights = (sum(int(getattr(t, k)) for t in read) for k in ("n_bytes", "n_elements"))
    speed = bandwidth(threads)
    found = {"memory read, GB/s": speed / 1e9, "floor: decode, tokens/s": speed / size}
    if rate := product_rate(threads):
        found["int8 product, TOP/s"] = rate / 1e12
        found["at that rate: prefill, tokens/s"] = rate / (2 * weights)
    return found


def bandwidth(threads: int) -> float:
    """Bytes a second that so many threads read from memory."""
    parts = [np.ones(READ_BYTES // 8) for _ in range(threads)]

    def read() -> None:
        workers = [threading.Thread(target=np.max, args=(part,)) for part in parts]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    return threads * READ_BYTES / _best(read)


def product_rate(threads: int) -> float | None:
    """int8 multiplications and additions a second; None without torch."""
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(threads)
    a, b = (
        torch.randint(-127, 127, shape, dtype=torch.int8)
        for shape in ((TOKENS, WIDTH), (WIDTH, INNER))
    )
    return 2 * TOKENS * WIDTH * INNER / _best(lambda: torch._int_mm(a, b))


def _best(work: Callable[[], object]) -> float:
    """Seconds of the quickest of ten runs: disturbed ones are no floor."""
    times = []
    for _ in range(10):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)
