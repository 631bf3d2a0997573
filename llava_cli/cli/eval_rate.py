"""`llava eval rate`: people grade answers, blind, in the terminal or on a page of this machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from llava_cli.cli.groups import Command
from llava_cli.cli.options import common

if TYPE_CHECKING:
    from llava_cli.evals.rating import Session

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
EXAMPLES = (
    ("llava eval rate --questions q.jsonl --predictions a.jsonl --predictions b.jsonl"
     " --rater ann -o ratings.jsonl", "in the terminal"),
    ("llava eval rate --questions q.jsonl --predictions a.jsonl --rater ann -o r.jsonl --web"
     " --images cases/", "on a page, with the pictures"),
    ("llava eval rate -o ratings.jsonl --stats", "shares and agreement"),
)  # fmt: skip


@click.command("rate", cls=Command, examples=EXAMPLES)
@click.option("--questions", type=FILE, metavar="F", help="The questions (JSON Lines).")
@click.option("--predictions", multiple=True, type=FILE, metavar="F", help="A model's answers.")
@click.option(
    "--images", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="DIR",
    help="Where the pictures are.",
)  # fmt: skip
@click.option("--rater", metavar="NAME", help="Who grades.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "-o", "--output", required=True, type=click.Path(dir_okay=False, path_type=Path), metavar="F",
    help="The ratings (JSON Lines); continued where they end.",
)  # fmt: skip
@click.option("--web", is_flag=True, help="On a page on 127.0.0.1.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Of the page; 0 picks one.")
@click.option("--stats", is_flag=True, help="Only print shares of grades and agreement.")
def rate(
    questions: Path | None,
    predictions: tuple[Path, ...],
    images: Path | None,
    rater: str | None,
    seed: int,
    output: Path,
    web: bool,
    port: int,
    stats: bool,
) -> None:
    """Grade answers A (satisfying) to D (irrelevant) without seeing whose they are."""
    from llava_cli.evals import rating
    from llava_cli.evals.run import Journal

    if not stats:
        if questions is None or not predictions or rater is None:
            raise click.UsageError("--questions, --predictions and --rater are needed")
        if common().no_input:
            raise click.UsageError("grading needs a person; leave out --no-input")
        items = rating.items(questions, predictions, images)
        journal = Journal(output)
        journal.open()
        try:
            session = rating.Session(items, journal, rater, seed)
            if web:
                _on_page(session, port)
            else:
                _in_terminal(session)
        finally:
            journal.close()
    _print_stats(output)


def _in_terminal(session: Session) -> None:
    """Ask until everything is graded, the person leaves (q), or the input ends."""
    from llava_cli.evals.rating import MEANINGS
    from llava_cli.terminal.safe import visible

    err = sys.stderr
    err.write("   ".join(f"{k} {v}" for k, v in MEANINGS.items()) + "   s skip   q leave\n")
    while (item := session.current) is not None:
        done = session.total - len(session.waiting)
        where = f"  [{item.image.source}]" if item.image else ""
        err.write(visible(f"\n{done + 1}/{session.total}{where}\nQ: {item.question}\n"))
        err.write(visible(f"A: {item.answer}\n") + "grade: ")
        err.flush()
        line = sys.stdin.readline()
        said = line.strip().upper()
        if not line or said == "Q":
            err.write("\n")
            return
        if said == "S":
            session.skip()
        elif said in MEANINGS:
            session.grade(said)
        else:
            err.write("A, B, C, D, s or q\n")


def _on_page(session: Session, port: int) -> None:
    from llava_cli.evals.rating_web import RatingServer
    from llava_cli.terminal.streams import note

    server = RatingServer(session, port)
    server.start()
    try:
        note(f"grade at {server.url} (Ctrl-C leaves; what is graded is kept)")
        while not server.finished.wait(0.2):
            pass
    except KeyboardInterrupt:
        pass
    finally:
        server.close()


def _print_stats(path: Path) -> None:
    from llava_cli.evals import rating
    from llava_cli.evals.rows import read_rows
    from llava_cli.terminal.documents import write_document
    from llava_cli.terminal.safe import one_line
    from llava_cli.terminal.streams import write

    found = rating.agreement(read_rows(path) if path.exists() else ())
    if common().json:
        write_document(found)
        return
    for name, shares in found["models"].items():
        text = "  ".join(f"{grade} {share:5.1f} %" for grade, share in shares.items())
        write(f"{one_line(name)}: {text}\n")
    write(f"{found['ratings']} ratings of {found['raters']} raters\n")
    if found["shared_items"]:
        write(
            f"agreement {found['agreement']:.1f} %, Fleiss' kappa {found['fleiss_kappa']:.2f}"
            f" on {found['shared_items']} answers that several graded\n"
        )
