"""From the files of a model to an engine that answers.

The choice is an `if` on the files' format. Importing this package loads no heavy library; `load`
does, and says what to install where one is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_cli.cache import DiskCache
from llava_cli.conversation import Conversation
from llava_cli.engines.base import Engine, Sampling
from llava_cli.engines.tuning import Tuning
from llava_cli.errors import LlavaError, MissingDependency, ModelInvalid, UsageError
from llava_cli.models.files import ModelFiles

if TYPE_CHECKING:
    from llava_cli.engines.estimates import Estimate
    from llava_cli.engines.gguf.engine import GgufEngine
    from llava_cli.engines.gguf.tune import Trial

__all__ = ["Engine", "load"]


def load(
    files: ModelFiles,
    *,
    engine: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    prompt_format: str | None = None,
    dtype: str | None = None,
    quantize: str | None = None,
    adapter: Path | None = None,
    context: int | None = None,
    kv_type: str | None = None,
    flash_attention: bool | None = None,
    tuning: Tuning | None = None,
    cache: DiskCache | None = None,
    image_tokens: int | None = None,
    progress: Callable[[float], None] = lambda _: None,
    note: Callable[[str], None] = lambda _: None,
) -> Engine:
    """Load a model into the engine of its format.

    `adapter` is a LoRA: peft's folder, or for the GGUF engine also a .gguf. `dtype` (float32,
    bfloat16, float16) and `quantize` (4bit, 8bit) are the PyTorch engine's; `kv_type` (f32, f16,
    bf16, q8_0), `flash_attention`, `tuning`, `cache` and `image_tokens` are the GGUF engine's;
    `context` bounds the positions of both; `progress` hears the fraction that is loaded, where the
    engine knows it; `note` hears what a person should know about the model.
    """
    if engine not in ("auto", "gguf", "torch"):
        raise UsageError(f"unknown engine: {engine}", "known: auto, gguf, torch")
    wanted = "gguf" if files.format == "gguf" else "torch"
    if engine not in ("auto", wanted):
        raise ModelInvalid(
            f"the {engine} engine cannot read {files.reference}", f"use --engine {wanted}"
        )
    if wanted == "torch":
        if image_tokens is not None:
            raise UsageError("the PyTorch engine merges no image tokens", "use --engine gguf")
        return _torch(
            files,
            {"device": device, "dtype": dtype, "quantize": quantize, "adapter": adapter},
            threads=threads,
            prompt_format=prompt_format,
            context=context,
            note=note,
        )
    if quantize is not None:
        raise UsageError(
            f"--quantize is for PyTorch; {files.reference} is a GGUF model",
            "leave it out, or use the model's safetensors with --engine torch",
        )
    return _gguf_class()(
        files,
        device=device,
        threads=threads,
        prompt_format=prompt_format,
        context=context,
        kv_type=kv_type,
        flash_attention=flash_attention,
        tuning=tuning,
        cache=cache,
        image_tokens=image_tokens,
        adapter=adapter,
        progress=progress,
    )


def estimate(
    files: ModelFiles,
    conversation: Conversation,
    sampling: Sampling,
    *,
    device: str = "auto",
    threads: int | None = None,
    prompt_format: str | None = None,
    context: int | None = None,
    kv_type: str | None = None,
    flash_attention: bool | None = None,
    tuning: Tuning | None = None,
    quantize: str | None = None,
) -> Estimate:
    """What answering would take; no weights are loaded."""
    if files.format != "gguf":
        return _torch_estimate(
            files, conversation, sampling, device, quantize, prompt_format, context
        )
    _gguf_class()
    from llava_cli.engines.gguf.estimate import estimate as reckon
    from llava_cli.engines.gguf.setup import Setup

    setup = Setup.choose(
        files,
        device=device,
        threads=threads,
        kv_type=kv_type,
        flash_attention=flash_attention,
        tuning=tuning or Tuning(),
    )
    return reckon(
        files, setup, conversation, sampling, prompt_format=prompt_format, context=context
    )


def tune(files: ModelFiles, *, report: Callable[[Trial], None] = lambda _: None) -> Trial:
    """Measure which settings are quickest for a GGUF model on this machine."""
    _gguf_class()
    from llava_cli.engines.gguf import binding
    from llava_cli.engines.gguf.tune import tune as measure

    binding.start()
    return measure(files, use_gpu=binding.offload_device() != "cpu", report=report)


def check_schema(schema: str) -> None:
    """UsageError for a JSON schema that no answer can be made to follow."""
    _gguf_class()
    from llava_cli.engines.gguf.grammar import gbnf_of

    gbnf_of(schema)


def _gguf_class() -> type[GgufEngine]:
    try:
        from llava_cli.engines.gguf.engine import GgufEngine
    except ModuleNotFoundError as error:
        raise MissingDependency(
            f"the GGUF engine needs {error.name}", "pip install llama-cpp-python"
        ) from error
    except (OSError, RuntimeError) as error:  # a shared library that does not load
        raise LlavaError(
            f"llama.cpp cannot be loaded: {error}",
            "install it again: pip install --force-reinstall llama-cpp-python",
        ) from error
    return GgufEngine


def _torch(
    files: ModelFiles,
    setup: Mapping[str, Any],
    *,
    prompt_format: str | None,
    note: Callable[[str], None],
    **options: Any,
) -> Engine:
    try:
        from llava_cli.engines.pytorch import TorchEngine
        from llava_cli.engines.pytorch_any import AnyTorchEngine
        from llava_cli.engines.pytorch_setup import Setup
        from llava_cli.engines.pytorch_source import opened
    except ModuleNotFoundError as error:
        raise _no_torch(error) from error
    with opened(files, prompt_format) as model:
        kind: type[Any] = AnyTorchEngine
        if _is_llava(model.files, prompt_format or model.files.prompt_format):
            kind = TorchEngine
        elif model.tensors is not None:
            prompt_format = None  # it stands in the chat template already
        for text in model.notes:
            note(text)
        engine: Engine = kind(
            model.files,
            setup=Setup(**setup, tensors=model.tensors),
            prompt_format=prompt_format,
            **options,
        )
    engine.files = files
    return engine


def _torch_estimate(
    files: ModelFiles,
    conversation: Conversation,
    sampling: Sampling,
    device: str,
    quantize: str | None,
    prompt_format: str | None,
    context: int | None,
) -> Estimate:
    try:
        from llava_cli.engines.pytorch_estimate import estimate as reckon
        from llava_cli.engines.pytorch_setup import Setup
        from llava_cli.engines.pytorch_source import opened
    except ModuleNotFoundError as error:
        raise _no_torch(error) from error
    with opened(files, prompt_format) as model:
        return reckon(
            model.files,
            Setup(device, quantize=quantize, tensors=model.tensors),
            conversation,
            sampling,
            prompt_format=prompt_format,
            context=context,
        )


def _no_torch(error: ModuleNotFoundError) -> MissingDependency:
    return MissingDependency(
        f"the PyTorch engine needs {error.name}", "pip install 'llava-cli[torch]'"
    )


def _is_llava(files: ModelFiles, prompt_format: str | None) -> bool:
    """Whether prompt and pixels are ours to make; else the model's own processor makes them."""
    kind = files.config.get("model_type")
    return kind == "llava" or (kind == "llava_next" and prompt_format is not None)
