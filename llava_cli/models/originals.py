"""Folders of the original LLaVA code, and LoRA adapters, as models that PyTorch can answer with.

What such a folder leaves out (the language model under an adapter or projector, the vision tower)
is looked for where the person says, else in the Hub's cache under the name that the folder's own
files give. Nothing is fetched: they are other people's repositories, named by a file. Not here:
reading the weights (`llava_cli.engines.layouts`).
"""

from __future__ import annotations

import re
from pathlib import Path

from llava_cli.errors import ModelNotFound, UsageError
from llava_cli.models import cache
from llava_cli.models.files import ModelFiles
from llava_cli.models.folders import has_weights, is_original, read_json

ADAPTER = "adapter_config.json"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def is_partial_or_original(folder: Path) -> bool:
    """Whether a folder is what this module is for; told by what is in it."""
    if (folder / ADAPTER).is_file():
        return True
    config = folder / "config.json"
    return config.is_file() and is_original(read_json(config))


def resolve_original(
    folder: Path, reference: str, *, base: str | None = None, vision_tower: str | None = None
) -> ModelFiles:
    """The folder with all that it needs from elsewhere; ModelNotFound says what is missing."""
    adapter = read_json(folder / ADAPTER) if (folder / ADAPTER).is_file() else {}
    own = folder / "config.json"
    config = read_json(own) if own.is_file() else {}
    whole = has_weights(folder) and not adapter
    under = _given("--base", base)
    if under is None and not whole:
        name = adapter.get("base_model_name_or_path") or config.get("_name_or_path")
        under = _cached(name)
        if under is None:
            raise ModelNotFound(
                f"{folder} holds no language model of its own"
                + (f"; it was trained on {name}" if isinstance(name, str) and name else ""),
                "name that model, a folder or a Hub id on this disk: --base REF",
            )
    tower = _given("--vision-tower", vision_tower)
    if tower is None and is_original(config):
        tower = _cached(config.get("mm_vision_tower"))
    return ModelFiles(
        reference=reference,
        format="original",
        path=folder,
        config=config,
        base=under,
        vision_tower=tower,
    )


def refuse_parts(files: ModelFiles, base: str | None, vision_tower: str | None) -> None:
    """UsageError for parts that were given to a model that has them."""
    if files.format == "original":
        return
    for value, name in ((base, "--base"), (vision_tower, "--vision-tower")):
        if value is not None:
            raise UsageError(f"{files.reference} is a whole model", f"leave out {name}")


def _given(option: str, reference: str | None) -> Path | None:
    """The folder that a person names, by its path or as a Hub id whose files are on this disk."""
    if reference is None:
        return None
    path = Path(reference).expanduser()
    if path.is_dir():
        run = path / "model"
        return run if not (path / "config.json").is_file() and run.is_dir() else path
    found = _cached(reference)
    if found is None:
        fetch = f"fetch it: hf download {reference}" if _HUB_ID.fullmatch(reference) else ""
        raise ModelNotFound(
            f"{option}: {reference} is not on this disk", fetch or "give a folder or a Hub id"
        )
    return found


def _cached(name: object) -> Path | None:
    """The Hub's cache of a repository, if it was fetched earlier; a path in a file is not taken."""
    if not isinstance(name, str) or not _HUB_ID.fullmatch(name):
        return None
    folder = cache.snapshot(name, None)
    return folder if folder is not None and (folder / "config.json").is_file() else None
