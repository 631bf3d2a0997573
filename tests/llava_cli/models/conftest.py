"""Small GGUF files written here, so that these tests need no torch and no converter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

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
        feature_layer: tuple[int, ...] | None = (1,),
        blocks: int = 1,
        projector: str = "mlp",
        numbers: dict[str, int] | None = None,
        reshaped: dict[str, tuple[int, ...]] | None = None,
        vision: bool | None = True,
        audio: bool | None = None,
    ) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = GGUFWriter(path, "clip")
        writer.add_type("mmproj")
        for key, there in {"vision": vision, "audio": audio}.items():
            if there is not None:
                writer.add_bool(f"clip.has_{key}_encoder", there)
        writer.add_string("clip.projector_type", projector)
        for key, value in {"image_size": 4, "patch_size": 2, "embedding_length": 4,
                           "feed_forward_length": 6, "block_count": blocks,
                           "attention.head_count": 2, **(numbers or {})}.items():  # fmt: skip
            writer.add_uint32(f"clip.vision.{key}", value)
        if feature_layer is not None:
            writer.add_array("clip.vision.feature_layer", list(feature_layer))
        shapes: dict[str, tuple[int, ...]] = {
            "v.class_embd": (4,),
            "v.patch_embd.weight": (4, 3, 2, 2),
            "v.position_embd.weight": (5, 4),
            "mm.0.weight": (width, 4),
            "mm.0.bias": (width,),
            "mm.2.weight": (width, width),
            "mm.2.bias": (width,),
        }
        for n in range(blocks):
            for name in ("attn_q", "attn_k", "attn_v", "attn_out"):
                shapes |= {f"v.blk.{n}.{name}.weight": (4, 4), f"v.blk.{n}.{name}.bias": (4,)}
            for name in ("ln1", "ln2"):
                shapes |= {f"v.blk.{n}.{name}.weight": (4,), f"v.blk.{n}.{name}.bias": (4,)}
            shapes |= {f"v.blk.{n}.ffn_up.weight": (6, 4), f"v.blk.{n}.ffn_up.bias": (6,)}
            shapes |= {f"v.blk.{n}.ffn_down.weight": (4, 6), f"v.blk.{n}.ffn_down.bias": (4,)}
        shapes |= reshaped or {}
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
