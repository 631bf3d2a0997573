"""Small GGUF files written here, so that these tests need no torch and no converter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter

Writer = Callable[..., Path]


@pytest.fixture
def text_gguf() -> Writer:
    """Writes a text model's file: header and one tensor."""

    def write(path: Path, *, width: int = 8, **keys: str) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = GGUFWriter(path, "llama")
        writer.add_type("model")
        writer.add_embedding_length(width)
        writer.add_token_list([f"token {i}" for i in range(5000)])
        for key, value in keys.items():
            writer.add_string(key.replace("__", "."), value)
        writer.add_tensor("token_embd.weight", np.ones((16, width), np.float32))
        return _finished(writer, path)

    return write


@pytest.fixture
def mmproj_gguf() -> Writer:
    """Writes a mmproj: a LLaVA's names without its numbers."""

    def write(
        path: Path,
        *,
        width: int = 8,
        without: tuple[str, ...] = (),
        feature_layer: list[int] | None = (1,),  # type: ignore[assignment]
        blocks: int = 1,
        keys: dict[str, Any] | None = None,
    ) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = GGUFWriter(path, "clip")
        writer.add_type("mmproj")
        writer.add_bool("clip.has_vision_encoder", True)
        writer.add_string("clip.projector_type", (keys or {}).get("projector", "mlp"))
        writer.add_uint32("clip.vision.image_size", 56)
        writer.add_uint32("clip.vision.block_count", blocks)
        writer.add_uint32("clip.vision.embedding_length", 64)
        if feature_layer is not None:
            writer.add_array("clip.vision.feature_layer", list(feature_layer))
        shapes = {
            "v.patch_embd.weight": (4, 3, 2, 2),
            "v.position_embd.weight": (5, 4),
            "mm.0.weight": (width, 4),
            "mm.0.bias": (width,),
            "mm.2.weight": (width, width),
            "mm.2.bias": (width,),
        }
        shapes |= {f"v.blk.{n}.attn_q.weight": (4, 4) for n in range(blocks)}
        for name, shape in shapes.items():
            if name not in without:
                writer.add_tensor(name, np.ones(shape, np.float32))
        return _finished(writer, path)

    return write


def _finished(writer: GGUFWriter, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
