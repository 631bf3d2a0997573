"""The command line's contract: every command, option, word and slash command that it promises.

What each of them does is tested beside it; here stands that none is taken away or renamed.
"""

from __future__ import annotations

import click
import pytest

from llava_cli.cli.app import app
from llava_cli.cli.chatting.commands import COMMANDS

EVERYWHERE = "--quiet --verbose --json --offline --no-input --debug --help"
SAMPLING = "--temperature --top-p --top-k --min-p --repeat-penalty --seed --max-tokens --stop"
MODEL = "--model --mmproj --engine --device --threads --quantize"
PROMISED = {
    "ask": f"{SAMPLING} {MODEL} --image --system --prefill --schema --choices --yes-no --each "
    "--stats --estimate --markdown --continue --no-log --no-cache --image-tokens --background "
    "--top-logprobs --keep-alive",
    "chat": f"{SAMPLING} {MODEL} --system --continue --no-log --markdown --background",
    "caption": f"{SAMPLING} {MODEL} --recursive --include --exclude --from-file -0 --limit "
    "--format --out --existing --preset --prompt --prompt-file --prefix --suffix --trigger --ban "
    "--max-words --batch-size --retry-failed --on-error --dry-run --preview --html",
    "pull": "--quant",
    "ls": "",
    "show": "",
    "rm": "--yes",
    "verify": "",
    "alias": "--remove",
    "cache ls": "",
    "cache clear": "",
    "logs list": "",
    "logs search": "",
    "logs show": "",
    "logs export": "",
    "logs prune": "",
    "logs off": "",
    "logs path": "",
    "config show": "--origin",
    "config set": "",
    "config path": "",
    "config edit": "",
    "completion": "--install",
    "serve": f"{SAMPLING} {MODEL} --host --port --api-key-file --allow-urls --max-body",
    "doctor": "",
}
WORDS = {
    ("caption", "format"): "txt caption json jsonl csv imagefolder webdataset kohya xmp",
    ("caption", "existing"): "skip overwrite append prepend",
    ("caption", "on_error"): "skip stop",
    ("ask", "markdown"): "auto always never",
    ("ask", "quantize"): "4bit 8bit",
    ("completion", "shell"): "bash zsh fish powershell",
}
SLASHES = (
    "/image /images /drop /paste /regen /undo /edit /set /system /model /save /load /export "
    "/stats /clear /help /exit"
)


def command_of(path: str) -> click.Command:
    """A command by its words."""
    found: click.Command = app
    for name in path.split():
        assert isinstance(found, click.Group), path
        child = found.get_command(click.Context(found), name)
        assert child is not None, path
        found = child
    return found


@pytest.mark.parametrize("path", PROMISED)
def test_every_promised_option_is_there(path: str) -> None:
    command = command_of(path)
    taken = {o for p in command.get_params(click.Context(command)) for o in p.opts}
    assert set(f"{PROMISED[path]} {EVERYWHERE}".split()) - taken == set()


@pytest.mark.parametrize(("path", "name"), WORDS)
def test_every_promised_word_is_taken(path: str, name: str) -> None:
    (param,) = [p for p in command_of(path).params if p.name and p.name.rstrip("_") == name]
    assert isinstance(param.type, click.Choice)
    assert list(param.type.choices) == WORDS[path, name].split()


def test_every_promised_slash_command_is_there() -> None:
    assert set(SLASHES.split()) <= set(COMMANDS)


def test_the_model_option_is_short_for_all_that_answer() -> None:
    for path in ("ask", "chat", "caption", "serve"):
        (model,) = [p for p in command_of(path).params if p.name == "model"]
        assert model.opts == ["-m", "--model"]
