"""What a line of a chat that begins with a slash does."""

from __future__ import annotations

import difflib
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from llava_cli.cli import answering
from llava_cli.cli.chatting import saved
from llava_cli.cli.chatting.session import Chat
from llava_cli.cli.options import sampling_options
from llava_cli.errors import UsageError
from llava_cli.images import Image
from llava_cli.terminal.safe import one_line
from llava_cli.terminal.streams import dim, note


@dataclass(frozen=True)
class Command:
    """One slash command."""

    does: Callable[[Slashes, str], None]
    usage: str
    about: str


class Slashes:
    """The commands, over one chat. `draft` is what the editor opens with next."""

    def __init__(self, chat: Chat) -> None:
        self.chat = chat
        self.draft = ""
        self.left = False
        self._own: set[Path] = set()

    def run(self, line: str) -> None:
        """Do what the line says; UsageError where there is no such command."""
        name, _, rest = line.partition(" ")
        if name not in COMMANDS:
            near = difflib.get_close_matches(name, COMMANDS, n=1)
            meant = f"did you mean {near[0]}?" if near else "see /help"
            raise UsageError(f"there is no command {name}", f"{meant}; // begins a text with /")
        COMMANDS[name].does(self, rest.strip())

    def image(self, rest: str) -> None:
        """Stage pictures: all of them or none."""
        if not rest:
            raise UsageError("which picture?", "/image PATH")
        staged = list(self.chat.staged)
        try:
            for path in _paths(rest):
                for image in self.chat.stage(path):
                    _say(f"staged {_about(image)}")
        except BaseException:
            self.chat.staged = staged
            raise

    def images(self, rest: str) -> None:
        """List pictures: sent ones, then staged ones."""
        sent = self.chat.conversation.images
        for number, image in enumerate(sent, 1):
            _say(f"{number}. {_about(image)}")
        for number, image in enumerate(self.chat.staged, 1):
            _say(f"staged {number}. {_about(image)}")
        if not sent and not self.chat.staged:
            _say("no pictures")

    def drop(self, rest: str) -> None:
        """Take staged pictures back: one by number, or all."""
        staged = self.chat.staged
        if not staged:
            raise UsageError("no picture is staged", "/undo takes back one that was sent")
        if rest in ("", "all"):
            staged.clear()
        elif rest.isdecimal() and 1 <= int(rest) <= len(staged):
            del staged[int(rest) - 1]
        else:
            raise UsageError(f"{rest}: give a number of 1 to {len(staged)}, or all", "/images")
        _say(f"{len(staged)} staged")

    def paste(self, rest: str) -> None:
        """Stage the picture on the clipboard."""
        self.image("@clip")

    def regen(self, rest: str) -> None:
        """Answer once more."""
        self.chat.regenerate()

    def undo(self, rest: str) -> None:
        """Take back the last exchange."""
        question = self.chat.undo()
        _say(f"taken back: {question.text}")

    def edit(self, rest: str) -> None:
        """Take back the last question and ask it anew, changed."""
        question = self.chat.undo()
        if rest:
            self.chat.say(rest)
        else:
            self.draft = question.text

    def set(self, rest: str) -> None:
        """Show or change how answers are chosen."""
        if not rest:
            for name, value in self.chat.sampling_values().items():
                _say(f"{name} = {value}")
            return
        name, _, text = rest.replace("=", " ").partition(" ")
        name = name.replace("-", "_")
        known = self.chat.sampling_values()
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            meant = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            raise UsageError(f"there is no setting {name}", meant)
        value = _sampling_value(name, text.strip())
        changes: dict[str, Any] = {name: value}
        self.chat.sampling = replace(self.chat.sampling, **changes)
        _say(f"{name} = {value}")

    def system(self, rest: str) -> None:
        """Show, replace or remove the system message."""
        if rest:
            self.chat.system = None if rest in ("none", '""') else rest
        shown = self.chat.system
        _say("the model's own system message" if shown is None else f"system: {shown}")

    def model(self, rest: str) -> None:
        """Show the model, or switch; the conversation stays."""
        if rest:
            self.chat.switch(rest)
        engine = self.chat.engine
        _say(f"{engine.files.reference} · {engine.name} · {engine.device} · {engine.prompt_format}")

    def save(self, rest: str) -> None:
        """Write the conversation as JSON."""
        path = self._free(rest, "/save FILE.json")
        saved.save(path, self.chat.conversation, self.chat.engine.files.reference)
        _say(f"saved {path}")

    def load(self, rest: str) -> None:
        """Go on with a saved conversation."""
        if not rest:
            raise UsageError("which file?", "/load FILE.json")
        path = Path(_paths(rest)[0]).expanduser()
        conversation, model = saved.load(path)
        self.chat.continue_with(conversation, None)
        self.chat.staged = []
        self._own.add(path)
        turns = sum(message.role == "user" for message in conversation.messages)
        _say(f"loaded {turns} turns, which were with {model}")

    def export(self, rest: str) -> None:
        """Write the conversation as Markdown, or as JSON by the file's suffix."""
        path = self._free(rest, "/export FILE.md or FILE.json")
        suffix = path.suffix.lower()
        model = self.chat.engine.files.reference
        if suffix == ".json":
            saved.save(path, self.chat.conversation, model)
        elif suffix in (".md", ".markdown"):
            saved.export_markdown(path, self.chat.conversation, model)
        else:
            raise UsageError(f"{path}: write .md or .json", "/export FILE.md")
        _say(f"exported {path}")

    def stats(self, rest: str) -> None:
        """Counts and seconds of the last answer."""
        if self.chat.last is None:
            raise UsageError("there is no answer yet", "ask something first")
        answering.write_stats(self.chat.last, self.chat.engine)

    def clear(self, rest: str) -> None:
        """Begin anew."""
        self.chat.clear()
        _say("a new conversation")

    def help(self, rest: str) -> None:
        """List the commands."""
        width = max(len(command.usage) for command in COMMANDS.values())
        for command in COMMANDS.values():
            _say(f"{command.usage:<{width}}  {command.about}")
        _say("Alt-Enter begins a new line; Ctrl-C stops an answer; Ctrl-D leaves")

    def exit(self, rest: str) -> None:
        """Leave."""
        self.left = True

    def _free(self, rest: str, usage: str) -> Path:
        """A file to write to that is not somebody else's."""
        if not rest:
            raise UsageError("which file?", usage)
        path = Path(_paths(rest)[0]).expanduser()
        if path.exists() and path not in self._own:
            raise UsageError(f"{path}: is there already", "give another name, or remove it first")
        self._own.add(path)
        return path


COMMANDS = {
    "/image": Command(Slashes.image, "/image PATH…", "stage pictures for the next message"),
    "/images": Command(Slashes.images, "/images", "list pictures, sent and staged"),
    "/drop": Command(Slashes.drop, "/drop [N|all]", "take staged pictures back"),
    "/paste": Command(Slashes.paste, "/paste", "stage the picture on the clipboard"),
    "/regen": Command(Slashes.regen, "/regen", "answer the last question once more"),
    "/undo": Command(Slashes.undo, "/undo", "take back the last question and its answer"),
    "/edit": Command(Slashes.edit, "/edit [TEXT]", "change the last question and ask it again"),
    "/set": Command(Slashes.set, "/set [NAME VALUE]", "how answers are chosen"),
    "/system": Command(Slashes.system, "/system [TEXT|none]", "the system message"),
    "/model": Command(Slashes.model, "/model [REF]", "another model, same conversation"),
    "/save": Command(Slashes.save, "/save FILE.json", "write the conversation"),
    "/load": Command(Slashes.load, "/load FILE.json", "go on with a saved conversation"),
    "/export": Command(Slashes.export, "/export FILE.md|.json", "write it to read or to process"),
    "/stats": Command(Slashes.stats, "/stats", "counts and seconds of the last answer"),
    "/clear": Command(Slashes.clear, "/clear", "begin a new conversation"),
    "/help": Command(Slashes.help, "/help", "this list"),
    "/exit": Command(Slashes.exit, "/exit", "leave; so does Ctrl-D"),
}


def _paths(rest: str) -> list[str]:
    """Paths as a shell would split them, or as dropped into a terminal; one with blanks as is."""
    if Path(rest).expanduser().exists():
        return [str(Path(rest).expanduser())]
    try:
        found = shlex.split(rest)
    except ValueError:  # an apostrophe in a name
        return [rest]
    return [str(Path(p).expanduser()) if p.startswith("~") else p for p in found] or [rest]


def _sampling_value(name: str, text: str) -> Any:
    """A value as the command line's option of that name would take it."""
    if name == "stop":
        return (text,) if text else ()
    if name == "seed" and text in ("", "none"):
        return None
    command = click.command("set")(sampling_options(lambda **_: None))
    (option,) = [p for p in command.params if p.name == name]
    try:
        with click.Context(command) as context:
            return option.process_value(context, text)
    except click.UsageError as error:
        raise UsageError(f"{name}: {error.format_message()}", f"/set {name} VALUE") from error


def _about(image: Image) -> str:
    size = f" ({image.pixels.width}×{image.pixels.height})" if image.pixels else ""
    return f"{image.source}{size}"


def _say(text: str) -> None:
    """A line for the person, apart from the answers."""
    if sys.stderr.isatty():
        note(text)
    else:
        sys.stderr.write(dim(one_line(text), sys.stderr) + "\n")
        sys.stderr.flush()
