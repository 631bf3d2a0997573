"""From a checkpoint to GGUF files, in one pass over its tensors.

`convert` opens the source, plans every tensor of every file, and only then writes: each source
tensor is read once, a few rows at a time, and goes to all files that want it. The files get their
names after all of them are whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llava_cli.errors import UsageError
from llava_convert.checkpoints import Checkpoint, open_checkpoint
from llava_convert.gguf_file import PlannedTensor, Sink, prepare_folder
from llava_convert.mmproj import mmproj_header, plan_mmproj
from llava_convert.names import Names, assign
from llava_convert.quantize import OutType, outtype
from llava_convert.text import plan_text, text_header
from llava_convert.vocabulary import Vocabulary, read_vocabulary

Role = Literal["text", "mmproj"]
Progress = Callable[[int, int], None]
"""Called with the bytes written so far and in all."""


@dataclass(frozen=True)
class ConvertedFile:
    """One file that was written, or with `dry_run` would be."""

    path: Path
    role: Role
    type: str
    bytes: int
    sha256: str | None
    """None with `dry_run`."""


@dataclass(frozen=True)
class ConvertResult:
    """What came of a conversion."""

    files: tuple[ConvertedFile, ...]
    mapped: int
    """How many of the source's tensors are in the files."""
    ignored: dict[str, str]
    """Source tensors that are not, each with the reason."""
    notes: tuple[str, ...] = ()
    """What a person should know about the result."""


@dataclass(frozen=True)
class _Plan:
    """The files of one role, and their tensors."""

    role: Role
    tensors: tuple[PlannedTensor, ...]
    sinks: tuple[Sink, ...]


def convert(
    source: Path,
    out: Path,
    *,
    outtypes: Sequence[str] = ("f16",),
    mmproj_outtype: str = "f16",
    name: str | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> ConvertResult:
    """Write NAME-TYPE.gguf for each outtype and mmproj-NAME-TYPE.gguf into the folder `out`."""
    wanted = [outtype(kind) for kind in dict.fromkeys(kind.lower() for kind in outtypes)]
    if not wanted:
        raise UsageError("no output type is given")
    mmproj = outtype(mmproj_outtype)
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file", "give a folder for the converted model")
    checkpoint = open_checkpoint(Path(source))
    label = _label(name, checkpoint)
    names = assign(checkpoint)
    rows = names.text["token_embd.weight"].shape[0]
    vocabulary = read_vocabulary(checkpoint.folder, checkpoint.config, rows)
    plans = _plan(checkpoint, names, vocabulary, wanted, mmproj, out, label)
    if not dry_run:
        _write(plans, out, progress)
    files = [
        ConvertedFile(sink.path, plan.role, sink.label, sink.bytes, sink.sha256 or None)
        for plan in plans
        for sink in plan.sinks
    ]
    return ConvertResult(tuple(files), names.mapped, dict(names.ignored), vocabulary.notes)


def _plan(
    checkpoint: Checkpoint,
    names: Names,
    vocabulary: Vocabulary,
    wanted: Sequence[OutType],
    mmproj: OutType,
    out: Path,
    label: str,
) -> tuple[_Plan, _Plan]:
    text = plan_text(checkpoint, names.text)
    parameters = sum(math.prod(tensor.shape) for tensor in text)
    text_sinks = tuple(
        Sink(
            out / f"{label}-{kind.label}.gguf",
            text_header(checkpoint, vocabulary, kind, label, parameters),
            text,
            kind,
        )
        for kind in wanted
    )
    vision = plan_mmproj(checkpoint, names.mmproj)
    vision_sink = Sink(
        out / f"mmproj-{label}-{mmproj.label}.gguf",
        mmproj_header(checkpoint, mmproj, label),
        vision,
        mmproj,
    )
    return _Plan("text", text, text_sinks), _Plan("mmproj", vision, (vision_sink,))


def _write(plans: Sequence[_Plan], out: Path, progress: Progress | None) -> None:
    """All files, tensor by tensor; none has its name before the last byte of all is on the disk."""
    sinks = [sink for plan in plans for sink in plan.sinks]
    total = sum(sink.bytes for sink in sinks)
    prepare_folder(out, total)
    with ExitStack() as stack:
        for sink in sinks:
            stack.enter_context(sink)
        for plan in plans:
            for tensor in plan.tensors:
                for values in tensor.chunks():
                    for sink in plan.sinks:
                        sink.append(tensor, values)
                for sink in plan.sinks:
                    sink.end_tensor(tensor)
                if progress is not None:
                    progress(sum(sink.written for sink in sinks), total)
        for sink in sinks:
            sink.flush()
        for sink in sinks:
            sink.commit()


def _label(name: str | None, checkpoint: Checkpoint) -> str:
    """What stands in the file names."""
    if name is None:
        return checkpoint.name
    if not name or name != Path(name).name or name.startswith("."):
        raise UsageError(f"{name!r} cannot be part of a file name", "give --name without slashes")
    return name
