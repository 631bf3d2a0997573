"""`llava config`: the settings as they are, who said so, and changing them."""

from __future__ import annotations

from pathlib import Path

import click

from llava_cli.cli.groups import Command, LazyGroup
from llava_cli.cli.options import common


@click.group(
    "config",
    cls=LazyGroup,
    examples=(
        ("llava config show --origin", "every value, and who said so"),
        ("llava config set model llava-1.5-7b", "for good, for this user"),
    ),
)
def config() -> None:
    """Show and change the settings."""


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


_project_option = click.option(
    "--project", is_flag=True, help="llava.toml of this folder's project, not the user's file."
)


def _complete_name(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    from llava_cli.cli.settings import SETTINGS

    return [name for name in SETTINGS if name.startswith(incomplete)]


@config.command(
    "set",
    cls=Command,
    examples=(
        ("llava config set model llava-1.5-7b", "what answers where no -m is given"),
        ("llava config set device cpu --project", "in the llava.toml of this folder"),
        ("llava config set model --unset", "take the value away again"),
    ),
)
@click.argument("name", shell_complete=_complete_name)
@click.argument("value", required=False)
@click.option("--unset", is_flag=True, help="Take the value away.")
@_project_option
def set_(name: str, value: str | None, unset: bool, project: bool) -> None:
    """Write one setting; what else is in the file, comments too, stays."""
    from llava_cli.cli import settings_file
    from llava_cli.terminal.documents import write_document
    from llava_cli.terminal.streams import note

    if unset == (value is not None):
        raise click.UsageError("give a VALUE, or --unset")
    path = _path(project)
    settings_file.write(path, name, value)
    if common().json:
        write_document({"path": str(path), "name": name, "value": value})
    elif not common().quiet:
        note(f"{path}: {name} = {value}" if value is not None else f"{path}: {name} taken away")


@config.command(
    "path", cls=Command, examples=(("llava config path", "where the user's settings lie"),)
)
@_project_option
def path_(project: bool) -> None:
    """Print where the settings file lies, whether it is there or not."""
    from llava_cli.cli.settings import project_file, user_file_path
    from llava_cli.terminal.documents import write_document
    from llava_cli.terminal.streams import write

    if common().json:
        found = project_file()
        write_document({"user": str(user_file_path()), "project": str(found) if found else None})
    else:
        write(f"{_path(project)}\n")


@config.command(
    "edit", cls=Command, examples=(("llava config edit", "opens the file in $VISUAL or $EDITOR"),)
)
@_project_option
def edit(project: bool) -> None:
    """Open the settings file in an editor, and check it afterwards."""
    from llava_cli.cli import settings_file
    from llava_cli.terminal.streams import note

    path = _path(project)
    settings_file.create(path)
    _run_editor(path)
    settings_file.check(path)
    if not common().quiet:
        note(f"{path}: saved")


def _path(project: bool) -> Path:
    from llava_cli.cli.settings import PROJECT_FILE, project_file, user_file_path

    return (project_file() or Path.cwd() / PROJECT_FILE) if project else user_file_path()


def _run_editor(path: Path) -> None:
    """Until the person closes it."""
    import os
    import shlex
    import subprocess
    import sys

    from llava_cli.errors import LlavaError, UsageError

    fallback = "notepad" if sys.platform == "win32" else "vi"
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or fallback
    if common().no_input:
        raise UsageError("--no-input opens no editor", "llava config set NAME VALUE")
    try:
        done = subprocess.run([*shlex.split(editor), str(path)], check=False)
    except (OSError, ValueError) as error:
        raise LlavaError(
            f"the editor {editor!r} cannot be started: {error}", "set VISUAL or EDITOR"
        ) from error
    if done.returncode:
        raise LlavaError(f"the editor {editor!r} ended with exit code {done.returncode}", "")
