"""A LoRA adapter of peft as llama.cpp reads one: a GGUF file with the pairs of its language model.

Only the language model can be adapted there; an adapter that changes more has to be merged, and is
refused with the command that does it. Scales that differ by module (rsLoRA, alpha_pattern) are put
into the B matrices, because the file has one alpha for all. Legend: R rank.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFValueType, GGUFWriter

from llava_cli.engines.layouts.adapters import (
    Scale,
    adapter_tensors,
    pairs_of,
    read_settings,
    scale_of,
)
from llava_cli.engines.layouts.originals import PARTS, language_of
from llava_cli.engines.layouts.tensors import Array, Tensor, permute
from llava_cli.errors import ModelInvalid
from llava_cli.models.families import FAMILIES
from llava_cli.models.folders import is_original
from llava_cli.models.tensor_names import canonical

_LAYER = re.compile(r"(?<=layers\.)\d+(?=\.)")


@dataclass(frozen=True)
class Language:
    """What an adapter must know of the language model under it."""

    architecture: str
    """llama.cpp's name."""
    heads: int
    kv_heads: int


@dataclass(frozen=True)
class GgufLora:
    """An adapter that is ready to be written."""

    language: Language
    alpha: float
    pairs: Mapping[str, tuple[Tensor, Tensor, float]]
    """GGUF's name of a matrix -> A (R, columns), B (rows, R), and a factor for B."""

    def arrays(self) -> Iterator[tuple[str, Array]]:
        """Name and values of every tensor, one after the other."""
        for name, (down, up, factor) in self.pairs.items():
            yield f"{name}.lora_a", down.array()
            rows = up.array() * np.float32(factor)
            yield f"{name}.lora_b", _ordered(name, rows, self.language)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every tensor, in torch's order."""
        found: dict[str, tuple[int, ...]] = {}
        for name, (down, up, _) in self.pairs.items():
            found |= {f"{name}.lora_a": down.shape, f"{name}.lora_b": up.shape}
        return found


def language_of_gguf(metadata: Mapping[str, Any]) -> Language:
    """Of a text GGUF."""
    kind = str(metadata.get("general.architecture", ""))
    heads = metadata.get(f"{kind}.attention.head_count")
    kv_heads = metadata.get(f"{kind}.attention.head_count_kv", heads)
    if not isinstance(heads, int) or not isinstance(kv_heads, int):
        raise ModelInvalid(f"the metadata of a {kind or 'GGUF'} model gives no number of heads")
    return Language(kind, heads, kv_heads)


def language_of_config(config: Mapping[str, Any]) -> Language:
    """Of a config.json: a LLaVA's, llava-hf or original, or that of a language model alone."""
    text = config.get("text_config") or config
    kind = language_of(config) if is_original(config) else str(text.get("model_type", "llama"))
    if kind not in FAMILIES:
        raise ModelInvalid(f"no adapter for a {kind} language model can be written yet",
                           f"known: {', '.join(FAMILIES)}")  # fmt: skip
    settings = {"num_attention_heads": 32, **FAMILIES[kind].defaults, **text}
    heads = settings["num_attention_heads"]
    kv_heads = settings.get("num_key_value_heads") or heads
    return Language(FAMILIES[kind].architecture, int(heads), int(kv_heads))


def open_lora(folder: Path, language: Language) -> GgufLora:
    """peft's folder as a GGUF adapter; ModelInvalid says what else is to be done with it."""
    settings = read_settings(folder)
    merge = f"merge it: llava convert {folder} -o DIR --base REF; then -m DIR"
    if beside := next((name for name in PARTS if (folder / name).is_file()), None):
        raise ModelInvalid(
            f"{folder} is more than an adapter: its projector was trained, too ({beside})", merge
        )
    pairs, rest = pairs_of(adapter_tensors(folder))
    if rest:
        raise ModelInvalid(
            f"{next(iter(rest))} was trained whole, which a GGUF adapter cannot hold", merge
        )
    targets = _targets(language.architecture)
    scale = scale_of(settings)
    found: dict[str, tuple[Tensor, Tensor, float]] = {}
    for module, (down, up) in pairs.items():
        name = canonical(f"{module}.weight")
        target = targets.get(_LAYER.sub("{n}", name, count=1))
        if target is None:
            raise ModelInvalid(
                f"the adapter changes {module}, which a GGUF adapter for a "
                f"{language.architecture} model cannot",
                merge,
            )
        layer = _LAYER.search(name)
        target = target.replace("{n}", layer.group() if layer else "")
        found[target] = (down, up, _factor(scale, module, down.shape[0]))
    return GgufLora(language, scale.alpha or 1.0, found)


def write_lora(lora: GgufLora, target: Path, *, half: bool = False) -> None:
    """The file, whole or not at all; `half` stores float16."""
    aside = target.with_name(f".{target.name}.{os.getpid()}.partial")
    dtype = np.dtype(np.float16 if half else np.float32)
    writer = GGUFWriter(aside, lora.language.architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_key_value("adapter.lora.alpha", lora.alpha, GGUFValueType.FLOAT32)
    writer.add_file_type(1 if half else 0)
    for name, shape in lora.shapes().items():
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        writer.add_tensor_info(name, shape, dtype, size)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for _, values in lora.arrays():
            writer.write_tensor_data(values.astype(dtype))
        for file in writer.fout or ():
            file.flush()
            os.fsync(file.fileno())
        writer.close()
        os.replace(aside, target)
    finally:
        aside.unlink(missing_ok=True)


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            found.update(chunk)
    return found.hexdigest()


def _targets(architecture: str) -> dict[str, str]:
    """llava-hf's names of a language model's matrices -> GGUF's; {n} is the layer."""
    return {
        rule.source: rule.target
        for family in FAMILIES.values()
        if family.architecture == architecture
        for rule in family.rules
        if len(rule.shape.split()) == 2 and "embed_tokens" not in rule.source
    }


def _factor(scale: Scale, module: str, rank: int) -> float:
    """What is left for B when llama.cpp has multiplied by alpha / R."""
    return scale.of(module, rank) * rank / (scale.alpha or 1.0)


def _ordered(name: str, rows: Array, language: Language) -> Array:
    """Rows of q and k in the order that the base model's file has them in."""
    permuted = any(f.permuted for f in FAMILIES.values() if f.architecture == language.architecture)
    kind = name.split(".")[-2]
    if not permuted or kind not in ("attn_q", "attn_k"):
        return rows
    return permute(rows, language.heads if kind == "attn_q" else language.kv_heads)
