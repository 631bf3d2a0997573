"""llama.cpp's low-level API, started once, with its log kept instead of printed.

Importing this module loads the shared libraries; everything that calls them imports it first. Not
here: what is done with them (`language.py`, `vision.py`).
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections import deque
from pathlib import Path
from typing import Any

import llama_cpp
from llama_cpp import mtmd_cpp

from llava_cli.errors import LlavaError

lib: Any = llama_cpp.llama_cpp
"""Functions of llama.h; the package's annotations are not exact enough to check against."""
mtmd: Any = mtmd_cpp
"""Functions of mtmd.h."""

_LOG: deque[str] = deque(maxlen=400)
_ERRORS: deque[str] = deque(maxlen=20)
_ERROR_LEVEL, _CONTINUED_LEVEL = 4, 5
_last_level = 0
_start_lock = threading.Lock()
_started = False


def start() -> None:
    """Initialise the libraries; a second call does nothing."""
    global _started
    with _start_lock:
        if _started:
            return
        lib.llama_log_set(_on_log, ctypes.c_void_p(0))
        mtmd.mtmd_helper_log_set(_on_log, ctypes.c_void_p(0))
        lib.llama_backend_init()
        _started = True


@lib.llama_log_callback  # type: ignore[untyped-decorator]
def _on_log(level: int, text: bytes, _data: Any) -> None:
    """Keeps what llama.cpp says; it must never raise."""
    global _last_level
    line = text.decode("utf-8", "replace")
    kept = _last_level if level == _CONTINUED_LEVEL else level
    _last_level = kept
    _LOG.append(line)
    if kept == _ERROR_LEVEL and line.strip():
        _ERRORS.append(line.strip())


def log_text() -> str:
    """The last lines of llama.cpp's log, for --debug."""
    return "".join(_LOG)


def forget_errors() -> None:
    """So that `last_errors` speaks of what follows."""
    _ERRORS.clear()


def last_errors() -> list[str]:
    """What llama.cpp called errors since `forget_errors`."""
    return list(_ERRORS)


def ran_out_of_memory() -> bool:
    """Whether one of these errors was a failed allocation."""
    signs = ("failed to allocate", "out of memory", "unable to allocate", "alloc_tensor_range")
    return any(sign in error.lower() for error in _ERRORS for sign in signs)


def ggml_base() -> ctypes.CDLL:
    """The library of tensors, which the package loads but gives no functions of."""
    return ggml_library("base")


def ggml_library(part: str) -> ctypes.CDLL:
    """ggml's tensors (`base`) or what computes them (`cpu`)."""
    override = os.environ.get("LLAMA_CPP_LIB_PATH")
    package = Path(llama_cpp.__file__).resolve().parent / "lib"
    folders = [Path(override), package] if override else [package]
    for folder in folders:
        for name in ("libggml-{}.so", "libggml-{}.dylib", "ggml-{}.dll", "libggml-{}.dll"):
            path = folder / name.format(part)
            if path.is_file():
                return ctypes.CDLL(str(path))
    raise LlavaError(
        f"this llama-cpp-python has no library ggml-{part}",
        "install it again: pip install --force-reinstall llama-cpp-python",
    )


def offload_device() -> str:
    """`cuda`, `mps` or `gpu` where this build computes on one, else `cpu`."""
    if not lib.llama_supports_gpu_offload():
        return "cpu"
    info = lib.llama_print_system_info().decode("utf-8", "replace")
    if "CUDA" in info:
        return "cuda"
    return "mps" if "MTL" in info or "Metal" in info else "gpu"
