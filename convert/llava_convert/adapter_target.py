"""A LoRA adapter as a GGUF file of its own, for `--adapter` beside any GGUF of its base model.

Of the base model only the kind and the number of heads are needed: its config.json, or the header
of a GGUF. Not here: the file's form (`llava_cli.engines.layouts.gguf_lora`), merging
(`conversion.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from llava_cli.engines.layouts.gguf_lora import (
    GgufLora,
    Language,
    file_digest,
    language_of_config,
    language_of_gguf,
    open_lora,
    write_lora,
)
from llava_cli.errors import ModelInvalid, UsageError
from llava_cli.models.folders import read_json
from llava_cli.models.gguf_header import read_header
from llava_convert.conversion import checked_label
from llava_convert.gguf_file import disk_errors, prepare_folder
from llava_convert.result import ConvertedFile, ConvertResult

KINDS = {"f32": "F32", "f16": "F16"}
"""Types of an adapter's file."""


def convert_adapter(
    folder: Path,
    out: Path,
    *,
    base: Path | None,
    outtypes: Sequence[str] = (),
    name: str | None = None,
    dry_run: bool = False,
) -> ConvertResult:
    """Write NAME-lora-TYPE.gguf for each type (f16 where none is given) into the folder `out`."""
    wanted = list(dict.fromkeys(outtypes)) or ["f16"]
    for kind in wanted:
        if kind not in KINDS:
            raise UsageError(f"an adapter cannot be {kind}", f"known: {', '.join(KINDS)}")
    settings = folder / "adapter_config.json"
    if not settings.is_file():
        raise ModelInvalid(
            f"{folder} is no LoRA adapter: it has no adapter_config.json",
            "give the folder that training or peft wrote",
        )
    if base is None:
        known = read_json(settings).get("base_model_name_or_path") or "unknown"
        raise ModelInvalid(
            f"{folder} is written for the model that it was trained on ({known})",
            "name that model, a folder, a .gguf or a Hub id: --base REF",
        )
    lora = open_lora(folder, _language(base))
    label = checked_label(name, folder.resolve().name.lstrip(".") or "adapter")
    paths = [(out / f"{label}-lora-{KINDS[kind]}.gguf", kind == "f16") for kind in wanted]
    if not dry_run:
        prepare_folder(out, sum(_bytes(lora, half) for _, half in paths))
        for path, half in paths:
            with disk_errors(path):
                write_lora(lora, path, half=half)
    return ConvertResult(
        files=tuple(_file(path, lora, half, dry_run=dry_run) for path, half in paths),
        mapped=2 * len(lora.pairs),
        ignored={},
        kind="LoRA adapter",
    )


def _language(base: Path) -> Language:
    if base.is_file():
        return language_of_gguf(read_header(base).metadata)
    for folder in (base, base / "model"):
        if (folder / "config.json").is_file():
            return language_of_config(read_json(folder / "config.json"))
    raise ModelInvalid(
        f"{base} is no model", "give its folder, its .gguf or its Hub id: --base REF"
    )


def _bytes(lora: GgufLora, half: bool) -> int:
    return sum(math.prod(shape) for shape in lora.shapes().values()) * (2 if half else 4)


def _file(path: Path, lora: GgufLora, half: bool, *, dry_run: bool) -> ConvertedFile:
    kind = "F16" if half else "F32"
    table = {name: (kind, shape) for name, shape in lora.shapes().items()}
    if dry_run:
        return ConvertedFile(path, "adapter", kind, _bytes(lora, half), None, table)
    return ConvertedFile(path, "adapter", kind, path.stat().st_size, file_digest(path), table)
