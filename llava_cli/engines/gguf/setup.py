"""What the engine runs with: defaults that suit the model and this machine, and what was asked."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from llava_cli.engines.gguf import binding
from llava_cli.engines.gguf.context import (
    FLASH_AUTO,
    FLASH_OFF,
    FLASH_ON,
    KV_TYPES,
    ContextSettings,
)
from llava_cli.engines.gguf.language import LoadSettings
from llava_cli.engines.tuning import Tuning
from llava_cli.errors import LlavaError, UsageError
from llava_cli.models.files import ModelFiles

_BYTES_A_THREAD = 24 * 1024 * 1024
_ALL_LAYERS = -1
_UBATCH = 512
"""Measured on two cores with a 7B model: 256 to 1024 are within 3 % of each other."""
_MANY = 8
"""llama.cpp's matrix product computes so few single tokens one by one (measured)."""


@dataclass(frozen=True)
class Setup:
    """Device, loading and context."""

    device: str
    load: LoadSettings
    context: ContextSettings
    shared_heads: bool = False
    """Whether several query heads read the same keys and values."""

    @classmethod
    def choose(
        cls,
        files: ModelFiles,
        *,
        device: str,
        threads: int | None,
        kv_type: str | None,
        flash_attention: bool | None,
        tuning: Tuning,
    ) -> Setup:
        """Fill in what was not asked for."""
        name, gpu = _device(device)
        use_gpu = name != "cpu" and tuning.gpu_layers != 0
        exact = files.config.get("general.file_type") == 0  # all float32
        if kv_type is not None and kv_type not in KV_TYPES:
            raise UsageError(f"unknown KV type: {kv_type}", f"known: {', '.join(KV_TYPES)}")
        flash = FLASH_OFF if exact else FLASH_AUTO
        if flash_attention is not None:
            flash = FLASH_ON if flash_attention else FLASH_OFF
        if kv_type == "q8_0" and flash == FLASH_OFF:
            if flash_attention is False:
                raise UsageError("a q8_0 KV cache needs flash attention", "leave one of them out")
            flash = FLASH_AUTO
        layers = _ALL_LAYERS if tuning.gpu_layers is None else tuning.gpu_layers
        return cls(
            name,
            LoadSettings(
                gpu_layers=layers if use_gpu else 0,
                gpu=gpu,
                # Measured with a 7B model on two Zen 4/5 cores: without repacking the weights stay
                # where they lie in the file, which loads in 0.2 s instead of 5 to 17 s and reads
                # prompts nearly twice as fast; only single tokens are 10 % slower.
                repack=bool(tuning.repack),
                mmap=tuning.mmap,
                mlock=tuning.mlock,
            ),
            ContextSettings(
                threads=threads or default_threads(files.path.stat().st_size),
                kv_type=kv_type or ("f32" if exact else "f16"),
                flash_attention=flash,
                use_gpu=use_gpu,
                ubatch=tuning.ubatch or _UBATCH,
            ),
            _shares_heads(files.config),
        )

    def context_for(self, slots: int) -> ContextSettings:
        """What a context of so many sequences computes with.

        Measured on two cores with a 7B model, 16 sequences of 600 positions: without flash
        attention a token of each takes 1.5 s instead of 2.4, but a prompt 22.7 s instead of 18.9:
        such a context's prompts are read in another. Up to eight sequences, and models whose heads
        share keys, gain too little.
        """
        context = self.context
        is_ours_to_choose = context.flash_attention == FLASH_AUTO and context.kv_type != "q8_0"
        if slots <= _MANY or self.shared_heads or context.use_gpu or not is_ours_to_choose:
            return context
        return replace(context, flash_attention=FLASH_OFF)

    def identity(self) -> dict[str, Any]:
        """What a sequence's state depends on, beside the model's files."""
        context = asdict(self.context)
        del context["threads"]
        return {"device": self.device, "gpu_layers": self.load.gpu_layers, **context}


def _shares_heads(config: Mapping[str, Any]) -> bool:
    kind = config.get("general.architecture", "llama")
    heads = config.get(f"{kind}.attention.head_count")
    return bool(config.get(f"{kind}.attention.head_count_kv", heads) != heads)


def default_threads(size: int) -> int:
    """Processor cores for a model of so many bytes.

    Threads wait for each other at every operation, which costs a small model more than they give,
    above all on a busy machine. Large machines do not gain from their cores' second threads.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    cores = cores if cores <= 4 else max(4, cores // 2)
    return max(1, min(cores, size // _BYTES_A_THREAD))


def versions() -> dict[str, str]:
    """The libraries whose results the disk cache holds."""
    import llama_cpp
    import PIL

    from llava_cli import __version__

    return {
        "llava-cli": __version__,
        "llama-cpp-python": str(llama_cpp.__version__),
        "pillow": PIL.__version__,
    }


def _device(wanted: str) -> tuple[str, int]:
    """The device's name and number."""
    binding.start()
    there = binding.offload_device()
    if wanted in ("auto", "cpu"):
        return (there if wanted == "auto" else "cpu"), 0
    name, _, number = wanted.partition(":")
    if name != there:
        raise LlavaError(
            f"this llama-cpp-python computes on {there}, not on {wanted}",
            "use --device auto, or install a llama-cpp-python that was built for it",
        )
    if number and not number.isdigit():
        raise LlavaError(f"{wanted} names no device", "write it like cuda:0")
    return wanted, int(number or 0)
