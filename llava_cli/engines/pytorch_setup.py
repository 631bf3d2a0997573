"""Loading a safetensors model into PyTorch: where, in which numbers, whether it fits, with what.

Nothing is downloaded and no code that comes with a model is run. Not here: prompts, pictures,
answers (`pytorch.py` for LLaVA-1.5, `pytorch_any.py` for other models).
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from llava_cli.engines.layouts.originals import PARTS
from llava_cli.engines.layouts.tensors import Tensor
from llava_cli.engines.pytorch_source import from_memory, parameters
from llava_cli.engines.quiet import silent
from llava_cli.errors import (
    LlavaError,
    MissingDependency,
    ModelInvalid,
    ModelNotFound,
    OutOfMemory,
    UsageError,
)
from llava_cli.models.facts import weights
from llava_cli.models.files import ModelFiles

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_BITS = {"4bit": 0.55, "8bit": 1.05}
"""Bytes a parameter takes, with its scales."""


@dataclass(frozen=True)
class Setup:
    """How a person wants a model loaded."""

    device: str = "auto"
    dtype: str | None = None
    """float32, bfloat16 or float16; None takes what suits the device and fits."""
    quantize: str | None = None
    """4bit or 8bit, on CUDA."""
    adapter: Path | None = None
    """A folder with a LoRA adapter, merged into the weights."""
    tensors: Mapping[str, Tensor] | None = None
    """The weights by llava-hf's names, where they do not lie in the model's folder as such."""


def load_model(files: ModelFiles, setup: Setup) -> tuple[Any, str]:
    """The model with all its weights, and its device; or the reason why not.

    Raises UsageError and MissingDependency for options that cannot be followed, OutOfMemory before
    loading where the weights alone are larger than what is free, ModelInvalid for bad files.
    """
    device = choose_device(setup.device)
    _check_quantize(setup.quantize, device)
    if setup.adapter is not None:
        _check_adapter(setup.adapter)
    dtype = choose_dtype(files, setup, device)
    with out_of_memory(files.reference):
        model = _from_pretrained(files, dtype, setup, device)
        if setup.adapter is not None:
            model = _adapted(model, setup.adapter)
        if setup.quantize is None:
            model = model.to(device)
    return model.eval(), device


def check_type(files: ModelFiles) -> None:
    """ModelInvalid for a model that transformers does not know as one for pictures and text."""
    import transformers
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as KNOWN,
    )

    kind = files.config.get("model_type")
    if kind not in KNOWN:
        raise ModelInvalid(
            f"{files.reference} is of model type {kind!r}, which transformers "
            f"{transformers.__version__} does not know as a model for pictures and text",
            "use another model, or a newer transformers",
        )


def choose_device(wanted: str) -> str:
    """A device of this machine."""
    there = "cpu"
    if torch.cuda.is_available():
        there = "cuda"
    elif torch.backends.mps.is_available():
        there = "mps"
    name, _, number = wanted.partition(":")
    if wanted == "auto":
        return there
    if name not in ("cpu", there):
        raise LlavaError(
            f"PyTorch finds no {name} device on this machine", "use --device auto or cpu"
        )
    if number and not (number.isdigit() and int(number) < torch.cuda.device_count()):
        raise LlavaError(f"there is no device {wanted}", "see `llava doctor`")
    return wanted


def choose_dtype(files: ModelFiles, setup: Setup, device: str) -> torch.dtype:
    """The numbers asked for; else float32 on a CPU where that fits, 16 bits otherwise."""
    ways = needs(files, setup, device)
    free = free_bytes(device)
    for dtype, need in ways:
        if free is None or need <= free:
            return dtype
    raise _too_large(files.reference, min(need for _, need in ways), free or 0, device)


def needs(files: ModelFiles, setup: Setup, device: str) -> list[tuple[torch.dtype, float]]:
    """The numbers that come into question, the best first, and the bytes of the weights in them."""
    if setup.dtype is not None and setup.dtype not in DTYPES:
        raise LlavaError(f"unknown dtype: {setup.dtype}", f"known: {', '.join(DTYPES)}")
    half = torch.float16
    if device == "cpu" or (device.startswith("cuda") and torch.cuda.is_bf16_supported()):
        half = torch.bfloat16
    wanted = [torch.float32, half] if device == "cpu" else [half]
    if setup.dtype is not None:
        wanted = [DTYPES[setup.dtype]]
    count = weights(files.path)[0] if setup.tensors is None else parameters(setup.tensors)
    return [(dtype, count * _BITS.get(setup.quantize or "", dtype.itemsize)) for dtype in wanted]


def free_bytes(device: str) -> int | None:
    """Memory that a device still has; None where nobody tells."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(torch.device(device))[0])
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            lines = dict(line.split(":", 1) for line in file)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


@contextmanager
def out_of_memory(reference: str) -> Iterator[None]:
    """Whatever a full memory raises becomes an OutOfMemory."""
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        if is_out_of_memory(error):
            raise OutOfMemory(
                f"{reference} does not fit into memory",
                "use a smaller or quantised model (GGUF), fewer pictures, or --device cpu",
            ) from error
        raise


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of PyTorch or the system means that."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()
    signs = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate")
    return isinstance(error, (RuntimeError, OSError)) and any(sign in text for sign in signs)


def _too_large(reference: str, need: float, free: int, device: str) -> OutOfMemory:
    remedy = "take a GGUF of it (--engine gguf), a smaller model"
    if device.startswith("cuda"):
        remedy += ", --quantize 4bit or --device cpu"
    return OutOfMemory(
        f"{reference} needs {need / 1e9:.1f} GB for its weights alone, "
        f"and {device} has {free / 1e9:.1f} GB free",
        remedy,
    )


def _check_quantize(quantize: str | None, device: str) -> None:
    if quantize is None:
        return
    if quantize not in _BITS:
        raise UsageError(f"unknown quantisation: {quantize}", "known: 4bit, 8bit")
    if not device.startswith("cuda"):
        raise UsageError(
            f"--quantize {quantize} needs an NVIDIA GPU (CUDA), and this runs on {device}",
            "leave it out, or use a quantised GGUF of the model: --engine gguf",
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingDependency("--quantize needs bitsandbytes", "pip install bitsandbytes")


def _check_adapter(folder: Path) -> None:
    if folder.is_file():
        raise ModelInvalid(
            f"{folder} is a file; the PyTorch engine takes the folder that training or peft wrote",
            "give that folder, or a GGUF model for a .gguf adapter",
        )
    if not (folder / "adapter_config.json").is_file():
        raise ModelNotFound(
            f"{folder} is no LoRA adapter: it has no adapter_config.json",
            "give the folder that training or peft wrote",
        )
    if beside := next((name for name in PARTS if (folder / name).is_file()), None):
        raise ModelInvalid(
            f"{folder} is more than an adapter: its projector was trained, too ({beside})",
            f"take it as the model, over the one it was trained on: -m {folder} --base REF",
        )
    if not (folder / "adapter_model.safetensors").is_file():
        raise ModelInvalid(
            f"{folder} has no adapter_model.safetensors; pickles are not read",
            "save the adapter again as safetensors",
        )
    if importlib.util.find_spec("peft") is None:
        raise MissingDependency("--adapter needs peft", "pip install 'llava-cli[train]'")


def _from_pretrained(files: ModelFiles, dtype: torch.dtype, setup: Setup, device: str) -> Any:
    import transformers

    more: dict[str, Any] = {}
    if setup.quantize is not None:
        bits = {f"load_in_{setup.quantize}": True}
        config: Any = transformers.BitsAndBytesConfig(**bits, bnb_4bit_compute_dtype=dtype)
        more = {"quantization_config": config, "device_map": {"": device}}
    auto: Any = transformers.AutoModelForImageTextToText
    try:
        with silent():
            if setup.tensors is not None:
                model, report = from_memory(files, setup.tensors, dtype, more)
            else:
                model, report = auto.from_pretrained(
                    files.path,
                    dtype=dtype,
                    local_files_only=True,
                    trust_remote_code=False,
                    use_safetensors=True,
                    output_loading_info=True,
                    **more,
                )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelInvalid(
            f"cannot load {files.reference}: {reason}", "check its config.json"
        ) from error
    for what in ("missing_keys", "mismatched_keys"):
        if names := sorted(str(name) for name in report.get(what) or ()):
            raise ModelInvalid(
                f"the weights of {files.reference} do not fit its config.json: {names[0]} "
                f"({len(names)} in all)",
                "download or export the model again",
            )
    return model


def _adapted(model: Any, folder: Path) -> Any:
    """The model with an adapter merged into its weights."""
    import peft

    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            adapted = peft.PeftModel.from_pretrained(model, str(folder))
            placed = set(peft.get_peft_model_state_dict(adapted))
            merged = adapted.merge_and_unload()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelInvalid(
            f"the adapter {folder} does not fit the model: {reason}",
            "give the model that it was trained on with -m",
        ) from error
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        homeless = set(file.keys()) - placed  # peft leaves out what has no place without a word
    if homeless or any("adapter keys" in str(remark.message) for remark in said):
        raise ModelInvalid(
            f"the adapter {folder} does not fit the model: some of its weights have no place",
            "give the model that it was trained on with -m",
        )
    return merged
