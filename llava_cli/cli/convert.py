"""`llava convert`: a checkpoint into GGUF files, or into a llava-hf folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llava_cli.cli.groups import Command
from llava_cli.cli.options import common

if TYPE_CHECKING:
    from llava_cli.engines.layouts.source import Source
    from llava_convert import ConvertResult
    from llava_convert.check import Check

OUTTYPES = ("f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q5_k_s", "q4_k_m", "q4_k_s", "q4_0",
            "q3_k_m", "q2_k")  # fmt: skip
MMPROJ_OUTTYPES = ("f32", "f16", "bf16", "q8_0")


def _outtypes(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> tuple[str, ...]:
    """Repeated or separated by commas; each once, in the order given."""
    chosen = [piece.strip().lower() for value in values for piece in value.split(",")]
    for piece in chosen:
        if piece not in OUTTYPES:
            known = ", ".join(OUTTYPES)
            raise click.BadParameter(f"{piece!r} is not one of {known}", context, parameter)
    return tuple(dict.fromkeys(chosen))


@click.command(
    "convert",
    cls=Command,
    examples=(
        ("llava convert RUN -o gguf", "a training run as float16"),
        ("llava convert llava-hf/llava-1.5-7b-hf -o gguf --quant Q4_K_M,Q8_0", "two in one pass"),
        ("llava convert LORA --base lmsys/vicuna-7b-v1.5 -o gguf", "an adapter, merged"),
        ("llava convert LORA --base BASE -o gguf --to adapter", "an adapter, for --adapter"),
        ("llava convert ORIGINAL -o model --to hf", "for transformers"),
        ("llava convert RUN -o gguf --dry-run", "which tensors and files, and how large"),
    ),
)
@click.argument("source")
@click.option(
    "-o", "--out", required=True, type=click.Path(path_type=Path), help="Folder to write to."
)
@click.option(
    "--to",
    "target",
    type=click.Choice(["gguf", "hf", "adapter"]),
    default="gguf",
    show_default=True,
    help="Layout of the result; adapter: a LoRA as a GGUF of its own, for --adapter.",
)
@click.option(
    "--outtype",
    "--quant",
    "outtypes",
    multiple=True,
    callback=_outtypes,
    metavar="TYPE[,TYPE…]",
    help=f"Of the language model: {', '.join(OUTTYPES)}. Repeat, or separate by commas. "
    "[default: f16; for hf as in the source]",
)
@click.option(
    "--mmproj-outtype",
    type=click.Choice(MMPROJ_OUTTYPES, case_sensitive=False),
    default="f16",
    show_default=True,
    help="Of the vision tower and projector.",
)
@click.option("--base", metavar="REF", help="Model that an adapter, projector or delta belongs to.")
@click.option(
    "--vision-tower", metavar="REF", help="Tower of a checkpoint that does not hold its own."
)
@click.option("--prompt-format", metavar="NAME", help="Where the checkpoint does not say it.")
@click.option(
    "--imatrix",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Importance matrix of llama-imatrix.",
)
@click.option("--name", help="In the files' names; default: the source folder's name.")
@click.option("--threads", type=click.IntRange(min=1), help="[default: all cores]")
@click.option("--check", "wants_check", is_flag=True, help="Compare with the source in PyTorch.")
@click.option("--dry-run", is_flag=True, help="Check everything, write nothing.")
@click.option("--card/--no-card", default=True, help="Write README.md and Modelfile beside.")
@click.option("--push-to-hub", metavar="REPO", help="Upload the result to the Hub (org/name).")
def convert(source: str, out: Path, **options: Any) -> None:
    """Turn a checkpoint into GGUF files: NAME-TYPE.gguf and mmproj-NAME-TYPE.gguf.

    SOURCE is a llava-hf folder, a checkpoint of the original LLaVA code, a projector or LoRA
    adapter (with --base), a training run, or a Hub id (org/name).
    """
    from llava_cli.errors import LlavaError, UsageError

    if options["wants_check"] and options["target"] != "gguf":
        raise UsageError("--check compares GGUF models", f"leave out --to {options['target']}")
    repo = options["push_to_hub"]
    if repo is not None:
        from llava_convert.hub import check_target

        check_target(repo, offline=common().offline)
    if options["target"] == "adapter":
        result = _adapter(source, out, options)
        _report(result, None, options)
        if repo is not None and not options["dry_run"]:
            from llava_convert.hub import push

            push(repo, out, [file.path for file in result.files])
        return
    opened, label = _open(source, options)
    name = label if options["name"] is None else options["name"]
    result = _run(opened, out, name, options)
    found = None
    if options["wants_check"] and not options["dry_run"]:
        from llava_convert.check import check

        found = check(opened, result.files, options["threads"])
    beside = _write_beside(opened, out, name or opened.name, result, options)
    if repo is not None and not options["dry_run"]:
        from llava_convert.hub import push

        push(repo, out, [*_uploaded(out, result, options), *beside])
    _report(result, found, options)
    if found is not None and found.verdict == "different":
        raise LlavaError(
            "a converted file does not answer as its source does",
            "see the comparison above; please report it",
        )


def _open(source: str, options: dict[str, Any]) -> tuple[Source, str | None]:
    """The source, and what to call the result where its folder's name says nothing."""
    from llava_cli.engines.layouts.source import Extras
    from llava_cli.engines.layouts.sources import open_source

    folder, label = _locate(source)
    base, tower = options["base"], options["vision_tower"]
    extras = Extras(
        base=_locate(base)[0] if base else None,
        vision_tower=_locate(tower)[0] if tower else None,
        prompt_format=options["prompt_format"],
    )
    return open_source(folder, extras), label


def _adapter(source: str, out: Path, options: dict[str, Any]) -> ConvertResult:
    """A LoRA adapter as a file of its own."""
    from llava_convert.adapter_target import convert_adapter

    folder, label = _locate(source)
    base = options["base"]
    return convert_adapter(
        folder,
        out,
        base=_locate(base, ("config.json",))[0] if base else None,
        outtypes=options["outtypes"],
        name=label if options["name"] is None else options["name"],
        dry_run=options["dry_run"],
    )


def _run(opened: Source, out: Path, name: str | None, options: dict[str, Any]) -> ConvertResult:
    from llava_cli.errors import UsageError
    from llava_convert import convert as to_gguf
    from llava_convert.hf_target import convert_to_hf

    progress = _progress(options["dry_run"])
    if options["target"] == "gguf":
        return to_gguf(
            opened,
            out,
            outtypes=options["outtypes"] or ("f16",),
            mmproj_outtype=options["mmproj_outtype"],
            name=name,
            imatrix=options["imatrix"],
            threads=options["threads"],
            dry_run=options["dry_run"],
            progress=progress,
        )
    if len(options["outtypes"]) > 1:
        raise UsageError("a llava-hf folder has one type", "give one of f32, f16, bf16")
    return convert_to_hf(
        opened,
        out,
        outtype=options["outtypes"][0] if options["outtypes"] else None,
        dry_run=options["dry_run"],
        progress=progress,
    )


def _locate(source: str, wanted: tuple[str, ...] | None = None) -> tuple[Path, str | None]:
    """The folder of a source, and what to call the result where the folder's name says nothing.

    `wanted` are the only files that are needed of it.
    """
    from llava_cli.models import BUNDLED, resolve
    from llava_convert.hub import fetch_folder, is_hub_id

    path = Path(source).expanduser()
    if path.exists():
        return path, None
    if source == BUNDLED:
        return resolve(source, engine="torch", offline=common().offline).path, BUNDLED
    if is_hub_id(source):
        folder = fetch_folder(source, offline=common().offline, wanted=wanted)
        return folder, source.partition("@")[0].rpartition("/")[2]
    return path, None


def _write_beside(
    opened: Source, out: Path, name: str, result: ConvertResult, options: dict[str, Any]
) -> list[Path]:
    """Model card and Modelfile of GGUF files."""
    if options["dry_run"] or not options["card"] or options["target"] != "gguf":
        return []
    from llava_convert.cards import write_beside

    facts = {**opened.facts, "kind": opened.kind}
    if opened.prompt_format:
        facts["prompt_format"] = opened.prompt_format
    return write_beside(out, name, result.files, facts)


def _uploaded(out: Path, result: ConvertResult, options: dict[str, Any]) -> Iterable[Path]:
    if options["target"] == "gguf":
        return [file.path for file in result.files]
    return [path for path in sorted(out.iterdir()) if path.is_file()]


def _report(result: ConvertResult, found: Check | None, options: dict[str, Any]) -> None:
    from llava_cli.terminal.documents import write_document
    from llava_cli.terminal.streams import note

    if not common().quiet:
        for line in result.notes:
            note(line)
    dry_run = options["dry_run"]
    if common().json:
        write_document(_document(result, found, dry_run=dry_run))
        return
    if dry_run:
        _print_tensors(result)
    _print_table(result, dry_run=dry_run)
    if found is not None:
        from llava_cli.terminal.streams import write
        from llava_convert.check import lines

        write("".join(f"{line}\n" for line in lines(found)))


def _document(result: ConvertResult, found: Check | None, *, dry_run: bool) -> dict[str, Any]:
    """What `--json` prints."""
    files = []
    for file in result.files:
        entry: dict[str, Any] = {
            "path": str(file.path),
            "role": file.role,
            "type": file.type,
            "bytes": file.bytes,
            "sha256": file.sha256,
        }
        if dry_run:
            entry["tensors"] = [
                {"name": name, "type": kind, "shape": list(shape)}
                for name, (kind, shape) in file.tensors.items()
            ]
        files.append(entry)
    return {
        "source": result.kind,
        "prompt_format": result.prompt_format,
        "files": files,
        "tensors": {"mapped": result.mapped, "ignored": len(result.ignored)},
        "ignored": [{"tensor": k, "reason": v} for k, v in result.ignored.items()],
        "notes": list(result.notes),
        "memory_bytes": result.memory_bytes,
        "dry_run": dry_run,
        "check": found.document() if found is not None else None,
    }


def _print_tensors(result: ConvertResult) -> None:
    """Every tensor of every file: shape, and its type in each file that holds it."""
    from llava_cli.terminal.safe import one_line
    from llava_cli.terminal.streams import write

    rows: dict[str, tuple[str, list[str]]] = {}
    for file in result.files:
        for name, (kind, shape) in file.tensors.items():
            size = " x ".join(map(str, shape))
            rows.setdefault(name, (size, []))[1].append(kind)
    width = max((len(name) for name in rows), default=0)
    for name, (size, kinds) in rows.items():
        write(f"{one_line(name):<{width}}  {size:>20}  {', '.join(kinds)}\n")


def _print_table(result: ConvertResult, *, dry_run: bool) -> None:
    """Role, type, size and path of each file; what became of the tensors, as notes."""
    from llava_cli.terminal.safe import one_line
    from llava_cli.terminal.streams import note, write

    for file in result.files:
        size = f"{file.bytes / 1e6:,.1f} MB"
        write(f"{file.role:<7}  {file.type:<6}  {size:>12}  {one_line(str(file.path))}\n")
    if common().quiet:
        return
    if dry_run:
        memory = (
            f", about {result.memory_bytes / 1e9:.1f} GB of memory" if result.memory_bytes else ""
        )
        note(f"nothing was written (--dry-run){memory}")
    note(f"{result.mapped} tensors converted, {len(result.ignored)} left out")
    if common().verbose:
        for name, reason in result.ignored.items():
            note(f"  {name}: {reason}")


def _progress(dry_run: bool) -> Callable[[int, int], None] | None:
    """A line on stderr that counts up, where a person looks at it; else None."""
    import sys
    import time

    from llava_cli.terminal.streams import takes_escapes

    if dry_run or common().quiet or not takes_escapes(sys.stderr):
        return None
    began = last = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < 0.2 and done < total:
            return
        last = now
        text = "\r\x1b[K"
        if done < total:
            left = (now - began) * (total - done) / max(done, 1)
            text += (
                f"writing {100 * done // max(total, 1)} % of {total / 1e6:,.1f} MB, "
                f"{_clock(left)} left"
            )
        sys.stderr.write(text)
        sys.stderr.flush()

    return show


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds + 0.5), 60)
    return f"{minutes}:{rest:02}"
