"""`llava ask`: one question about pictures, answered by a local model."""

from __future__ import annotations

import sys
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
    from collections.abc import Sequence

    from llava_cli.cli.answering import Answer
    from llava_cli.conversation import Conversation
    from llava_cli.engines.base import Engine, Sampling
    from llava_cli.images import Image

EXAMPLES = (
    ('llava ask photo.jpg "what is unusual here?"', "one picture"),
    ('llava ask before.png after.png "what changed?"', "several pictures, one answer"),
    ('llava ask "shots/*.png" "describe it" --each', "one JSON line a picture"),
    ('curl -s URL | llava ask - "what is this?" --json', "from a pipe, as JSON"),
    ('llava ask photo.jpg "is there a dog?" --yes-no --json', "yes or no, how likely"),
    ("llava ask -i @clip -p - < question.txt", "clipboard, and a question from a file"),
)


@click.command("ask", cls=Command, examples=EXAMPLES)
@click.argument(
    "arguments",
    nargs=-1,
    metavar="[IMAGE]... PROMPT",
    shell_complete=completed_by("pictures"),
)
@click.option(
    "-i",
    "--image",
    "images",
    multiple=True,
    metavar="IMAGE",
    shell_complete=completed_by("pictures"),
    help="A picture: file, pattern, http(s) URL, data: URL, - (stdin) or @clip; repeatable.",
)
@click.option("-p", "--prompt", metavar="TEXT", help="The question, where it could be mistaken.")
@click.option("-s", "--system", metavar="TEXT", help="Replace the system message.")
@click.option("--prefill", metavar="TEXT", help="Begin the answer with this text.")
@click.option("--choices", metavar="A,B,C", help="Answer one of these; --json adds probabilities.")
@click.option("--yes-no", is_flag=True, help="Answer yes or no.")
@click.option(
    "--schema",
    metavar="FILE|DSL",
    help="Answer in JSON of this schema: a JSON schema, or fields like 'name, age int'.",
)
@click.option("--each", is_flag=True, help="One answer for each picture, as JSON Lines.")
@click.option(
    "--background",
    default="white",
    show_default=True,
    metavar="COLOUR",
    help="What transparent pixels are laid on.",
)
@click.option("--estimate", is_flag=True, help="Tell tokens and memory; do not answer.")
@click.option("-c", "--continue", "goes_on", is_flag=True, help="Go on with the last conversation.")
@click.option(
    "--keep-alive", metavar="TIME", help="Keep the model loaded for so long: 5m, 1h; 0 ends."
)
@click.option("--no-log", is_flag=True, help="Keep this out of the history.")
@click.option("--stats", is_flag=True, help="Counts and seconds on stderr.")
@click.option(
    "--markdown",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    help="Render markdown; auto does so on a terminal.",
)
@sampling_options
@model_options
def ask(
    arguments: tuple[str, ...],
    images: tuple[str, ...],
    prompt: str | None,
    background: str,
    **options: Any,
) -> None:
    """Ask a model about pictures.

    An argument that names a picture is one; the one that is left is the question (- reads it from
    standard input). Without a picture the model is asked in words alone.
    """
    from llava_cli.cli import constraint, estimate, keeping, models, question

    sampling = constraint.constrained(sampling_from(options), options)
    models.ModelChoice.from_options(options)  # wrong options are said first
    asked = question.parse_question(arguments, images, prompt, _colour(background))
    if options["each"] and not asked.images:
        raise click.UsageError("--each needs at least one picture")
    if options["each"] and options["goes_on"]:
        raise click.UsageError("--each begins conversations, -c continues one: use one of them")
    options["thread"], before = _before(options)
    choice = models.ModelChoice.from_options(options)
    pictures = _checked(asked.images, keep=not options["each"])
    groups = [(picture,) for picture in pictures] if options["each"] else [pictures]
    conversations = [_conversation(before, asked.prompt, group, options) for group in groups]
    if options["estimate"]:
        estimate.show(choice, conversations, sampling)
        return
    with closing(keeping.load(choice, common(), sampling, options["keep_alive"])) as engine:
        if options["each"]:
            _print_each(engine, conversations, sampling, options)
        else:
            _print_one(engine, conversations[0], sampling, options)


def _colour(name: str) -> str:
    from llava_cli.decode import background_rgb

    background_rgb(name)
    return name


def _checked(images: Sequence[Image], *, keep: bool) -> tuple[Image, ...]:
    """Decode every picture before any model is loaded; `keep` holds on to the pixels."""
    from llava_cli.errors import ImageError

    checked = []
    for image in images:
        if image.kind == "url" and common().offline:
            raise ImageError(
                f"{image.source}: needs the network", "leave out --offline, or give a file"
            )
        loaded = image.loaded()
        # Many pictures are decoded again when their turn comes: together they may not fit.
        checked.append(loaded if keep or image.kind == "url" else image)
    return tuple(checked)


def _before(options: dict[str, Any]) -> tuple[int | None, Conversation]:
    """The conversation that is continued, with the model that answered in it; its number."""
    from llava_cli.conversation import Conversation

    if not options["goes_on"]:
        return None, Conversation()
    from llava_cli.cli.remembering import last_thread
    from llava_cli.history import conversation_of
    from llava_cli.models.resolve import BUNDLED

    exchanges = last_thread()
    model = exchanges[-1].model
    if options["model"] is None and model != BUNDLED:
        options["model"] = model
    return exchanges[-1].thread, conversation_of(exchanges)


def _conversation(
    before: Conversation, prompt: str, images: Sequence[Image], options: dict[str, Any]
) -> Conversation:
    from llava_cli.conversation import Conversation

    conversation = before
    if options["system"] is not None:
        rest = tuple(m for m in before.messages if m.role != "system")
        conversation = Conversation(Conversation().add("system", options["system"]).messages + rest)
    conversation = conversation.add("user", *images, prompt)
    if options["prefill"]:
        conversation = conversation.add("assistant", options["prefill"])
    return conversation


def _print_one(
    engine: Engine, conversation: Conversation, sampling: Sampling, options: dict[str, Any]
) -> None:
    from llava_cli.cli import answering, constraint, remembering
    from llava_cli.terminal.answers import answer_stream
    from llava_cli.terminal.documents import write_document
    from llava_cli.terminal.streams import write

    as_json = common().json
    whole = sampling.schema is not None  # shown when it is known to be JSON
    out = None if as_json or whole else answer_stream(sys.stdout, options["markdown"])
    tokens = engine.generate(conversation, sampling)
    answer = answering.stream_answer(tokens, out, options["prefill"] or "")
    constraint.check_answer(answer, sampling)
    if whole and not as_json:
        write(answer.text.strip() + "\n")
    if as_json:
        write_document(_document(answer, engine, options))
    elif sampling.top_logprobs:
        answering.write_candidates(answer)
    if options["stats"]:
        answering.write_stats(answer, engine)
    if remembering.is_on(options["no_log"]):
        remembering.remember(conversation, answer, engine, "ask", options["thread"])


def _print_each(
    engine: Engine,
    conversations: Sequence[Conversation],
    sampling: Sampling,
    options: dict[str, Any],
) -> None:
    from llava_cli.cli import answering, constraint, remembering
    from llava_cli.terminal.documents import write_json_line

    prefill = options["prefill"] or ""
    wanted_log = remembering.is_on(options["no_log"])
    answers = answering.batch_answers(engine, conversations, sampling, prefill)
    for conversation, answer in zip(conversations, answers, strict=True):
        constraint.check_answer(answer, sampling)
        write_json_line(_document(answer, engine, options))
        if options["stats"]:
            answering.write_stats(answer, engine)
        if wanted_log:
            remembering.remember(conversation, answer, engine, "ask")


def _document(answer: Answer, engine: Engine, options: dict[str, Any]) -> dict[str, Any]:
    from llava_cli.cli import answering

    document = answering.document(answer, engine, top_logprobs=options["top_logprobs"] > 0)
    if options["no_cache"]:
        document["cache"]["image"] = "off"
    return document
