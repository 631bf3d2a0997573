"""Which settings are quickest here, measured: one setting after the other, each time the better."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from llava_cli.engines.gguf.context import FLASH_AUTO, FLASH_OFF, Context, ContextSettings
from llava_cli.engines.gguf.interrupt import Interrupt
from llava_cli.engines.gguf.language import LanguageModel, LoadSettings
from llava_cli.engines.gguf.setup import default_threads
from llava_cli.engines.tuning import Best
from llava_cli.models.files import ModelFiles

_PROMPT, _ANSWER = 256, 8
"""Tokens of a trial."""
_QUESTION = 640, 64
"""Tokens of a question about a picture, and of its answer: what is to be quick."""


@dataclass(frozen=True)
class Trial:
    """One way to run the model, and how quick it was."""

    best: Best
    load_s: float
    prefill: float
    """Tokens a second."""
    decode: float
    """Tokens a second."""

    @property
    def question_s(self) -> float:
        """Seconds for a first question in a new process."""
        prompt, answer = _QUESTION
        return self.load_s + prompt / self.prefill + answer / self.decode


def tune(
    files: ModelFiles, *, use_gpu: bool = False, report: Callable[[Trial], None] = lambda _: None
) -> Trial:
    """Try what may matter; the quickest."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = default_threads(files.path.stat().st_size)
    quickest = _tried(files, Best(threads, 512, False, True), use_gpu, report)
    for change in (
        {"repack": True},
        {"threads": max(1, (cores or 1) // 2)},
        {"threads": cores or 1},
        {"ubatch": 256},
        {"ubatch": 1024},
        {"flash_attention": False},
    ):
        wanted = replace(quickest.best, **change)
        if wanted != quickest.best:
            trial = _tried(files, wanted, use_gpu, report)
            quickest = min(quickest, trial, key=lambda each: each.question_s)
    return quickest


def _tried(files: ModelFiles, best: Best, use_gpu: bool, report: Callable[[Trial], None]) -> Trial:
    interrupt = Interrupt()
    started = time.perf_counter()
    loading = LoadSettings(gpu_layers=-1 if use_gpu else 0, repack=best.repack)
    model = LanguageModel(files.path, loading, interrupt)
    load_s = time.perf_counter() - started
    settings = ContextSettings(
        threads=best.threads,
        kv_type="f16",
        flash_attention=FLASH_AUTO if best.flash_attention else FLASH_OFF,
        use_gpu=use_gpu,
        ubatch=best.ubatch,
    )
    context = Context(model, settings, interrupt)
    try:
        context.reserve(min(_PROMPT + _ANSWER + 1, model.limit))
        ids = [number % model.vocabulary.size for number in range(7, 7 + _PROMPT)]
        ids = ids[: context.capacity - _ANSWER - 1]
        context.read_tokens(ids[:1])  # the first one also brings weights in from the disk
        started = time.perf_counter()
        context.read_tokens(ids[1:])
        prefill_s = time.perf_counter() - started
        started = time.perf_counter()
        for token in ids[:_ANSWER]:
            context.read_tokens([token])
        decode_s = time.perf_counter() - started
    finally:
        context.close()
        model.close()
        interrupt.close()
    trial = Trial(best, load_s, (len(ids) - 1) / prefill_s, _ANSWER / decode_s)
    report(trial)
    return trial
