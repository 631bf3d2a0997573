"""Whether the history is kept, where, and what a command adds to it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from llava_cli.cli.settings import resolve

if TYPE_CHECKING:
    from llava_cli.cli.answering import Answer
    from llava_cli.conversation import Conversation
    from llava_cli.engines.base import Engine
    from llava_cli.history import Exchange

OFF_FILE = "logs-off"
"""In the home folder: `llava logs off` was said."""


def home() -> Path:
    """Where history lies."""
    return Path(str(resolve("home").value)).expanduser()


def path() -> Path:
    """The database."""
    from llava_cli.history import database

    return database(home())


def is_on(no_log: bool = False) -> bool:
    """Whether exchanges are remembered: flag > LLAVA_NO_LOG > settings > `llava logs off`."""
    if no_log:
        return False
    setting = resolve("no_log")
    if setting.origin != "default":
        return not setting.value
    return not (home() / OFF_FILE).exists()


def exchange(answer: Answer, engine: Engine, command: str) -> Exchange:
    """An answer in the history's form, the question still missing."""
    from llava_cli.cli.answering import document
    from llava_cli.history import Exchange

    details = document(answer, engine, top_logprobs=False)
    return Exchange(
        prompt="",
        answer=answer.text,
        model=engine.files.reference,
        engine=engine.name,
        finish_reason=answer.finish_reason,
        command=command,
        details={key: details[key] for key in ("usage", "timing", "device", "prompt_format")},
    )


def remember(
    conversation: Conversation,
    answer: Answer,
    engine: Engine,
    command: str,
    thread: int | None = None,
) -> Exchange | None:
    """Add an exchange; a history that cannot be written costs a note, never the answer."""
    from llava_cli import history
    from llava_cli.cli.options import common
    from llava_cli.errors import LlavaError
    from llava_cli.terminal.streams import note

    try:
        return history.remember(path(), conversation, exchange(answer, engine, command), thread)
    except (LlavaError, OSError) as error:
        if not common().quiet:
            note(f"not remembered: {error}")
        return None


def forget(number: int) -> None:
    """Take an exchange back, as far as the history can be written."""
    from contextlib import closing, suppress

    from llava_cli.errors import LlavaError
    from llava_cli.history import History

    with suppress(LlavaError, OSError), closing(History(path())) as history:
        history.forget(number)


def last_thread() -> list[Exchange]:
    """The conversation that `-c` goes on with; UsageError where there is none."""
    from contextlib import closing

    from llava_cli.errors import UsageError
    from llava_cli.history import History

    database = path()
    latest = None
    if database.is_file():
        with closing(History(database)) as found:
            latest = found.latest()
            thread = found.thread(latest.thread) if latest else []
    if latest is None:
        raise UsageError(
            "there is no conversation to continue",
            "ask without -c first; with --no-log or `llava logs off` nothing is remembered",
        )
    return thread
