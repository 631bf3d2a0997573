"""What a model is, read from its own files: sizes, tower, picture tokens, prompt format, memory."""

from __future__ import annotations

import json
import math
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_cli.models.files import ModelFiles
from llava_cli.models.folders import read_json
from llava_cli.models.gguf_header import read_header

CONTEXT = 2048
"""Positions that the memory estimate counts in: a picture, a question, an answer."""
_SCRATCH = 1.1
"""Over weights and KV cache: activations of one forward pass, buffers."""


@dataclass(frozen=True)
class Tower:
    """The image encoder."""

    kind: str
    width: int | None
    layers: int | None
    image_px: int | None
    patch_px: int | None

    def __str__(self) -> str:
        parts = [self.kind]
        if self.layers and self.width:
            parts.append(f"{self.layers} layers x {self.width}")
        if self.image_px:
            parts.append(f"{self.image_px} px")
        if self.patch_px:
            parts.append(f"patches of {self.patch_px} px")
        return ", ".join(parts)


@dataclass(frozen=True)
class Facts:
    """A model as `llava show` tells it."""

    format: str
    architecture: str
    parameters: int
    quantization: str
    """Of GGUF files the scheme, else the weights' number format."""
    tower: Tower
    image_tokens: int | None
    """Of one picture; None where it depends on the picture."""
    prompt_format: str | None
    context: int | None
    """Positions that the language model reads."""
    files: tuple[tuple[str, int], ...]
    """Names and bytes."""
    memory_bytes: int
    """To load it and answer about one picture."""
    license: str | None

    @property
    def bytes(self) -> int:
        """All files together."""
        return sum(size for _, size in self.files)


def facts(files: ModelFiles) -> Facts:
    """Read a model's headers and settings; its weights stay where they are."""
    return _gguf_facts(files) if files.format == "gguf" else _hf_facts(files)


def kv_bytes(layers: int, kv_heads: int, head_dim: int, positions: int, width: int = 2) -> int:
    """Keys and values of a context; `width` is the bytes of a number."""
    return 2 * layers * kv_heads * head_dim * positions * width


def _gguf_facts(files: ModelFiles) -> Facts:
    text = read_header(files.path)
    mmproj = read_header(files.mmproj) if files.mmproj else None
    keys = text.metadata
    vision: Mapping[str, Any] = mmproj.metadata if mmproj else {}
    name = text.architecture

    def number(key: str) -> int:
        value = keys.get(f"{name}.{key}")
        return value if isinstance(value, int) else 0

    px, patch = (vision.get(f"clip.vision.{key}") for key in ("image_size", "patch_size"))
    heads = number("attention.head_count")
    head_dim = number("attention.key_length") or number("embedding_length") // max(heads, 1)
    cache = kv_bytes(
        number("block_count"), number("attention.head_count_kv") or heads, head_dim, CONTEXT
    )
    sizes = tuple((path.name, path.stat().st_size) for path in (files.path, files.mmproj) if path)
    tensors = (*text.tensors.values(), *(mmproj.tensors.values() if mmproj else ()))
    return Facts(
        format="gguf",
        architecture=name,
        parameters=sum(math.prod(tensor.shape) for tensor in tensors),
        quantization=_file_type(keys.get("general.file_type")),
        tower=Tower(
            kind=str(vision.get("general.architecture", "none")),
            width=vision.get("clip.vision.embedding_length"),
            layers=vision.get("clip.vision.block_count"),
            image_px=px,
            patch_px=patch,
        ),
        image_tokens=(px // patch) ** 2 if px and patch else None,
        prompt_format=files.prompt_format,
        context=number("context_length") or None,
        files=sizes,
        memory_bytes=int((sum(size for _, size in sizes) + cache) * _SCRATCH),
        license=_text(keys.get("general.license")),
    )


def _file_type(number: object) -> str:
    from gguf.constants import LlamaFileType

    if not isinstance(number, int):
        return "unknown"
    try:
        return LlamaFileType(number).name.removeprefix("MOSTLY_").removeprefix("ALL_")
    except ValueError:
        return "unknown"


def _hf_facts(files: ModelFiles) -> Facts:
    config = files.config
    vision, text = _part(config, "vision_config"), _part(config, "text_config")
    kind = str(config.get("model_type", "unknown"))
    tower = str(vision.get("model_type", "unknown"))
    if files.format == "original":  # its language model's numbers stand at the top
        text, tower = config, str(config.get("mm_vision_tower", "unknown"))
        kind = str((config.get("architectures") or [kind])[0])
    parameters, dtypes = weights(files.path)
    px, patch = _number(vision, "image_size"), _number(vision, "patch_size")
    tokens = None
    if config.get("model_type") == "llava" and px and patch:
        whole = config.get("vision_feature_select_strategy") == "full"
        tokens = (px // patch) ** 2 + int(whole)
    listed = sorted(path for path in files.path.iterdir() if path.is_file())
    return Facts(
        format="safetensors" if files.format == "hf" else "original LLaVA",
        architecture=kind,
        parameters=parameters,
        quantization=dtypes.most_common(1)[0][0] if dtypes else "unknown",
        tower=Tower(
            kind=tower,
            width=_number(vision, "hidden_size"),
            layers=_number(vision, "num_hidden_layers"),
            image_px=px,
            patch_px=patch,
        ),
        image_tokens=tokens,
        prompt_format=files.prompt_format,
        context=_number(text, "max_position_embeddings"),
        files=tuple((path.name, path.stat().st_size) for path in listed),
        memory_bytes=torch_memory(files, 2),
        license=None,
    )


def torch_memory(files: ModelFiles, width: int) -> int:
    """Bytes that a safetensors model takes with numbers of `width` bytes."""
    parameters, _ = weights(files.path)
    text = _part(files.config, "text_config")
    heads = _number(text, "num_attention_heads") or 0
    head_dim = _number(text, "head_dim") or (_number(text, "hidden_size") or 0) // max(heads, 1)
    cache = kv_bytes(
        _number(text, "num_hidden_layers") or 0,
        _number(text, "num_key_value_heads") or heads,
        head_dim,
        CONTEXT,
        width,
    )
    return int((parameters * width + cache) * _SCRATCH)


def weights(folder: Path) -> tuple[int, Counter[str]]:
    """Parameters of a folder's weights, in all and by number format."""
    dtypes: Counter[str] = Counter()
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        for name, entry in header.items():
            if name != "__metadata__":
                dtypes[str(entry["dtype"])] += math.prod(entry["shape"])
    dtypes = dtypes or _pickled(folder)
    return sum(dtypes.values()), dtypes


def _pickled(folder: Path) -> Counter[str]:
    """Of torch's .bin files, which are not opened here: as many as their bytes can hold."""
    kind = str(read_json(folder / "config.json").get("torch_dtype") or "float16")
    size = sum(path.stat().st_size for path in folder.glob("pytorch_model*.bin"))
    return Counter({kind: size // (4 if kind == "float32" else 2)}) if size else Counter()


def _part(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = config.get(name)
    return found if isinstance(found, dict) else {}


def _number(config: Mapping[str, Any], key: str) -> int | None:
    value = config.get(key)
    if isinstance(value, list) and value:  # [height, width]
        value = value[0]
    return value if isinstance(value, int) else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
