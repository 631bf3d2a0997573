"""A llava-hf folder from any source: what transformers' `from_pretrained` loads.

Tensors go through one by one into safetensors shards, in the type they had (a merged LoRA in its
base's) or one that is asked for. The folder appears whole or not at all. Not here: reading sources
(`llava_cli.engines.layouts`), all files but the weights (`hf_form.py` there).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llava_cli.engines.layouts.hf_form import (
    Shape,
    embedding_rows,
    groups,
    grown,
    write_settings,
    write_tokens,
)
from llava_cli.engines.layouts.source import Source
from llava_cli.engines.layouts.tensors import Tensor
from llava_cli.errors import ModelInvalid, UsageError
from llava_cli.models.families import FAMILIES
from llava_cli.models.tensor_names import HEAD
from llava_convert.checkpoints import Checkpoint, read_checkpoint
from llava_convert.ggml import Kind, encode
from llava_convert.gguf_file import disk_errors, is_alive, prepare_folder, sync_folder
from llava_convert.names import assign
from llava_convert.pipeline import Progress
from llava_convert.result import ConvertedFile, ConvertResult

SHARD_BYTES = 5_000_000_000
KINDS = {"F32": Kind.F32, "F16": Kind.F16, "BF16": Kind.BF16}
"""safetensors' names of the types that are written."""
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""safetensors' names -> torch's."""


def convert_to_hf(
    source: Source,
    out: Path,
    *,
    outtype: str | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> ConvertResult:
    """Write a llava-hf folder; `outtype` is f32, f16 or bf16, None keeps the source's."""
    wanted = _checked(source, out, outtype)
    checkpoint = read_checkpoint(source)
    names = assign(checkpoint)  # refuses what would not be a whole LLaVA
    if dry_run:
        files = _sizes(_shards(source.tensors, wanted), wanted, out)
    else:
        files = _produce(checkpoint, out, wanted, progress)
    return ConvertResult(
        files=tuple(files),
        mapped=names.mapped + len(names.ignored),  # what GGUF leaves out stays here
        ignored={},
        notes=source.notes,
        kind=source.kind,
        prompt_format=source.prompt_format,
    )


def _checked(source: Source, out: Path, outtype: str | None) -> str | None:
    """The type that is wanted, once it is known that nothing stands against writing."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is not empty", "give a new folder for the converted model")
    if outtype is not None and outtype.upper() not in KINDS:
        raise UsageError(f"unknown output type {outtype!r}", "known for hf: f32, f16, bf16")
    if HEAD + "bias" in source.tensors:
        raise ModelInvalid(
            "transformers' LLaVA has no bias in its head, which this model has",
            "convert it to GGUF, where it is kept",
        )
    return outtype.upper() if outtype else None


def _produce(
    checkpoint: Checkpoint, out: Path, wanted: str | None, progress: Progress | None
) -> list[ConvertedFile]:
    """Everything into a folder beside, which then gets the name."""
    source = checkpoint.source
    aside = out.with_name(f".{out.name}.{os.getpid()}.partial")
    with disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(out)
        aside.mkdir()
    try:
        with disk_errors(aside):
            image_id = write_tokens(source, aside)
        tensors = grown(source.tensors, image_id)
        files = _write(_shards(tensors, wanted), wanted, aside, out, progress)
        with disk_errors(aside):
            write_settings(source, aside, image_id, _shape(checkpoint, tensors, wanted))
        with disk_errors(out):
            sync_folder(aside)
            if out.exists():
                out.rmdir()
            os.replace(aside, out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return files


def _kind(tensor: Tensor, wanted: str | None) -> str:
    kind = wanted or tensor.dtype
    return kind if kind in KINDS else "F32"


def _shards(tensors: Mapping[str, Tensor], wanted: str | None) -> list[dict[str, Tensor]]:
    shards: list[dict[str, Tensor]] = [{}]
    filled = 0
    for name in sorted(tensors):
        size = _bytes(tensors[name], wanted)
        if filled + size > SHARD_BYTES and shards[-1]:
            shards.append({})
            filled = 0
        shards[-1][name] = tensors[name]
        filled += size
    return shards


def _bytes(tensor: Tensor, wanted: str | None) -> int:
    item = 4 if _kind(tensor, wanted) == "F32" else 2
    return int(np.prod(tensor.shape, dtype=np.int64)) * item


def _shard_names(count: int) -> list[str]:
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{n + 1:05}-of-{count:05}.safetensors" for n in range(count)]


def _sizes(shards: list[dict[str, Tensor]], wanted: str | None, out: Path) -> list[ConvertedFile]:
    """What would be written."""
    return [
        _file(out / name, shard, wanted, sum(_bytes(t, wanted) for t in shard.values()), None)
        for name, shard in zip(_shard_names(len(shards)), shards, strict=True)
    ]


def _file(
    path: Path, shard: Mapping[str, Tensor], wanted: str | None, size: int, sha256: str | None
) -> ConvertedFile:
    table = {name: (_kind(tensor, wanted), tensor.shape) for name, tensor in shard.items()}
    kinds = {kind for kind, _ in table.values()}
    label = kinds.pop() if len(kinds) == 1 else "mixed"
    return ConvertedFile(path, "weights", label, size, sha256, table)


def _write(
    shards: list[dict[str, Tensor]],
    wanted: str | None,
    aside: Path,
    out: Path,
    progress: Progress | None,
) -> list[ConvertedFile]:
    names = _shard_names(len(shards))
    total = sum(_bytes(tensor, wanted) for shard in shards for tensor in shard.values())
    prepare_folder(aside, total)
    written: list[ConvertedFile] = []
    done = 0
    for name, shard in zip(names, shards, strict=True):
        digest, size = hashlib.sha256(), 0
        with disk_errors(aside / name), (aside / name).open("wb") as file:
            for data in _pieces(shard, wanted):
                file.write(data)
                digest.update(data)
                size += len(data)
                if progress is not None:
                    progress(min(done + size, total), total)
            file.flush()
            os.fsync(file.fileno())
        done += size
        written.append(_file(out / name, shard, wanted, size, digest.hexdigest()))
    if len(names) > 1:
        places = {n: file for file, shard in zip(names, shards, strict=True) for n in shard}
        index = {"metadata": {"total_size": total}, "weight_map": places}
        with disk_errors(aside):
            text = json.dumps(index, indent=2) + "\n"
            (aside / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    return written


def _pieces(shard: Mapping[str, Tensor], wanted: str | None) -> Iterator[bytes | memoryview]:
    """The bytes of one safetensors file."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name, tensor in shard.items():
        size = _bytes(tensor, wanted)
        header[name] = {"dtype": _kind(tensor, wanted), "shape": list(tensor.shape),
                        "data_offsets": [place, place + size]}  # fmt: skip
        place += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for tensor in shard.values():
        kind = KINDS[_kind(tensor, wanted)]
        for first, count in groups(tensor):
            data: npt.NDArray[np.uint8] = encode(tensor.read(first, count), kind, tensor.name)
            yield data.data


def _shape(checkpoint: Checkpoint, tensors: Mapping[str, Tensor], wanted: str | None) -> Shape:
    family = checkpoint.text.family
    return Shape(
        patch=checkpoint.vision.patch,
        has_class=checkpoint.vision.kind == "clip",
        language=next(kind for kind, one in FAMILIES.items() if one is family),
        rows=embedding_rows(tensors),
        dtype=DTYPES[wanted] if wanted else None,
    )


def _remove_leftovers(out: Path) -> None:
    """What killed runs left beside this folder."""
    for other in out.parent.glob(f".{out.name}.*.partial"):
        pid = other.name.removeprefix(f".{out.name}.").removesuffix(".partial")
        if other.is_dir() and pid.isdigit() and not is_alive(int(pid)):
            shutil.rmtree(other, ignore_errors=True)
