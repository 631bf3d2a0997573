"""`llava` in this process: quicker than a process of its own, and failures are raised."""

from __future__ import annotations

from pathlib import Path


def llava(*arguments: str | Path) -> None:
    """Run one command; a failure is the LlavaError that a person would be told."""
    from llava_cli.cli.app import app
    from llava_cli.cli.options import Common

    with app.make_context("llava", [str(a) for a in arguments], obj=Common()) as context:
        app.invoke(context)
