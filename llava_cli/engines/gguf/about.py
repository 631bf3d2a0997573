"""What the installed llama.cpp can do: `python -m llava_cli.engines.gguf.about` prints JSON.

A process of its own, because a build for another processor ends the process that loads it.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def about() -> dict[str, Any]:
    """Version and devices; ImportError where llama-cpp-python is not installed."""
    import llama_cpp

    return {
        "version": llama_cpp.__version__,
        "gpu_offload": bool(llama_cpp.llama_supports_gpu_offload()),
        "system": llama_cpp.llama_print_system_info().decode("utf-8", "replace").strip(),
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(about()) + "\n")
