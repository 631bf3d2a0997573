"""`llava logs`: what was asked and answered before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llava_cli.cli.groups import Command, LazyGroup
from llava_cli.cli.options import common

if TYPE_CHECKING:
    from llava_cli.history import Exchange, History

_limit = click.option(
    "-n", "--limit", type=click.IntRange(min=0), default=20, show_default=True, help="0 is all."
)


@click.group(
    "logs",
    cls=LazyGroup,
    examples=(
        ("llava logs list", "the latest questions"),
        ("llava logs search red star", "where all these words occur"),
        ("llava logs show", "the last answer in full"),
        ('llava ask -c "and what colour is it?"', "go on with the last conversation"),
        ("llava logs prune --older-than 90d", "forget what is old"),
        ("llava logs off", "remember nothing from now on"),
    ),
)
def logs() -> None:
    """Look at what was asked and answered before.

    It lies in a file on this computer. Pictures are remembered by path and hash, never by content.
    """


@logs.command("list", cls=Command, examples=(("llava logs list -n 5", "the last five"),))
@_limit
@click.option("-m", "--model", metavar="REF", help="Only answers of this model.")
def list_(limit: int, model: str | None) -> None:
    """List the latest questions, newest first."""
    with _history() as history:
        _print_list(history.recent(limit or None, model=model) if history else ())


@logs.command("search", cls=Command, examples=(("llava logs search blue circle", "all words"),))
@click.argument("words", nargs=-1, required=True)
@_limit
def search(words: tuple[str, ...], limit: int) -> None:
    """Find exchanges by the words in question and answer (beginnings of words will do)."""
    with _history() as history:
        _print_list(history.search(" ".join(words), limit or None) if history else ())


@logs.command(
    "show",
    cls=Command,
    examples=(
        ("llava logs show", "the last one"),
        ("llava logs show 12", "one of the list"),
        ("llava logs show 12 --thread", "with the whole conversation"),
    ),
)
@click.argument("number", type=click.IntRange(min=1), required=False)
@click.option("--thread", is_flag=True, help="The whole conversation.")
def show(number: int | None, thread: bool) -> None:
    """Show an exchange in full."""
    from llava_cli.errors import UsageError
    from llava_cli.terminal.documents import write_document
    from llava_cli.terminal.streams import write

    with _history() as history:
        found = None if history is None else history.get(number) if number else history.latest()
        if history is None or found is None:
            raise UsageError("nothing has been remembered yet", "ask something first")
        exchanges = history.thread(found.thread) if thread else [found]
    if common().json:
        documents = [_document(exchange) for exchange in exchanges]
        write_document(documents if thread else documents[0])
    else:
        write("\n".join(_in_full(exchange) for exchange in exchanges))


@logs.command(
    "export",
    cls=Command,
    examples=(
        ("llava logs export > history.jsonl", "JSON Lines"),
        ("llava logs export --format md -o history.md", "to read"),
    ),
)
@click.option(
    "--format", "format_", type=click.Choice(["jsonl", "md"]), default="jsonl", show_default=True
)
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Write to a file.")
def export(format_: str, out: Path | None) -> None:
    """Write everything, oldest first."""
    from llava_cli.terminal.documents import dumps
    from llava_cli.terminal.streams import write
    from llava_cli.writing import replacing

    def pieces() -> Iterator[str]:
        with _history() as history:
            for exchange in history.everything() if history else ():
                as_line = format_ == "jsonl"
                yield dumps(_document(exchange)) + "\n" if as_line else _in_full(exchange) + "\n"

    if out is None:
        for piece in pieces():
            write(piece)
        return
    with replacing(out) as file:
        for piece in pieces():
            file.write(piece.encode("utf-8", "backslashreplace"))


@logs.command(
    "prune",
    cls=Command,
    examples=(
        ("llava logs prune --older-than 90d", "days; also h, w, y"),
        ("llava logs prune --all -y", "everything, without being asked"),
    ),
)
@click.option("--older-than", metavar="AGE", help="For example 12h, 30d, 8w, 1y.")
@click.option("--all", "everything", is_flag=True, help="Forget everything.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def prune(older_than: str | None, everything: bool, yes: bool) -> None:
    """Forget old exchanges for good."""
    import time

    from llava_cli.terminal.documents import write_document
    from llava_cli.terminal.streams import note

    if (older_than is None) == (not everything):
        raise click.UsageError("say what to forget: --older-than AGE, or --all")
    before = None if older_than is None else time.time() - _seconds(older_than)
    gone = 0
    with _history() as history:
        count = history.count(before) if history else 0
        if history and count and (yes or _agreed(count)):
            gone = history.prune(before)
    if common().json:
        write_document({"removed": gone})
    elif not common().quiet:
        note(f"{gone} exchanges forgotten")


@logs.command("off", cls=Command, examples=(("llava logs off", "nothing is remembered any more"),))
def off() -> None:
    """Remember nothing from now on; what is there stays (see prune)."""
    from llava_cli.cli import remembering

    folder = remembering.home()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / remembering.OFF_FILE).touch()
    _say_state()


@logs.command("on", cls=Command, examples=(("llava logs on", "remember again"),))
def on() -> None:
    """Remember again."""
    from llava_cli.cli import remembering

    (remembering.home() / remembering.OFF_FILE).unlink(missing_ok=True)
    _say_state()


@logs.command("path", cls=Command, examples=(("sqlite3 $(llava logs path)", "look yourself"),))
def path() -> None:
    """Print where the database lies."""
    from llava_cli.cli import remembering
    from llava_cli.terminal.documents import write_document
    from llava_cli.terminal.streams import write

    found = remembering.path()
    if common().json:
        write_document({"path": str(found), "exists": found.is_file(), "on": remembering.is_on()})
    else:
        write(f"{found}\n")


def _say_state() -> None:
    from llava_cli.cli import remembering
    from llava_cli.terminal.documents import write_document
    from llava_cli.terminal.streams import note

    state = remembering.is_on()
    if common().json:
        write_document({"on": state})
    elif not common().quiet:
        note(f"the history is {'on' if state else 'off'}")


@contextmanager
def _history() -> Iterator[History | None]:
    """The database, if anything has ever been remembered."""
    from llava_cli.cli import remembering
    from llava_cli.history import History

    database = remembering.path()
    if not database.is_file():
        yield None
        return
    with closing(History(database)) as history:
        yield history


def _print_list(exchanges: Iterable[Exchange]) -> None:
    """A line each: number, time, model, question, the beginning of the answer."""
    from llava_cli.terminal.documents import write_document
    from llava_cli.terminal.safe import one_line
    from llava_cli.terminal.streams import write

    if common().json:
        write_document([_document(exchange) for exchange in exchanges])
        return
    for exchange in exchanges:
        pictures = ", ".join(Path(p.source).name or p.source for p in exchange.pictures)
        about = f"[{pictures}] " if pictures else ""
        said = " ".join(exchange.answer.split())
        said = said if len(said) <= 80 else said[:79] + "…"
        prompt = " ".join(exchange.prompt.split())
        line = f"{exchange.id:>5}  {_when(exchange.at)}  {exchange.model}  {about}{prompt} → {said}"
        write(one_line(line) + "\n")


def _in_full(exchange: Exchange) -> str:
    """One exchange as Markdown."""
    from llava_cli.terminal.safe import one_line, visible

    lines = [f"## {exchange.id} · {_when(exchange.at)} · {one_line(exchange.model)}", ""]
    if exchange.system is not None:
        lines += [f"*system:* {visible(exchange.system)}", ""]
    lines += [f"- {one_line(p.path or p.source)}" for p in exchange.pictures]
    lines += [""] if exchange.pictures else []
    lines += [f"> {line}" for line in visible(exchange.prompt).split("\n")]
    return "\n".join([*lines, "", visible(exchange.answer), ""])


def _document(exchange: Exchange) -> dict[str, Any]:
    from datetime import datetime, timezone

    return {
        "id": exchange.id,
        "thread": exchange.thread,
        "at": datetime.fromtimestamp(exchange.at, timezone.utc).isoformat(timespec="seconds"),
        "command": exchange.command,
        "model": exchange.model,
        "engine": exchange.engine,
        "system": exchange.system,
        "prompt": exchange.prompt,
        "images": [
            {"source": p.source, "path": p.path, "sha256": p.sha256} for p in exchange.pictures
        ],
        "answer": exchange.answer,
        "finish_reason": exchange.finish_reason,
        **exchange.details,
    }


def _when(at: float) -> str:
    from datetime import datetime

    return datetime.fromtimestamp(at).strftime("%Y-%m-%d %H:%M")


def _seconds(age: str) -> float:
    import re

    match = re.fullmatch(r"(\d{1,6})([hdwy])", age.strip().lower())
    if match is None:
        raise click.UsageError(f"--older-than {age}: write a number and h, d, w or y, like 30d")
    return int(match[1]) * {"h": 3600, "d": 86400, "w": 604800, "y": 31557600}[match[2]]


def _agreed(count: int) -> bool:
    """Ask at a terminal; elsewhere -y has to be said."""
    import sys

    from llava_cli.errors import UsageError

    if common().no_input or sys.stdin is None or not sys.stdin.isatty():
        raise UsageError(f"{count} exchanges would be forgotten for good", "say so with -y")
    return click.confirm(f"Forget {count} exchanges for good?", err=True)
