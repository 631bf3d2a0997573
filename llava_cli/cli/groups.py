"""Groups that import a command when it is named, and help that opens with examples."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import click

from llava_cli.cli.options import EVERYWHERE, add_common_options

Examples = Sequence[tuple[str, str]]


class _ExampleFirst(click.Command):
    """Help in the order of a reader's questions: what, how for example, then the options."""

    examples: Examples = ()

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        self.format_help_text(ctx, formatter)
        if self.examples:
            with formatter.section("Examples"):
                _write_examples(formatter, self.examples)
        formatter.write_paragraph()
        self.format_usage(ctx, formatter)
        self.format_options(ctx, formatter)
        self.format_epilog(ctx, formatter)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Options under their headings, those of every command last."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is None or isinstance(param, click.Argument):
                continue
            usual = EVERYWHERE if param is self.get_help_option(ctx) else "Options"
            sections.setdefault(getattr(param, "section", usual), []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


def _write_examples(formatter: click.HelpFormatter, examples: Examples) -> None:
    """Commands with their meaning beside them; above them, where a line would not hold both."""
    widest = max(len(command) for command, _ in examples) + max(len(what) for _, what in examples)
    if widest + 4 <= formatter.width:
        formatter.write_dl(list(examples), col_max=64)
        return
    indent = " " * formatter.current_indent
    for command, what in examples:
        formatter.write(f"{indent}# {what}\n{indent}{command}\n")


class Command(_ExampleFirst):
    """A command with examples."""

    def __init__(self, *args: Any, examples: Examples = (), **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.examples = examples


class LazyGroup(_ExampleFirst, click.Group):
    """A group that knows its commands as text (`module:attribute`) until one is named."""

    def __init__(
        self,
        *args: Any,
        lazy: Mapping[str, tuple[str, str]] | None = None,
        examples: Examples = (),
        **settings: Any,
    ) -> None:
        super().__init__(*args, **settings)
        self.lazy = dict(lazy or {})
        self.examples = examples
        add_common_options(self)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self.lazy, *(name for name in self.commands if name not in self.lazy)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in self.lazy and cmd_name not in self.commands:
            module, _, attribute = self.lazy[cmd_name][0].partition(":")
            command: click.Command = getattr(importlib.import_module(module), attribute)
            add_common_options(command)
            self.commands[cmd_name] = command
        return self.commands.get(cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        known = self.list_commands(ctx)
        if name not in known and not name.startswith("-"):
            near = difflib.get_close_matches(name, known, n=1)
            meant = f"; did you mean {near[0]}?" if near else ""
            raise click.UsageError(f"there is no command {name!r}{meant}", ctx)
        return super().resolve_command(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_options(ctx, formatter)
        self.format_commands(ctx, formatter)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The table of commands, from their descriptions here: help imports none of them."""
        rows = [(name, self._description(name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def _description(self, name: str) -> str:
        if name in self.lazy:
            return self.lazy[name][1]
        return self.commands[name].get_short_help_str(80)
