"""`llava convert`: a checkpoint into GGUF files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llava_cli.cli.groups import Command
from llava_cli.cli.options import common

if TYPE_CHECKING:
    from llava_convert import ConvertResult

OUTTYPES = ("f32", "f16", "bf16", "q8_0")


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
        ("llava convert llava-1.5-7b-hf -o gguf --outtype q8_0,f16", "two sizes in one pass"),
        ("llava convert RUN -o gguf --dry-run", "which files, and how large"),
    ),
)
@click.argument("source")
@click.option(
    "-o", "--out", required=True, type=click.Path(path_type=Path), help="Folder to write to."
)
@click.option(
    "--to",
    expose_value=False,
    type=click.Choice(["gguf"]),
    default="gguf",
    show_default=True,
    help="Layout of the result.",
)
@click.option(
    "--outtype",
    "outtypes",
    multiple=True,
    default=("f16",),
    callback=_outtypes,
    metavar="|".join(OUTTYPES),
    help="Of the language model; repeat, or separate by commas. [default: f16]",
)
@click.option(
    "--mmproj-outtype",
    type=click.Choice(OUTTYPES, case_sensitive=False),
    default="f16",
    show_default=True,
    help="Of the vision tower and projector.",
)
@click.option("--name", help="In the files' names; default: the source folder's name.")
@click.option("--dry-run", is_flag=True, help="Check everything, write nothing.")
def convert(
    source: str,
    out: Path,
    outtypes: tuple[str, ...],
    mmproj_outtype: str,
    name: str | None,
    dry_run: bool,
) -> None:
    """Turn a checkpoint into GGUF files: NAME-TYPE.gguf and mmproj-NAME-TYPE.gguf.

    SOURCE is a llava-hf folder, a training run, or a Hub id (org/name).
    """
    from llava_cli.terminal.documents import write_document
    from llava_cli.terminal.streams import note
    from llava_convert import convert as run

    folder, label = _locate(source)
    result = run(
        folder,
        out,
        outtypes=outtypes,
        mmproj_outtype=mmproj_outtype,
        name=label if name is None else name,
        dry_run=dry_run,
        progress=_progress(dry_run),
    )
    if not common().quiet:
        for line in result.notes:
            note(line)
    if common().json:
        write_document(_document(result, dry_run=dry_run))
    else:
        _print_table(result, dry_run=dry_run)


def _locate(source: str) -> tuple[Path, str | None]:
    """The folder of a source, and what to call the result where the folder's name says nothing."""
    from llava_cli.models import BUNDLED, resolve

    path = Path(source).expanduser()
    on_hub = source.count("/") == 1 and not source.startswith((".", "/", "~"))
    if path.exists() or not (on_hub or source == BUNDLED):
        return path, None
    files = resolve(source, engine="torch", offline=common().offline)
    return files.path, source.partition("@")[0].rpartition("/")[2]


def _document(result: ConvertResult, *, dry_run: bool) -> dict[str, Any]:
    """What `--json` prints."""
    return {
        "files": [
            {
                "path": str(file.path),
                "role": file.role,
                "type": file.type,
                "bytes": file.bytes,
                "sha256": file.sha256,
            }
            for file in result.files
        ],
        "tensors": {"mapped": result.mapped, "ignored": len(result.ignored)},
        "ignored": [{"tensor": k, "reason": v} for k, v in result.ignored.items()],
        "notes": list(result.notes),
        "dry_run": dry_run,
    }


def _print_table(result: ConvertResult, *, dry_run: bool) -> None:
    """Role, type, size and path of each file; what became of the tensors, as notes."""
    from llava_cli.terminal.safe import one_line
    from llava_cli.terminal.streams import note, write

    for file in result.files:
        size = f"{file.bytes / 1e6:,.1f} MB"
        write(f"{file.role:<6}  {file.type:<4}  {size:>12}  {one_line(str(file.path))}\n")
    if common().quiet:
        return
    if dry_run:
        note("nothing was written (--dry-run)")
    note(f"{result.mapped} tensors converted, {len(result.ignored)} left out")
    if common().verbose:
        for name, reason in result.ignored.items():
            note(f"  {name}: {reason}")


def _progress(dry_run: bool) -> Any:
    """A line on stderr that counts up, where a person looks at it; else None."""
    import sys

    from llava_cli.terminal.streams import takes_escapes

    if dry_run or common().quiet or not takes_escapes(sys.stderr):
        return None
    shown = -1

    def show(done: int, total: int) -> None:
        nonlocal shown
        percent = 100 * done // max(total, 1)
        if percent != shown:
            shown = percent
            end = "\r\x1b[K" if done >= total else ""
            sys.stderr.write(f"\r\x1b[Kwriting {percent} % of {total / 1e6:,.1f} MB{end}")
            sys.stderr.flush()

    return show
