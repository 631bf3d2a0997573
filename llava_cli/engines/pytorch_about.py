"""What the installed PyTorch can do: `python -m llava_cli.engines.pytorch_about` prints JSON.

A process of its own, because importing torch takes a second and may fail in its own libraries.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def about() -> dict[str, Any]:
    """Version and devices; ImportError where torch is not installed."""
    import torch

    cuda = torch.cuda.is_available()
    count = torch.cuda.device_count() if cuda else 0
    return {
        "version": torch.__version__,
        "cuda": cuda,
        "cuda_devices": [torch.cuda.get_device_name(index) for index in range(count)],
        "mps": torch.backends.mps.is_available(),
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(about()) + "\n")
