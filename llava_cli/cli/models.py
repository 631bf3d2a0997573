"""From the model options of a command to a loaded engine."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_cli.cli.options import Common
from llava_cli.cli.settings import resolve, size_bytes
from llava_cli.engines.tuning import Tuning
from llava_cli.errors import UsageError

if TYPE_CHECKING:
    from llava_cli.cache import DiskCache
    from llava_cli.engines.base import Engine
    from llava_cli.models.files import ModelFiles

PHOTO_MODEL = "llava-1.5-7b"


@dataclass(frozen=True)
class ModelChoice:
    """Which model, and how it is run."""

    model: str | None
    mmproj: str | None
    engine: str
    device: str
    threads: int | None
    prompt_format: str | None
    quantize: str | None = None
    adapter: Path | None = None
    base: str | None = None
    vision_tower: str | None = None
    no_cache: bool = False
    cache_size: int = 0
    context: int | None = None
    kv_type: str | None = None
    flash_attention: bool | None = None
    tuning: Tuning = Tuning()
    image_tokens: int | None = None

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
            quantize=options.get("quantize"),
            adapter=options.get("adapter"),
            base=options.get("base"),
            vision_tower=options.get("vision_tower"),
            no_cache=bool(options.get("no_cache")),
            context=options.get("context"),
            kv_type=options.get("kv_type"),
            flash_attention=options.get("flash_attention"),
            image_tokens=options.get("image_tokens"),
            tuning=Tuning(
                ubatch=options.get("ubatch"),
                repack=options.get("repack"),
                mmap=options.get("mmap"),
                mlock=bool(options.get("mlock")),
                gpu_layers=options.get("gpu_layers"),
            ),
            cache_size=size_bytes(str(resolve("cache_size").value)),
        )


def find(choice: ModelChoice, common: Common) -> ModelFiles:
    """The model's files, fetched if need be, after the person agreed."""
    from llava_cli import models
    from llava_cli.cli.fetching import Fetching

    with Fetching(common) as fetching:
        return models.resolve(
            choice.model,
            mmproj=choice.mmproj,
            engine=choice.engine,
            offline=common.offline or hub_is_offline(),
            base=choice.base,
            vision_tower=choice.vision_tower,
            consent=fetching.consent,
            on_progress=fetching.progress,
        )


def load(choice: ModelChoice, common: Common) -> Engine:
    """Find the model's files and load them."""
    if choice.engine == "server":
        return connect(choice)
    from llava_cli import engines
    from llava_cli.terminal.streams import note, status

    files = find(choice, common)
    choice = tuned(choice, files)
    wanted = not common.quiet and not common.json and not files.bundled
    remarks: list[str] = []
    with status(f"loading {files.reference} …", wanted) as show:
        engine = engines.load(
            files,
            engine=choice.engine,
            device=choice.device,
            threads=choice.threads,
            prompt_format=choice.prompt_format,
            quantize=choice.quantize,
            adapter=choice.adapter,
            context=choice.context,
            kv_type=choice.kv_type,
            flash_attention=choice.flash_attention,
            tuning=choice.tuning,
            image_tokens=choice.image_tokens,
            cache=disk_cache(choice, common),
            progress=lambda fraction: show(f"{fraction:.0%}"),
            note=remarks.append,
        )
    for remark in () if common.quiet or common.json else remarks:
        note(remark)
    if choice.model is None and not common.quiet:
        note(
            "the bundled model knows only drawn shapes; for photographs: "
            f"llava ask -m {PHOTO_MODEL} …"
        )
    if wanted and files.format == "gguf":
        offer_tuning(files)
    if common.verbose:
        note(f"{files.reference}: {engine.name} on {engine.device}, prompt {engine.prompt_format}")
    return engine


def tuned(choice: ModelChoice, files: ModelFiles) -> ModelChoice:
    """What the person did not choose, as `llava doctor --tune` found it best."""
    from llava_cli.engines.tuning import remembered

    home = Path(str(resolve("home").value)).expanduser()
    best = remembered(home, files) if files.format == "gguf" and files.path.exists() else None
    if best is None:
        return choice
    flash = choice.flash_attention
    if flash is None and not best.flash_attention:
        flash = None if choice.kv_type == "q8_0" else False
    return replace(
        choice,
        threads=choice.threads or best.threads,
        flash_attention=flash,
        tuning=best.fill(choice.tuning),
    )


def offer_tuning(files: ModelFiles) -> None:
    """Tell a person once that the quickest settings for such a model can be measured."""
    import sys

    from llava_cli.engines.tuning import offer
    from llava_cli.terminal.streams import is_terminal, note

    try:
        home = Path(str(resolve("home").value)).expanduser()
        if is_terminal(sys.stderr) and offer(home, files):
            note(f"the quickest settings here: llava doctor --tune -m {files.reference}")
    except OSError:  # nowhere to remember that it was offered: do not offer
        return


def disk_cache(choice: ModelChoice, common: Common) -> DiskCache | None:
    """Where pictures that were read are kept between runs; None where that is not wanted."""
    from llava_cli.cache import DiskCache
    from llava_cli.terminal.streams import note

    if choice.no_cache or choice.cache_size == 0:
        return None
    quiet = common.quiet or common.json
    return DiskCache(cache_folder(), choice.cache_size, report=(lambda _: None) if quiet else note)


def cache_folder() -> Path:
    """The folder of the disk cache."""
    return Path(str(resolve("home").value)).expanduser() / "cache"


def connect(choice: ModelChoice) -> Engine:
    """The server that LLAVA_SERVER names, or the one at its usual place."""
    from llava_cli.engines.server import DEFAULT_URL, ServerEngine

    for name in ("adapter", "base", "vision_tower", "quantize"):
        if getattr(choice, name) is not None:
            option = "--" + name.replace("_", "-")
            raise UsageError(
                f"{option} is for who loads the model, and a server has loaded its own",
                f"give it to llava serve: llava serve -m REF {option} …",
            )
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
