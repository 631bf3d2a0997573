"""Processes that train, forked from one that has imported torch: each starts in no time.

What a process does is what `llava train` does; it is killed, and counted as one of several, like
any other.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

Arguments = Mapping[str, Any]
"""Of `loop.train`."""
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "torch", "transformers.models.llava.modeling_llava",
        "transformers.models.llava.processing_llava", "transformers.models.llama.modeling_llama",
        "transformers.models.clip.modeling_clip", "peft", "llava_train.loop",
    ]
)  # fmt: skip


def start(
    arguments: Arguments, *, pause: float = 0.0, env: Mapping[str, str] | None = None
) -> BaseProcess:
    """One process that trains; it rests `pause` seconds after every step."""
    process = _CONTEXT.Process(target=_train, args=(dict(arguments), pause, dict(env or {})))
    process.start()
    return process


def finish(processes: Sequence[BaseProcess], seconds: float = 240) -> list[int | None]:
    """Their exit codes; whatever still runs after `seconds` is killed."""
    until = time.monotonic() + seconds
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))
    for process in processes:
        if process.is_alive():
            process.kill()
        process.join()
    return [process.exitcode for process in processes]


def together(arguments: Arguments, size: int = 2) -> list[int | None]:
    """Exit codes of several processes that train one model, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [
        start(arguments, env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(size)
    ]
    return finish(ranks)


def wait_for_lines(log: Path, count: int, process: BaseProcess) -> None:
    """Until a run's log has `count` lines; an error where the run ends before."""
    while process.is_alive():
        if log.is_file() and len(log.read_bytes().splitlines()) >= count:
            return
        time.sleep(0.005)
    raise RuntimeError(f"the run ended before step {count}, with {process.exitcode}")


def _train(arguments: dict[str, Any], pause: float, env: dict[str, str]) -> None:
    os.environ.update(env)
    import torch

    from llava_train.loop import train
    from llava_train.parallel import leave

    torch.set_num_threads(1)
    rest: Callable[[Any], None] = lambda line: time.sleep(pause)  # noqa: E731
    train(**arguments, on_step=rest)
    leave()
