"""`llava chat`: a conversation about pictures."""

from __future__ import annotations

import re
from contextlib import closing
from typing import TYPE_CHECKING, Any

import click

from llava_cli.cli.groups import Command
from llava_cli.cli.options import (
    common,
    completed_by,
    model_options,
    sampling_from,
    sampling_options,
)

if TYPE_CHECKING:
    from llava_cli.cli.chatting.commands import Slashes
    from llava_cli.cli.chatting.lines import Lines

EXAMPLES = (
    ("llava chat photo.jpg", "talk about a picture"),
    ("llava chat -m llava-hf/llava-1.5-7b-hf", "with a model for photographs"),
    ("llava chat -c", "go on with the last conversation"),
    ("printf 'hello\\nand?\\n' | llava chat photo.jpg", "one turn a line, from a pipe"),
)


@click.command("chat", cls=Command, examples=EXAMPLES)
@click.argument("images", nargs=-1, metavar="[IMAGE]...", shell_complete=completed_by("pictures"))
@click.option("-s", "--system", metavar="TEXT", help="Replace the system message.")
@click.option("-c", "--continue", "goes_on", is_flag=True, help="Go on with the last conversation.")
@click.option("--no-log", is_flag=True, help="Keep this out of the history.")
@click.option(
    "--background",
    default="white",
    show_default=True,
    metavar="COLOUR",
    help="What transparent pixels are laid on.",
)
@click.option(
    "--markdown",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    help="Render markdown; auto does so on a terminal.",
)
@sampling_options
@model_options
def chat(images: tuple[str, ...], **options: Any) -> None:
    """Talk with a model about pictures.

    Pictures are staged and go with your next message; /image PATH stages another, /help lists what
    else a slash does. Ctrl-C stops an answer, Ctrl-D leaves.
    """
    from llava_cli.cli import models, remembering
    from llava_cli.cli.chatting.commands import COMMANDS, Slashes
    from llava_cli.cli.chatting.lines import lines_of
    from llava_cli.cli.chatting.session import Chat
    from llava_cli.decode import background_rgb
    from llava_cli.terminal.streams import note

    background_rgb(options["background"])
    sampling = sampling_from(options)
    thread, before = _before(options)
    session = Chat(
        models.ModelChoice.from_options(options),
        sampling,
        common(),
        background=options["background"],
        markdown=options["markdown"],
        log=not options["no_log"],
    )
    if before is not None:
        session.continue_with(before, thread)
    if options["system"] is not None:
        session.system = options["system"]
    for text in images:
        session.stage(text)
    typed = remembering.home() / "chat-lines" if remembering.is_on(options["no_log"]) else None
    lines = lines_of(typed, COMMANDS, lambda: f"[{len(session.staged)}] " * bool(session.staged))
    session.interactive = lines.interactive
    with closing(session):
        engine = session.engine  # loaded before the first question, not after it
        if lines.interactive and not common().quiet:
            note(f"{engine.files.reference} · /help lists commands · Ctrl-D leaves")
        _converse(Slashes(session), lines)


def _before(options: dict[str, Any]) -> tuple[int | None, Any]:
    """The conversation that is continued, with its model."""
    if not options["goes_on"]:
        return None, None
    from llava_cli.cli.remembering import last_thread
    from llava_cli.history import conversation_of
    from llava_cli.models.resolve import BUNDLED

    exchanges = last_thread()
    if options["model"] is None and exchanges[-1].model != BUNDLED:
        options["model"] = exchanges[-1].model
    return exchanges[-1].thread, conversation_of(exchanges)


def _converse(slashes: Slashes, lines: Lines) -> None:
    """A turn at a time until the input ends; what goes wrong in a turn ends only a pipe."""
    import sys

    from llava_cli.errors import LlavaError
    from llava_cli.terminal.documents import write_failure
    from llava_cli.terminal.streams import note

    while not slashes.left:
        try:
            draft, slashes.draft = slashes.draft, ""
            _turn(slashes, lines.read(draft))
        except EOFError:
            if lines.interactive:
                sys.stderr.write("\n")
            return
        except KeyboardInterrupt:
            if not lines.interactive:
                raise
            note("Ctrl-D leaves")
        except LlavaError as error:
            if not lines.interactive:
                raise  # the turns that follow may be about what failed
            write_failure(type(error).__name__, error.message, error.hint, as_json=False)


def _turn(slashes: Slashes, line: str) -> None:
    """A command, pictures dropped into the terminal, or something to say."""
    text = line.strip()
    if not text:
        return
    if text.startswith("//"):
        slashes.chat.say(text[1:])
    elif re.match(r"/[a-z]+(\s|$)", text):
        slashes.run(text)
    elif _is_picture(text):
        slashes.image(text)
    else:
        slashes.chat.say(text)


def _is_picture(text: str) -> bool:
    """Whether a line is nothing but the path of a picture, as a terminal writes a dropped file."""
    import shlex
    from pathlib import Path

    from llava_cli.images import SUFFIXES

    try:
        paths = [text] if Path(text).is_file() else shlex.split(text)
        return bool(paths) and all(
            Path(p).suffix.lower() in SUFFIXES and Path(p).is_file() for p in paths
        )
    except (ValueError, OSError):
        return False
