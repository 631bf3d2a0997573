"""The commands, a module each, imported when used; `main` is the console script."""

from __future__ import annotations

from llava_cli.cli.app import main

__all__ = ["main"]
