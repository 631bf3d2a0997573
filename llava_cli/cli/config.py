"""`llava config`: the settings as they are, and who said so."""

from __future__ import annotations

import click

from llava_cli.cli.groups import Command, LazyGroup
from llava_cli.cli.options import common


@click.group("config", cls=LazyGroup, examples=(("llava config show --origin", ""),))
def config() -> None:
    """Show the settings."""


@config.command(
    "show",
    cls=Command,
    examples=(
        ("llava config show", "the values in force here"),
        ("llava config show --origin", "and where each comes from"),
    ),
)
@click.option("--origin", is_flag=True, help="Say where each value comes from.")
def show(origin: bool) -> None:
    """Print every setting that is in force in this directory."""
    from llava_cli.cli.settings import SETTINGS, resolve
    from llava_cli.terminal.documents import write_document
    from llava_cli.terminal.safe import one_line
    from llava_cli.terminal.streams import write

    values = {name: resolve(name) for name in SETTINGS}
    if common().json:
        write_document(
            {
                name: {"value": value.value, "origin": value.origin} if origin else value.value
                for name, value in values.items()
            }
        )
        return
    for name, value in values.items():
        shown = "(not set)" if value.value is None else str(value.value)
        source = f"  ({value.origin})" if origin else ""
        write(one_line(f"{name} = {shown}{source}") + "\n")
