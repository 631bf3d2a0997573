"""`llava eval ls`: the benchmarks."""

from __future__ import annotations

import click

from llava_cli.cli.groups import Command
from llava_cli.cli.options import common


@click.command("ls", cls=Command, examples=(("llava eval ls --json", "for programs"),))
def ls() -> None:
    """List the benchmarks, what each needs and from where."""
    from dataclasses import asdict

    from llava_cli.evals import BENCHMARKS
    from llava_cli.terminal.documents import write_document
    from llava_cli.terminal.streams import write

    rows = list(BENCHMARKS.values())
    if common().json:
        hidden = {"module"}
        write_document([{k: v for k, v in asdict(b).items() if k not in hidden} for b in rows])
        return
    width = max(len(b.name) for b in rows)
    pad = " " * (width + 2)
    for b in rows:
        items = f", {b.items:,} items" if b.items else ""
        scored = ", scored by the organisers' server" if b.upload else ""
        write(f"{b.name:<{width}}  {b.title}: {b.metric}{items}{scored}\n")
        write(f"{pad}needs {b.needs}\n{pad}from {b.source}\n")
