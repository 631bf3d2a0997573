"""From the model options of a command to a loaded engine."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llava_cli.cli.options import Common
from llava_cli.cli.settings import resolve
from llava_cli.errors import UsageError

if TYPE_CHECKING:
    from llava_cli.engines.base import Engine

PHOTO_MODEL = "llava-hf/llava-1.5-7b-hf"


@dataclass(frozen=True)
class ModelChoice:
    """Which model, and how it is run."""

    model: str | None
    mmproj: str | None
    engine: str
    device: str
    threads: int | None
    prompt_format: str | None

    @classmethod
    def from_options(cls, options: dict[str, Any]) -> ModelChoice:
        """Flags, completed by the settings; every text is checked here."""
        if options["model"] is not None and not options["model"].strip():
            raise UsageError("-m/--model is empty", "give a Hub id, a folder or a .gguf file")
        threads = resolve("threads", options["threads"]).value
        model = resolve("model", options["model"]).value
        return cls(
            model=None if model is None else str(model),
            mmproj=options["mmproj"],
            engine=str(resolve("engine", options["engine"]).value),
            device=str(resolve("device", options["device"]).value),
            threads=None if threads is None else int(threads),
            prompt_format=_known_format(options["prompt_format"]),
        )


def load(choice: ModelChoice, common: Common) -> Engine:
    """Find the model's files and load them."""
    if choice.engine == "server":
        return connect(choice)
    from llava_cli import engines, models
    from llava_cli.terminal.streams import note, status

    offline = common.offline or hub_is_offline()
    files = models.resolve(
        choice.model, mmproj=choice.mmproj, engine=choice.engine, offline=offline
    )
    wanted = not common.quiet and not common.json and not files.bundled
    with status(f"loading {files.reference} …", wanted):
        engine = engines.load(
            files,
            engine=choice.engine,
            device=choice.device,
            threads=choice.threads,
            prompt_format=choice.prompt_format,
        )
    if choice.model is None and not common.quiet:
        note(
            "the bundled model knows only drawn shapes; for photographs: "
            f"llava ask -m {PHOTO_MODEL} …"
        )
    if common.verbose:
        note(f"{files.reference}: {engine.name} on {engine.device}, prompt {engine.prompt_format}")
    return engine


def connect(choice: ModelChoice) -> Engine:
    """The server that LLAVA_SERVER names, or the one at its usual place."""
    from llava_cli.engines.server import DEFAULT_URL, ServerEngine

    url = str(resolve("server").value or DEFAULT_URL)
    key = os.environ.get("LLAVA_API_KEY", "").strip() or None
    return ServerEngine(url, model=choice.model, api_key=key)


def hub_is_offline() -> bool:
    """Whether the person's environment keeps the Hub (not pictures from URLs) off the network."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _known_format(name: str | None) -> str | None:
    if name is None:
        return None
    from llava_cli.prompts import FORMATS

    if name in FORMATS:
        return name
    near = difflib.get_close_matches(name, FORMATS, n=1)
    meant = f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(FORMATS))}"
    raise UsageError(f"unknown prompt format: {name}", meant)
