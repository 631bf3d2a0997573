"""Fetching a model while a person watches: how big it is, whether they want it, how far it is."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING

import click

from llava_cli.cli.options import Common
from llava_cli.errors import MissingDependency, ModelNotFound
from llava_cli.terminal.streams import is_terminal, note
from llava_cli.terminal.transfer import TransferBar, readable

if TYPE_CHECKING:
    from llava_cli.models.hub import Plan
    from llava_cli.models.listing import RemoteFile


class Fetching:
    """The consent and the progress that `models.resolve` takes, and the bar between them."""

    def __init__(self, common: Common) -> None:
        self._common = common
        self._bar: TransferBar | None = None

    def __enter__(self) -> Fetching:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.__exit__(kind, error, trace)

    def consent(self, plan: Plan) -> None:
        """Say how big a model is that is not on this disk, and let the person decide."""
        model, size = plan.model, readable(plan.missing_bytes)
        _check_engine(plan)
        if self._common.no_input:
            raise ModelNotFound(
                f"model {model} is not on this disk, and --no-input fetches none ({size})",
                f"get it first: llava pull {model}",
            )
        license_ = f", licence {plan.listing.license}" if plan.listing.license else ""
        asks = is_terminal(sys.stdin) and is_terminal(sys.stderr) and not self._common.json
        if asks or not self._common.quiet:
            note(f"{model} is not on this disk: {size} to fetch from {model.repo}{license_}")
        if asks and not click.confirm("Fetch it?", default=True, err=True):
            raise ModelNotFound(f"model {model} was not fetched", f"later: llava pull {model}")
        self.start(plan)

    def start(self, plan: Plan) -> None:
        """Show the bar."""
        wanted = not self._common.quiet and not self._common.json
        self._bar = TransferBar(plan.bytes, wanted)
        self._bar.__enter__()

    def progress(self, file: RemoteFile, there: int) -> None:
        """So many bytes of a file are there."""
        if self._bar is not None:
            self._bar.update(file.name, there, file.size)


def _check_engine(plan: Plan) -> None:
    """Nothing is fetched that no engine here could read."""
    import importlib.util

    if plan.files[0].name.endswith(".gguf") or importlib.util.find_spec("torch") is not None:
        return
    raise MissingDependency(
        f"model {plan.model} needs the PyTorch engine, which is not installed",
        "pip install 'llava-cli[torch]', or name a GGUF model",
    )
