"""Options that several commands share: one spelling, one help text, one check."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
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


def completed_by(name: str) -> Callable[[click.Context, click.Parameter, str], Any]:
    """A function of `completing`, imported when a shell asks."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> Any:
        from llava_cli.cli import completing

        return getattr(completing, name)(ctx, param, incomplete)

    return complete


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
        help="Alias, Hub id, folder or .gguf file; without it the bundled model answers.",
        shell_complete=completed_by("models"),
    ),
    click.option("--mmproj", metavar="FILE", help="The projector of a .gguf model."),
    click.option(
        "--engine",
        metavar="auto|gguf|torch|server",
        help="What computes the answer.",
        shell_complete=completed_by("metavar_words"),
    ),
    click.option(
        "--device",
        metavar="auto|cpu|cuda|cuda:N|mps",
        help="Where it is computed.",
        shell_complete=completed_by("metavar_words"),
    ),
    click.option(
        "--quantize",
        type=click.Choice(["4bit", "8bit"]),
        help="Load with fewer bits (PyTorch on CUDA).",
    ),
    click.option(
        "--adapter",
        type=click.Path(path_type=Path),
        metavar="DIR|FILE",
        help="A LoRA adapter to put on the model: peft's folder, or a .gguf.",
    ),
    click.option(
        "--base", metavar="REF", help="The model under a projector, LoRA or delta given as -m."
    ),
    click.option(
        "--vision-tower", metavar="REF", help="Of an original checkpoint that only names its tower."
    ),
    click.option("--threads", type=int, metavar="N", help="CPU threads."),
    click.option("--prompt-format", metavar="NAME", help="Override the model's prompt format."),
    click.option("--context", type=click.IntRange(min=64), metavar="N", help="Read at most N."),
    click.option(
        "--kv-type",
        type=click.Choice(["f32", "f16", "bf16", "q8_0"]),
        help="How keys and values are stored; q8_0 takes half the memory of f16.",
    ),
    click.option("--flash-attention/--no-flash-attention", default=None, help="Attention's way."),
    click.option("--ubatch", type=click.IntRange(1, 8192), metavar="N", help="Tokens in one go."),
    click.option("--repack/--no-repack", default=None, help="Weights for this processor."),
    click.option("--mmap/--no-mmap", default=None, help="Weights where they lie in the file."),
    click.option("--mlock", is_flag=True, help="Keep weights from being swapped out."),
    click.option("--gpu-layers", type=click.IntRange(min=0), metavar="N", help="On the device."),
    click.option(
        "--image-tokens",
        type=click.IntRange(min=1),
        metavar="N",
        help="Merge each picture's tokens down to N: quicker, less exact.",
    ),
    click.option("--no-cache", is_flag=True, help="Keep nothing on disk, use nothing kept there."),
)
