"""The models on this disk: what the Hub's cache holds, whether it is whole, and taking it away."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llava_cli.errors import ModelInvalid, ModelNotFound
from llava_cli.models import cache
from llava_cli.models.choose import is_projector, quant_of
from llava_cli.models.folders import read_json
from llava_cli.models.hub import HubModel
from llava_cli.models.listing import quiet_hub

Status = Literal["ok", "damaged", "missing", "unknown"]


@dataclass(frozen=True)
class Held:
    """One repository in the cache."""

    repo: str
    format: Literal["gguf", "safetensors", "other"]
    looks: bool
    """Whether it is a model for pictures, as far as its files tell."""
    quants: tuple[str, ...]
    """Of GGUF text models."""
    bytes: int
    files: int
    path: Path
    modified: float
    """Seconds since 1970."""
    unfinished_bytes: int
    """Of downloads that were interrupted."""


@dataclass(frozen=True)
class Checked:
    """One file and whether it is what its checksum says."""

    name: str
    bytes: int
    status: Status


def held() -> list[Held]:
    """Every model repository in the cache, by name."""
    models = []
    for repo in _scan().repos:
        if repo.repo_type == "model":
            models.append(_held(repo))
    finished = {model.repo for model in models}
    for folder in cache.root().glob("models--*"):
        name = folder.name.removeprefix("models--").replace("--", "/")
        if name not in finished and (size := _unfinished(folder)):
            models.append(Held(name, "other", False, (), 0, 0, folder, 0.0, size))
    return sorted(models, key=lambda model: model.repo.lower())


def verify(model: HubModel) -> Iterator[Checked]:
    """Read every file of a model in the cache and compare checksums, which are their names there.

    Raises ModelNotFound where the model is not in the cache.
    """
    folder = cache.snapshot(model.repo, model.revision)
    if folder is None:
        raise ModelNotFound(f"model {model} is not on this disk", f"llava pull {model}")
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            continue
        name = path.relative_to(folder).as_posix()
        if not path.is_file():
            yield Checked(name, 0, "missing")
        else:
            yield Checked(name, path.stat().st_size, _status(path))


def remove(model: HubModel) -> int:
    """Take a model out of the cache (of a quantisation, only its file); the bytes that frees."""
    found = next((r for r in _scan().repos if r.repo_id == model.repo), None)
    folder = cache.repo_folder(model.repo)
    if found is None and not folder.is_dir():
        raise ModelNotFound(f"model {model} is not on this disk", "`llava ls` shows what is")
    with cache.writing(model.repo):
        if model.quant is not None:
            return _remove_quant(model, found)
        freed = _unfinished(folder) + (found.size_on_disk if found else 0)
        if found is not None:
            _scan().delete_revisions(*(r.commit_hash for r in found.revisions)).execute()
        _remove_tree(folder)
    return int(freed)


def license_of(folder: Path) -> str | None:
    """The licence that a snapshot's own card names."""
    from huggingface_hub import ModelCard

    readme = folder / "README.md"
    if not readme.is_file():
        return None
    try:
        with quiet_hub():  # a card without data is no event
            data = ModelCard(readme.read_text(encoding="utf-8"), ignore_metadata_errors=True).data
    except (ValueError, OSError, TypeError, AttributeError):
        return None
    name = getattr(data, "license_name", None) or getattr(data, "license", None)
    return str(name) if name else None


def _scan() -> Any:
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound
    from huggingface_hub.utils._cache_manager import HFCacheInfo

    try:
        return scan_cache_dir(cache.root())
    except (CacheNotFound, NotADirectoryError):
        return HFCacheInfo(
            size_on_disk=0, repos=frozenset(), incomplete_files=frozenset(), warnings=[]
        )


def _held(repo: Any) -> Held:
    names = {file.file_name: file for rev in repo.revisions for file in rev.files}
    ggufs = [name for name in names if name.lower().endswith(".gguf")]
    texts = [name for name in ggufs if not is_projector(name)]
    weights = any(name.endswith(".safetensors") for name in names)
    looks = len(texts) < len(ggufs)
    if not ggufs and weights and "config.json" in names:
        looks = _has_tower(names["config.json"].file_path)
    return Held(
        repo=repo.repo_id,
        format="gguf" if ggufs else "safetensors" if weights else "other",
        looks=looks,
        quants=tuple(sorted({quant_of(name) or name for name in texts})),
        bytes=repo.size_on_disk,
        files=len(names),
        path=repo.repo_path,
        modified=repo.last_modified,
        unfinished_bytes=_unfinished(repo.repo_path),
    )


def _has_tower(config: Path) -> bool:
    try:
        return "vision_config" in read_json(config)
    except ModelInvalid:
        return False


def _unfinished(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("blobs/*.incomplete"))


def _status(path: Path) -> Status:
    """The blob behind a link is named by its checksum; a file without one cannot be judged."""
    # one step only: a blob may itself be a link, into a store that all models share
    expected = path.readlink().name if path.is_symlink() else ""
    if len(expected) not in (40, 64) or set(expected) - set("0123456789abcdef"):
        return "unknown"
    try:
        return "ok" if cache.checksum(path, expected) == expected else "damaged"
    except OSError:
        return "damaged"


def _remove_quant(model: HubModel, repo: Any) -> int:
    files = [
        file
        for revision in (repo.revisions if repo else ())
        for file in revision.files
        if (quant_of(file.file_name) or "").lower() == str(model.quant).lower()
        and file.file_name.lower().endswith(".gguf")
        and not is_projector(file.file_name)
    ]
    if not files:
        raise ModelNotFound(f"model {model} is not on this disk", "`llava ls` shows what is")
    strategy = _scan().delete_files(*files)
    strategy.execute()
    return int(strategy.expected_freed_size)


def _remove_tree(folder: Path) -> None:
    """What the client leaves of a repository: parts of downloads, and empty folders."""
    import shutil

    if folder.is_dir():
        shutil.rmtree(folder)
