"""`llava alias`: short names of models, those of the package and a person's own."""

from __future__ import annotations

import click

from llava_cli.cli.groups import Command
from llava_cli.cli.options import common


@click.command(
    "alias",
    cls=Command,
    examples=(
        ("llava alias", "every name, what it stands for, licence, memory"),
        ("llava alias mine ./runs/7/model", "a name of your own"),
        ("llava alias mine --remove", "take it away"),
    ),
)
@click.argument("name", required=False)
@click.argument("reference", required=False, metavar="[REF]")
@click.option("--remove", is_flag=True, help="Take NAME away again.")
def alias(name: str | None, reference: str | None, remove: bool) -> None:
    """List, make or remove short names for models."""
    from llava_cli.models import aliases
    from llava_cli.terminal.streams import note

    if name is None:
        _list()
    elif remove:
        if reference is not None:
            raise click.UsageError("--remove takes a name alone")
        aliases.set_user_alias(name, None)
    elif reference is None:
        _list(name)
    else:
        if not reference.strip():
            raise click.UsageError("REF is empty")
        aliases.set_user_alias(name, reference)
        if not common().quiet:
            note(f"{name} stands for {reference} ({aliases.user_file()})")


def _list(only: str | None = None) -> None:
    from llava_cli.errors import UsageError
    from llava_cli.models import aliases
    from llava_cli.terminal.documents import write_document
    from llava_cli.terminal.safe import one_line
    from llava_cli.terminal.streams import write

    own = aliases.user_aliases()
    known = {n: a for n, a in aliases.package_aliases().items() if n not in own}
    if only is not None:
        own = {n: r for n, r in own.items() if n == only}
        known = {n: a for n, a in known.items() if n == only}
        if not own and not known:
            raise UsageError(f"there is no alias {only}", f"make it: llava alias {only} REF")
    if common().json:
        listed: list[dict[str, object]] = [
            {"name": n, "origin": "user", "reference": r} for n, r in sorted(own.items())
        ]
        listed += [
            {
                "name": n,
                "origin": "package",
                "about": a.about,
                "gguf": a.gguf,
                "hf": a.hf,
                "engines": list(a.engines),
                "license": a.license,
                "gated": a.gated,
                "memory_gb": dict(a.memory_gb),
            }
            for n, a in known.items()
        ]
        write_document(listed)
        return
    width = max(len(n) for n in (*own, *known))
    for name, reference in sorted(own.items()):
        write(one_line(f"{name:<{width}}  = {reference}") + "\n")
    for name, entry in known.items():
        need = f"{entry.memory_gb[entry.engines[0]]} GB"
        runs = "+".join(entry.engines)
        write(one_line(f"{name:<{width}}  {need:>5}  {runs:<10}  {entry.about}") + "\n")
        if only is not None:
            _details(entry)


def _details(entry: object) -> None:
    from llava_cli.terminal.safe import one_line
    from llava_cli.terminal.streams import write

    for key in ("gguf", "hf", "license", "prompt_format", "known_from"):
        if value := getattr(entry, key):
            write(one_line(f"  {key.replace('_', ' ')}: {value}") + "\n")
