"""`llava completion`: the script that makes a shell complete `llava`, printed or installed."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import click
from click import shell_completion as shells
from click.shell_completion import CompletionItem

from llava_cli.cli.groups import Command
from llava_cli.cli.options import common
from llava_cli.errors import LlavaError

VARIABLE = "_LLAVA_COMPLETE"
"""Set by the scripts to `SHELL_complete` when they ask."""
_PLAIN_BASH = """        elif [[ $type == 'plain' ]]; then
            COMPREPLY+=($value)
"""
_PATHS_BASH = """        elif [[ $type == 'path' ]]; then
            COMPREPLY+=("$value")
            compopt -o filenames
"""
_PLAIN_ZSH = """        elif [[ "$type" == "dir" ]]; then
"""
_PATHS_ZSH = """        elif [[ "$type" == "path" && "$key" == */ ]]; then
            compadd -U -S '' -- "$key"
        elif [[ "$type" == "path" ]]; then
            compadd -U -- "$key"
"""
_PLAIN_FISH = """        else if test $metadata[1] = "plain";
"""
_PATHS_FISH = """        else if test $metadata[1] = "path";
            echo $metadata[2];
"""
_SPECIAL_POWERSHELL = frozenset(" \t'\"`$&|;,<>(){}@#[]")
_BASH_LOADERS = ("/usr/share/bash-completion/bash_completion", "/etc/bash_completion")


class Bash(shells.BashComplete):
    """click's script, which also knows paths: quoted, and no blank after a folder."""

    source_template = shells.BashComplete.source_template.replace(
        _PLAIN_BASH, _PLAIN_BASH + _PATHS_BASH
    )

    @staticmethod
    def _check_version() -> None:
        """click starts a bash to look at its age; the script says it all when it is loaded."""


class Zsh(shells.ZshComplete):
    """The same for zsh."""

    source_template = shells.ZshComplete.source_template.replace(
        _PLAIN_ZSH, _PATHS_ZSH + _PLAIN_ZSH
    )


class Fish(shells.FishComplete):
    """The same for fish."""

    source_template = shells.FishComplete.source_template.replace(
        _PLAIN_FISH, _PATHS_FISH + _PLAIN_FISH
    )


class PowerShell(shells.PowerShellComplete):
    """click's script as it is; there a path is a word like others, so it is quoted here."""

    def format_completion(self, item: CompletionItem[str]) -> str:
        if item.type == "path":
            plain = not _SPECIAL_POWERSHELL.intersection(item.value)
            quoted = item.value.replace("'", "''")
            item = CompletionItem(item.value if plain else f"'{quoted}'", help=item.help)
        return super().format_completion(item)


SHELLS: dict[str, type[shells.ShellComplete]] = {
    "bash": Bash,
    "zsh": Zsh,
    "fish": Fish,
    "powershell": PowerShell,
}


def answer(app: click.Command) -> int:
    """What a shell's script asked for; nothing is ever said on stderr, it would spoil the line."""
    shell = os.environ.get(VARIABLE, "").partition("_")[0]
    if shell not in SHELLS:
        return 1
    try:
        found = SHELLS[shell](app, {}, "llava", VARIABLE).complete()
    except (click.ClickException, LlavaError, OSError, ValueError, LookupError):
        return 1  # whatever it is, the person is still typing
    sys.stdout.buffer.write(found.encode("utf-8", "surrogateescape") + b"\n")
    sys.stdout.flush()
    return 0


@click.command(
    "completion",
    cls=Command,
    examples=(
        ("llava completion bash --install", "from the next shell on"),
        ("source <(llava completion zsh)", "for this shell only"),
    ),
)
@click.argument("shell", type=click.Choice(list(SHELLS)))
@click.option("--install", is_flag=True, help="Put it where the shell finds it.")
def completion(shell: str, install: bool) -> None:
    """Complete commands, options, models and pictures with TAB.

    Prints the shell's script, or installs it.
    """
    from llava_cli.cli.app import app
    from llava_cli.terminal.documents import write_document
    from llava_cli.terminal.streams import note, write

    script = SHELLS[shell](app, {}, "llava", VARIABLE).source()
    if not install:
        write(script)
        return
    written = _INSTALL[shell](script)
    if common().json:
        write_document({"shell": shell, "files": [str(path) for path in written]})
    elif not common().quiet:
        note(f"installed in {', '.join(map(str, written))}: open a new shell")


def _install_bash(script: str) -> list[Path]:
    path = _data_home() / "bash-completion" / "completions" / "llava"
    _write(path, script)
    if any(Path(loader).is_file() for loader in _BASH_LOADERS):
        return [path]
    return [path, _add_line(Path.home() / ".bashrc", f'source "{path}"')]


def _install_zsh(script: str) -> list[Path]:
    path = _data_home() / "llava" / "completion.zsh"
    _write(path, script)
    folder = Path(os.environ.get("ZDOTDIR") or Path.home())
    line = f'autoload -Uz compinit && compinit && source "{path}"'
    return [path, _add_line(folder / ".zshrc", line)]


def _install_fish(script: str) -> list[Path]:
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    path = config / "fish" / "completions" / "llava.fish"
    _write(path, script)
    return [path]


def _install_powershell(script: str) -> list[Path]:
    path = _data_home() / "llava" / "completion.ps1"
    _write(path, script)
    if sys.platform == "win32":
        folder = Path.home() / "Documents" / "PowerShell"
    else:
        folder = Path.home() / ".config" / "powershell"
    return [path, _add_line(folder / "Microsoft.PowerShell_profile.ps1", f'. "{path}"')]


_INSTALL: dict[str, Callable[[str], list[Path]]] = {
    "bash": _install_bash,
    "zsh": _install_zsh,
    "fish": _install_fish,
    "powershell": _install_powershell,
}


def _data_home() -> Path:
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)


def _add_line(path: Path, line: str) -> Path:
    """A line of a start-up file, added once; whatever else is in it stays as it is."""
    there = path.read_text(encoding="utf-8", errors="surrogateescape") if path.is_file() else ""
    if line not in there.splitlines():
        path.parent.mkdir(parents=True, exist_ok=True)
        gap = "" if not there or there.endswith("\n") else "\n"
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{gap}{line}\n")
    return path
