"""A model reference -> `ModelFiles`: the bundled model, an alias, a folder, a .gguf, a Hub id.

The one place where a reference is understood. Every failure is a `ModelNotFound` or `ModelInvalid`
that says what was tried and what to do, and happens before any engine is loaded.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from llava_cli.errors import ModelInvalid, ModelNotFound
from llava_cli.models import aliases
from llava_cli.models.files import ModelFiles
from llava_cli.models.folders import is_hf_folder, resolve_hf
from llava_cli.models.gguf_files import resolve_gguf, resolve_gguf_folder
from llava_cli.models.originals import is_partial_or_original, refuse_parts, resolve_original

if TYPE_CHECKING:
    from llava_cli.models.hub import Consent, HubModel, OnProgress

BUNDLED = "llava-demo"
"""Name of the model that comes with the package."""
_BUNDLED_FOLDER = Path(__file__).resolve().parent.parent / "demo"
_HUB_ID = re.compile(
    r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^\s:@]+))?(?::(?P<quant>[\w.-]+))?"
)


def resolve(
    reference: str | None,
    *,
    mmproj: str | None = None,
    engine: str = "auto",
    offline: bool = False,
    revision: str | None = None,
    base: str | None = None,
    vision_tower: str | None = None,
    consent: Consent | None = None,
    on_progress: OnProgress | None = None,
) -> ModelFiles:
    """Find the files of a model; None, or its name, is the bundled one.

    `engine` (`auto`, `gguf`, `torch`) matters where a reference has files for both. What is not on
    this disk is fetched from the Hub, after `consent` was asked; it raises where that must not be.
    `base` and `vision_tower` are for checkpoints that hold only a part of a model.
    """
    projector = Path(mmproj).expanduser() if mmproj else None
    meant = BUNDLED if reference is None else aliases.expand(reference)
    parts = {"base": base, "vision_tower": vision_tower}
    if reference is None or meant == BUNDLED:
        bundled = _bundled(engine, projector)
        refuse_parts(bundled, **parts)
        return _checked_engine(bundled, engine)
    path = Path(meant).expanduser()
    wanted = hub_model(meant, engine, revision)
    if wanted is not None:
        from llava_cli.models.hub import fetch

        found = fetch(wanted, offline=offline, consent=consent, on_progress=on_progress)
        files = _local(found.path, reference, projector or found.mmproj, wanted.engine, parts)
    elif meant.strip() and _is_there(path):
        files = _local(path, reference, projector, engine, parts)
    elif _is_pathlike(meant):
        raise ModelNotFound(
            f"no such model file or folder: {meant}",
            "check the path; without -m the bundled model answers",
        )
    else:
        raise unknown(meant)
    refuse_parts(files, **parts)
    use = aliases.lookup(meant)
    if use is not None and files.prompt_format is None:
        files = replace(files, prompt_format=use.alias.prompt_format)
    return _checked_engine(files, engine)


def hub_model(reference: str, engine: str, revision: str | None = None) -> HubModel | None:
    """What a package's alias or a Hub id names; None where the reference is neither."""
    from llava_cli.models.hub import HubModel

    use = aliases.lookup(reference)
    if use is not None:
        alias, wanted = use.alias, use.revision or revision
        repo, engine = alias.repository(engine, use.quant)
        if engine == "gguf":
            text, mmproj = alias.text, alias.mmproj
            return HubModel(repo, wanted, use.quant, engine, text, mmproj, asked=reference)
        return HubModel(repo, wanted, use.quant, engine, asked=reference)
    match = _HUB_ID.fullmatch(reference)
    if match is None or _is_there(Path(reference).expanduser()) or _is_pathlike(reference):
        return None
    return HubModel(match["repo"], match["revision"] or revision, match["quant"], engine)


def unknown(reference: str) -> ModelNotFound:
    """A reference that means nothing, with what was probably meant."""
    known = [*aliases.package_aliases(), *aliases.user_aliases(), BUNDLED]
    near = difflib.get_close_matches(reference, known, n=1)
    meant = f"did you mean {near[0]}?" if near else "`llava alias` lists the names that are known"
    return ModelNotFound(
        f"unknown model {reference!r}: no such file, folder, alias or Hub id (org/name)", meant
    )


def _local(
    path: Path,
    reference: str,
    mmproj: Path | None,
    engine: str,
    parts: Mapping[str, str | None],
) -> ModelFiles:
    """A file or folder on this disk."""
    if path.is_file():
        return resolve_gguf(path, mmproj, reference)
    if not os.access(path, os.R_OK | os.X_OK):
        raise ModelInvalid(f"cannot read the folder {path}", "check its permissions")
    run = path / "model"
    if not is_hf_folder(path) and is_hf_folder(run):
        path = run
    if is_partial_or_original(path) and engine != "gguf" and mmproj is None:
        return resolve_original(path, reference, **parts)
    if is_hf_folder(path) and engine != "gguf" and mmproj is None:
        return resolve_hf(path, reference)
    files = resolve_gguf_folder(path, mmproj, reference)
    if files is not None:
        return files
    if is_partial_or_original(path):
        return resolve_original(path, reference, **parts)
    if is_hf_folder(path):
        return resolve_hf(path, reference)
    raise ModelInvalid(
        f"{path} holds no model: neither config.json nor a text .gguf",
        "give a folder of LLaVA's, original or llava-hf, a training run or a .gguf file",
    )


def _bundled(engine: str, mmproj: Path | None) -> ModelFiles:
    """The package's own model."""
    folder = _BUNDLED_FOLDER / "model"
    if engine == "torch" and is_hf_folder(folder):
        return resolve_hf(folder, BUNDLED, bundled=True)
    texts = sorted(_BUNDLED_FOLDER.glob(f"{BUNDLED}-*.gguf"))
    if engine != "torch" and texts:
        return resolve_gguf(texts[0], mmproj, BUNDLED, bundled=True)
    raise ModelNotFound(
        "this installation of llava-cli has no bundled model",
        "install it again, or name a model with -m",
    )


def _checked_engine(files: ModelFiles, engine: str) -> ModelFiles:
    """The files suit the engine that was asked for."""
    if engine == "torch" and files.format == "gguf":
        raise ModelInvalid(
            f"{files.reference} is a GGUF model, which the PyTorch engine cannot read",
            "use --engine gguf, or give the model's llava-hf folder",
        )
    if engine == "gguf" and files.format != "gguf":
        raise ModelInvalid(
            f"{files.reference} holds no GGUF files: the GGUF engine cannot read it",
            f"convert it: llava convert {files.reference} -o DIR; or use --engine torch",
        )
    return files


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long, a NUL byte, no permission to look
        return False


def _is_pathlike(reference: str) -> bool:
    """Meant as a path, though nothing is there."""
    return (
        reference.startswith(("/", "./", "../", "~", ".\\", "..\\"))
        or reference.endswith((".gguf", "/"))
        or reference.count("/") > 1
    )
