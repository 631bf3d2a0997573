"""`llava eval report` and `compare`: results beside published numbers, and beside each other."""

from __future__ import annotations

from pathlib import Path

import click

from llava_cli.cli.groups import Command
from llava_cli.cli.options import common

EXISTING = click.Path(exists=True, path_type=Path)


@click.command(
    "report",
    cls=Command,
    examples=(
        ("llava eval report eval/", "every result below a folder"),
        ("llava eval report eval/gqa eval/pope --html report.html", "a page with plots"),
    ),
)
@click.argument("results", nargs=-1, required=True, type=EXISTING)
@click.option(
    "--against", default="llava-1.5-7b", show_default=True, metavar="MODEL",
    help="Whose published numbers.",
)  # fmt: skip
@click.option("--html", type=click.Path(path_type=Path), metavar="F", help="Write a page, too.")
def report(results: tuple[Path, ...], against: str, html: Path | None) -> None:
    """Show results beside published numbers, and what makes them incomparable."""
    from llava_cli.evals import page, reporting
    from llava_cli.evals.uploads import put
    from llava_cli.terminal.documents import write_document
    from llava_cli.terminal.safe import visible
    from llava_cli.terminal.streams import write

    lines = reporting.read(results, against)
    if html is not None:
        put(html, page.page(lines, against))
    if common().json:
        write_document({"against": against, "results": [line.document() for line in lines]})
    else:
        write(visible(reporting.table(lines, against)))


@click.command(
    "compare",
    cls=Command,
    examples=(("llava eval compare eval/gqa-a eval/gqa-b", "B against A, item by item"),),
)
@click.argument("a", type=EXISTING)
@click.argument("b", type=EXISTING)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
def compare(a: Path, b: Path, seed: int) -> None:
    """Compare two results on the items that both have."""
    from llava_cli.evals import comparing
    from llava_cli.terminal.documents import write_document
    from llava_cli.terminal.streams import note, write

    found = comparing.compare(comparing.read_items(a), comparing.read_items(b), seed=seed)
    if common().json:
        write_document({"a": str(a), "b": str(b), **found.document()})
        return
    write(comparing.text(found, (str(a), str(b))))
    if (found.only_a or found.only_b) and not common().quiet:
        note(f"warning: {found.only_a} items only in A and {found.only_b} only in B are left out")
