"""Options that several commands share: one spelling, one help text, one check."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from llava_cli.engines.base import Sampling

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


@dataclass
class Common:
    """What every command accepts, before or after its name."""

    quiet: bool = False
    """No notes on stderr."""
    verbose: bool = False
    """More notes on stderr."""
    json: bool = False
    """One JSON document on stdout, failures as JSON on stderr."""
    offline: bool = False
    """No network."""
    no_input: bool = False
    """Never ask the person anything."""
    debug: bool = False
    """Tracebacks, and remarks of libraries."""


_COMMON = (
    (("-q", "--quiet"), "quiet", "No notes on stderr."),
    (("-v", "--verbose"), "verbose", "More notes on stderr."),
    (("--json",), "json", "Print JSON."),
    (("--offline",), "offline", "Use no network."),
    (("--no-input",), "no_input", "Never ask anything."),
    (("--debug",), "debug", "Show where a failure comes from."),
)


def common() -> Common:
    """The common options of the running command."""
    context = click.get_current_context(silent=True)
    found = context.find_object(Common) if context is not None else None
    return found or Common()


def add_common_options(command: click.Command) -> None:
    """Give a command, and all below it, the common options that it does not declare itself."""
    taken = {name for param in command.params for name in param.opts}
    for declared, name, text in _COMMON:
        if not taken.intersection(declared):
            command.params.append(
                click.Option(
                    [*declared, name],
                    is_flag=True,
                    expose_value=False,
                    callback=_remember,
                    help=text,
                )
            )
    for child in getattr(command, "commands", {}).values():
        add_common_options(child)


def _remember(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and param.name:
        setattr(ctx.ensure_object(Common), param.name, True)


def _finite(ctx: click.Context, param: click.Parameter, value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise click.BadParameter("must be a finite number", ctx, param)
    return value


def _all(*options: Callable[[Decorated], Decorated]) -> Callable[[Decorated], Decorated]:
    """One decorator for several, shown in this order."""

    def decorate(function: Decorated) -> Decorated:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


sampling_options = _all(
    click.option(
        "--temperature",
        type=click.FloatRange(min=0),
        default=0.0,
        show_default=True,
        callback=_finite,
        help="0 is greedy: always the likeliest token.",
    ),
    click.option(
        "--top-p",
        type=click.FloatRange(min=0, max=1, min_open=True),
        default=1.0,
        callback=_finite,
        help="Keep the likeliest tokens up to this probability.",
    ),
    click.option(
        "--top-k", type=click.IntRange(min=0), default=0, help="Keep the K likeliest; 0 keeps all."
    ),
    click.option(
        "--min-p",
        type=click.FloatRange(min=0, max=1),
        default=0.0,
        callback=_finite,
        help="Keep tokens at least this likely, relative to the likeliest.",
    ),
    click.option(
        "--repeat-penalty",
        type=click.FloatRange(min=0, min_open=True),
        default=1.0,
        callback=_finite,
        help="Above 1 makes repetition less likely.",
    ),
    click.option(
        "--seed",
        type=click.IntRange(min=0, max=2**63 - 1),
        default=None,
        help="Makes sampling repeatable.",
    ),
    click.option(
        "--max-tokens",
        type=click.IntRange(min=1),
        default=512,
        show_default=True,
        help="Longest answer.",
    ),
    click.option("--stop", multiple=True, metavar="TEXT", help="End the answer here; repeatable."),
    click.option(
        "--top-logprobs",
        type=click.IntRange(min=0, max=1000),
        default=0,
        metavar="K",
        help="Report the K likeliest first tokens.",
    ),
)


def sampling_from(options: dict[str, Any]) -> Sampling:
    """The value that engines take."""
    from llava_cli.engines.base import Sampling

    if any(not text for text in options["stop"]):
        raise click.UsageError("--stop needs a text")
    return Sampling(
        temperature=options["temperature"],
        top_p=options["top_p"],
        top_k=options["top_k"],
        min_p=options["min_p"],
        repeat_penalty=options["repeat_penalty"],
        seed=options["seed"],
        max_tokens=options["max_tokens"],
        stop=tuple(options["stop"]),
        top_logprobs=options["top_logprobs"],
    )


model_options = _all(
    click.option(
        "-m",
        "--model",
        metavar="REF",
        help="Hub id, folder or .gguf file; without it the bundled model answers.",
    ),
    click.option("--mmproj", metavar="FILE", help="The projector of a .gguf model."),
    click.option("--engine", metavar="auto|gguf|torch|server", help="What computes the answer."),
    click.option("--device", metavar="auto|cpu|cuda|cuda:N|mps", help="Where it is computed."),
    click.option("--threads", type=int, metavar="N", help="CPU threads."),
    click.option("--prompt-format", metavar="NAME", help="Override the model's prompt format."),
)
