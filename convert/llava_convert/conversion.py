"""From a source to GGUF files, in one pass over its tensors.

`convert` opens the source, plans every tensor of every file, and only then writes: each source
tensor is read once, a few rows at a time, and goes to all files that want it. The files get their
names after all of them are whole.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from llava_cli.engines.layouts.chat_templates import fitting_template
from llava_cli.engines.layouts.source import Extras, Source
from llava_cli.engines.layouts.sources import open_source
from llava_cli.errors import UsageError
from llava_convert.checkpoints import Checkpoint, read_checkpoint
from llava_convert.gguf_file import PlannedTensor, Sink, prepare_folder
from llava_convert.imatrix import Imatrix, read_imatrix
from llava_convert.mixtures import MMPROJ_OUTTYPES, OutType, mixed_kind, outtype, tensor_kind
from llava_convert.mmproj import mmproj_header, plan_mmproj
from llava_convert.names import Names, assign
from llava_convert.pipeline import Plan, Progress, default_threads, memory_needed, stream
from llava_convert.result import ConvertedFile, ConvertResult
from llava_convert.text import plan_text, text_header, traits
from llava_convert.vocabulary import Vocabulary, read_vocabulary


def convert(
    source: Path | Source,
    out: Path,
    *,
    outtypes: Sequence[str] = ("f16",),
    mmproj_outtype: str = "f16",
    name: str | None = None,
    extras: Extras | None = None,
    imatrix: Path | None = None,
    threads: int | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> ConvertResult:
    """Write NAME-TYPE.gguf for each outtype and mmproj-NAME-TYPE.gguf into the folder `out`.

    `source` is a folder or one that was opened already; `extras` is for folders.
    """
    wanted = [outtype(kind) for kind in dict.fromkeys(kind.lower() for kind in outtypes)]
    if not wanted:
        raise UsageError("no output type is given")
    mmproj = outtype(mmproj_outtype, MMPROJ_OUTTYPES)
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file", "give a folder for the converted model")
    importance = read_imatrix(imatrix) if imatrix is not None else None
    opened = source if isinstance(source, Source) else open_source(Path(source), extras)
    checkpoint = read_checkpoint(opened)
    label = output_label(name, checkpoint)
    names = assign(checkpoint)
    rows = names.text["token_embd.weight"].shape[0]
    template = fitting_template(checkpoint.folder, checkpoint.prompt_format)
    vocabulary = read_vocabulary(checkpoint.folder, checkpoint.config, rows, template)
    text = _plan_text(checkpoint, names, vocabulary, wanted, out, label, importance)
    plans = (text, _plan_mmproj(checkpoint, names, mmproj, out, label))
    threads = threads or default_threads()
    if not dry_run:
        _write(plans, out, threads, progress)
    return ConvertResult(
        files=tuple(_converted(plan, sink) for plan in plans for sink in plan.sinks),
        mapped=names.mapped,
        ignored=dict(names.ignored),
        notes=(*checkpoint.source.notes, *vocabulary.notes),
        kind=checkpoint.source.kind,
        prompt_format=checkpoint.prompt_format,
        memory_bytes=memory_needed(plans, threads),
    )


def _converted(plan: Plan, sink: Sink) -> ConvertedFile:
    shapes = {tensor.name: tensor.shape for tensor in plan.tensors}
    table = {name: (kind.name, shapes[name]) for name, kind in sink.kinds.items()}
    return ConvertedFile(sink.path, plan.role, sink.label, sink.bytes, sink.sha256 or None, table)


def _plan_text(
    checkpoint: Checkpoint,
    names: Names,
    vocabulary: Vocabulary,
    wanted: Sequence[OutType],
    out: Path,
    label: str,
    importance: Imatrix | None,
) -> Plan:
    tensors = plan_text(checkpoint, names.text)
    parameters = sum(math.prod(tensor.shape) for tensor in tensors)
    model = traits(checkpoint.text, names.text, importance is not None)
    sinks = []
    for kind in wanted:
        header = text_header(checkpoint, vocabulary, kind, label, parameters)
        if importance is not None:
            importance.describe(header)
        kinds = {t.name: mixed_kind(kind, t.name, t.shape, model) for t in tensors}
        path = out / f"{label}-{kind.label}.gguf"
        sinks.append(Sink(path, header, tensors, kinds, kind.label))
    return Plan("text", tensors, tuple(sinks), importance)


def _plan_mmproj(
    checkpoint: Checkpoint, names: Names, kind: OutType, out: Path, label: str
) -> Plan:
    tensors: tuple[PlannedTensor, ...] = plan_mmproj(checkpoint, names.mmproj)
    kinds = {t.name: tensor_kind(kind, t.shape, full=t.full) for t in tensors}
    path = out / f"mmproj-{label}-{kind.label}.gguf"
    header = mmproj_header(checkpoint, kind, label)
    return Plan("mmproj", tensors, (Sink(path, header, tensors, kinds, kind.label),))


def _write(plans: Sequence[Plan], out: Path, threads: int, progress: Progress | None) -> None:
    """All files, tensor by tensor; none has its name before the last byte of all is on the disk."""
    sinks = [sink for plan in plans for sink in plan.sinks]
    prepare_folder(out, sum(sink.bytes for sink in sinks))
    with ExitStack() as stack:
        for sink in sinks:
            stack.enter_context(sink)
        stream(plans, threads, progress)
        for sink in sinks:
            sink.flush()
        for sink in sinks:
            sink.commit()


def output_label(name: str | None, checkpoint: Checkpoint) -> str:
    """What stands in the file names."""
    return checked_label(name, checkpoint.name)


def checked_label(name: str | None, usual: str) -> str:
    """The name that was asked for, if it can be one, or the usual one."""
    if name is None:
        return usual
    if not name or name != Path(name).name or name.startswith("."):
        raise UsageError(f"{name!r} cannot be part of a file name", "give --name without slashes")
    return name
