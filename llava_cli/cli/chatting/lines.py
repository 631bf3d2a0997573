"""Where the turns of a chat come from: a line editor at a terminal, lines on a pipe.

The editor is prompt_toolkit's; where a terminal wants no escape bytes (NO_COLOR, TERM=dumb), lines
are read plainly.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from llava_cli.images import SUFFIXES
from llava_cli.terminal.streams import is_terminal, takes_escapes

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import Completer, Completion
    from prompt_toolkit.document import Document
    from prompt_toolkit.key_binding import KeyBindings

MAX_LINE = 1_000_000
FILE_COMMANDS = ("/image", "/load", "/save", "/export")


class Lines(Protocol):
    """Gives a turn at a time."""

    interactive: bool

    def read(self, before: str = "") -> str:
        """The next turn, with `before` as its editable beginning; EOFError at the end."""
        ...


def lines_of(history: Path | None, commands: Iterable[str], status: Callable[[], str]) -> Lines:
    """What fits standard input; `history` keeps typed lines (None: only for this chat)."""
    if sys.stdin is None or not is_terminal(sys.stdin):
        return PipeLines(prompt="")
    if not takes_escapes(sys.stderr):
        return PipeLines(prompt="> ")
    return Editor(history, tuple(commands), status)


class PipeLines:
    """One turn a line; the end of the input is the end of the chat."""

    def __init__(self, prompt: str) -> None:
        self._prompt = prompt
        self.interactive = bool(prompt)

    def read(self, before: str = "") -> str:
        """The next line; bytes that are no UTF-8 are replaced."""
        sys.stderr.write(self._prompt)
        sys.stderr.flush()
        if sys.stdin is None:
            raise EOFError
        data = sys.stdin.buffer.readline(MAX_LINE)
        if not data:
            raise EOFError
        return data.decode("utf-8", "replace").rstrip("\r\n")


class Editor:
    """A line editor: history, completion, several lines with Alt-Enter or by pasting them."""

    interactive = True

    def __init__(
        self, history: Path | None, commands: tuple[str, ...], status: Callable[[], str]
    ) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.history import FileHistory, History, InMemoryHistory
        from prompt_toolkit.output import create_output

        kept: History = InMemoryHistory()
        if history is not None:
            history.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            history.touch(mode=0o600, exist_ok=True)
            kept = FileHistory(str(history))
        self._session: PromptSession[str] = PromptSession(
            history=kept,
            completer=completer(commands),
            complete_while_typing=False,
            multiline=True,  # so that what is pasted stays as it is; Enter sends all the same
            key_bindings=_keys(),
            prompt_continuation="… ",
            bottom_toolbar=None,
            output=create_output(always_prefer_tty=True),
            enable_suspend=True,
        )
        self._status = status

    def read(self, before: str = "") -> str:
        """The next turn; Ctrl-C empties the line (KeyboardInterrupt where it is empty)."""
        return self._session.prompt(f"{self._status()}> ", default=before)


def _keys() -> KeyBindings:
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    keys = KeyBindings()

    @keys.add("enter")
    def send(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.complete_state:  # Enter takes the completion that is shown
            buffer.complete_state = None
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-c")
    def give_up(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt, style="class:aborting")

    return keys


def completer(commands: tuple[str, ...]) -> Completer:
    """Commands at the beginning of a line, then paths: pictures and folders for /image."""
    from prompt_toolkit.completion import Completer, Completion, PathCompleter
    from prompt_toolkit.document import Document

    def is_picture(name: str) -> bool:
        return Path(name).is_dir() or Path(name).suffix.lower() in SUFFIXES

    pictures = PathCompleter(expanduser=True, file_filter=is_picture)
    files = PathCompleter(expanduser=True)

    class ChatCompleter(Completer):
        def get_completions(
            self, document: Document, complete_event: object
        ) -> Iterable[Completion]:
            text = document.text_before_cursor
            if not text.startswith("/"):
                return
            command, blank, rest = text.partition(" ")
            if not blank:
                for name in commands:
                    if name.startswith(command):
                        yield Completion(name, start_position=-len(command))
            elif command in FILE_COMMANDS:
                last = rest.rsplit(" ", 1)[-1] if command == "/image" else rest
                paths = pictures if command == "/image" else files
                inner = Document(last, len(last))
                yield from paths.get_completions(inner, complete_event)  # type: ignore[arg-type]

    return ChatCompleter()
