"""The language model of a GGUF file: its weights and its vocabulary. What it read: `context.py`."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from llava_cli.engines.gguf import binding
from llava_cli.engines.gguf.binding import lib
from llava_cli.engines.gguf.embeddings import Embeddings, embeddings_of
from llava_cli.engines.gguf.interrupt import Interrupt
from llava_cli.engines.gguf.vocabulary import LlamaVocabulary
from llava_cli.errors import ModelInvalid, OutOfMemory
from llava_cli.models.gguf_header import read_header

_LOAD_AUTO, _LOAD_NONE, _LOAD_MMAP, _LOAD_MLOCK, _LOAD_MMAP_MLOCK = -1, 0, 1, 2, 3


@dataclass(frozen=True)
class LoadSettings:
    """How weights are brought into memory."""

    gpu_layers: int = 0
    """Layers computed on the device; -1 is all."""
    gpu: int = 0
    repack: bool = False
    """Rearrange the weights for this processor: slower to load, sometimes quicker afterwards."""
    mmap: bool | None = None
    """Read weights where they lie in the file; None leaves it to llama.cpp."""
    mlock: bool = False
    """Keep the weights from being swapped out."""


class LanguageModel:
    """A text model, loaded."""

    def __init__(
        self,
        path: Path,
        settings: LoadSettings,
        interrupt: Interrupt,
        progress: Callable[[float], None] = lambda _: None,
        *,
        vocabulary_only: bool = False,
        no_weights: bool = False,
    ) -> None:
        """`progress` hears the fraction that is loaded, now and then.

        `no_weights`: know all about the model, but leave its weights where they are.
        """
        self._path = path
        binding.start()
        watcher = LoadWatch(interrupt, progress)
        parameters = lib.llama_model_default_params()
        parameters.n_gpu_layers = settings.gpu_layers
        parameters.main_gpu = settings.gpu
        parameters.use_extra_bufts = settings.repack
        parameters.load_mode = _LOAD_NONE if no_weights else _load_mode(settings)
        parameters.vocab_only = vocabulary_only
        parameters.no_alloc = no_weights  # which llama.cpp only does where it maps nothing
        parameters.progress_callback = watcher.callback
        binding.forget_errors()
        self.model: Any = None
        with interrupt.deferred():
            self.model = lib.llama_model_load_from_file(str(path).encode(), parameters)
        if watcher.raised is not None:
            self.close()
            raise watcher.raised
        if not self.model:
            if binding.ran_out_of_memory():
                raise OutOfMemory(
                    f"{path.name} does not fit into memory", "use a smaller quantisation"
                )
            reasons = "; ".join(binding.last_errors()[-2:]) or "llama.cpp gives no reason"
            raise ModelInvalid(f"cannot load {path}: {reasons}", "download or convert it again")
        self.adapter: Any = None
        """llama.cpp's LoRA adapter, if there is one."""
        self.vocabulary = LlamaVocabulary(lib.llama_model_get_vocab(self.model))
        self.width = int(lib.llama_model_n_embd_inp(self.model))
        self.limit = max(int(lib.llama_model_n_ctx_train(self.model)), 1)
        """Positions that the model was trained to read."""
        self.can_be_cut = not (
            lib.llama_model_is_recurrent(self.model) or lib.llama_model_is_hybrid(self.model)
        )
        """Whether the end of what it read can be forgotten without the rest."""

    @cached_property
    def embeddings(self) -> Embeddings | None:
        """Token ids as rows; None where this model has to look them up itself."""
        if self.adapter is not None:  # which may change the table
            return None
        return embeddings_of(read_header(self._path))

    def adapt(self, path: Path, shown: Path) -> None:
        """Load a LoRA adapter, which every context made afterwards puts on the weights.

        `shown` is what the person called it; ModelInvalid where it does not fit this model.
        """
        binding.forget_errors()
        self.adapter = lib.llama_adapter_lora_init(self.model, str(path).encode())
        if not self.adapter:
            if binding.ran_out_of_memory():
                raise OutOfMemory(f"{shown} does not fit into memory", "use a smaller model")
            reasons = "; ".join(binding.last_errors()[-1:]) or "llama.cpp gives no reason"
            raise ModelInvalid(
                f"the adapter {shown} does not fit the model: {reasons}",
                "give the model that it was trained on with -m",
            )

    def close(self) -> None:
        """Free the weights, and the adapter with them; a second call does nothing."""
        if self.model:
            lib.llama_model_free(self.model)
            self.model = None


class LoadWatch:
    """Hands llama.cpp's fractions on; Ctrl-C, and what is raised meanwhile, ends the loading."""

    def __init__(
        self, interrupt: Interrupt, progress: Callable[[float], None] = lambda _: None
    ) -> None:
        self._interrupt = interrupt
        self._progress = progress
        self.raised: BaseException | None = None
        self.callback = lib.llama_progress_callback(self.on_progress)

    def on_progress(self, fraction: float, _data: ctypes.c_void_p) -> bool:
        """llama.cpp's callback: False ends the loading."""
        try:
            self._progress(fraction)
        except BaseException as error:  # noqa: BLE001 - ctypes would print it and go on
            self.raised = self.raised or error
        return self.raised is None and not self._interrupt.raised


def _load_mode(settings: LoadSettings) -> int:
    if settings.mmap is None:
        return _LOAD_MMAP_MLOCK if settings.mlock else _LOAD_AUTO
    if settings.mmap:
        return _LOAD_MMAP_MLOCK if settings.mlock else _LOAD_MMAP
    return _LOAD_MLOCK if settings.mlock else _LOAD_NONE
