"""`llava ls`, `llava show`, `llava rm`: the models on this disk."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from llava_cli.cli.groups import Command
from llava_cli.cli.options import common, completed_by

if TYPE_CHECKING:
    from llava_cli.models.hub import Plan
    from llava_cli.models.inventory import Held


@click.command(
    "ls",
    cls=Command,
    examples=(
        ("llava ls", "models for pictures on this disk"),
        ("llava ls --all --json", "everything in the Hub's cache, for programs"),
    ),
)
@click.option("--all", "everything", is_flag=True, help="Models that see no pictures, too.")
def ls(everything: bool) -> None:
    """List the models on this disk.

    They lie in the Hub's own cache, which other programs share; HF_HOME says where.
    """
    from llava_cli.models import cache, inventory
    from llava_cli.terminal.documents import write_document

    models = [m for m in inventory.held() if everything or m.looks or m.unfinished_bytes]
    if common().json:
        listed = [_held_document(model) for model in models]
        write_document(
            {"cache": str(cache.root()), "bytes": sum(m.bytes for m in models), "models": listed}
        )
        return
    _print_held(models)


def _held_document(model: Held) -> dict[str, Any]:
    return {
        "name": model.repo,
        "format": model.format,
        "looks": model.looks,
        "quants": list(model.quants),
        "bytes": model.bytes,
        "files": model.files,
        "path": str(model.path),
        "modified": model.modified,
        "unfinished_bytes": model.unfinished_bytes,
    }


def _print_held(models: list[Held]) -> None:
    from llava_cli.models import BUNDLED
    from llava_cli.terminal.safe import one_line
    from llava_cli.terminal.streams import note, write
    from llava_cli.terminal.transfer import readable

    width = max((len(model.repo) for model in models), default=0)
    for model in models:
        kind = " ".join(model.quants) or model.format
        unfinished = f"  {readable(model.unfinished_bytes)} of an unfinished pull"
        more = unfinished if model.unfinished_bytes else ""
        line = f"{model.repo:<{width}}  {readable(model.bytes):>9}  {kind}{more}"
        write(one_line(line.rstrip()) + "\n")
    if not models and not common().quiet:
        note(f"none; {BUNDLED} comes with llava, and `llava alias` names others to pull")


@click.command(
    "show",
    cls=Command,
    examples=(
        ("llava show llava-1.5-7b", "licence, sizes, vision tower, image tokens, …"),
        ("llava show ./my-model.gguf --json", "the same of a file, for programs"),
    ),
)
@click.argument("reference", metavar="REF", required=False, shell_complete=completed_by("models"))
@click.option("--mmproj", metavar="FILE", help="The projector of a .gguf model.")
@click.option(
    "--engine",
    type=click.Choice(["auto", "gguf", "torch"]),
    default="auto",
    help="Of which engine's files, where there are both.",
)
def show(reference: str | None, mmproj: str | None, engine: str) -> None:
    """Tell what a model is, from its own files.

    Of a model that is not on this disk, what the Hub says about it.
    """
    from llava_cli import models
    from llava_cli.models import BUNDLED, aliases
    from llava_cli.models.hub import find
    from llava_cli.models.resolve import hub_model
    from llava_cli.terminal.documents import write_document

    reference = reference or BUNDLED
    wanted = hub_model(aliases.expand(reference), engine) if reference != BUNDLED else None
    use = aliases.lookup(aliases.expand(reference))
    known = use.alias.license if use is not None else None
    if wanted is not None and find(wanted) is None:
        document = _remote(reference, wanted, known)
    else:
        files = models.resolve(reference, mmproj=mmproj, engine=engine, offline=True)
        document = _local(reference, files, known)
    if common().json:
        write_document(document)
    else:
        _print_facts(document)


def _remote(reference: str, wanted: Any, known: str | None) -> dict[str, Any]:
    from llava_cli.cli.models import hub_is_offline
    from llava_cli.errors import ModelNotFound
    from llava_cli.models import hub

    if common().offline or hub_is_offline():
        raise ModelNotFound(
            f"model {wanted} is not on this disk, and llava is offline", "leave out --offline"
        )
    plan: Plan = hub.plan(wanted)
    return {
        "model": reference,
        "on_disk": False,
        "repo": plan.model.repo,
        "license": plan.listing.license or known,
        "gated": plan.listing.gated,
        "bytes": plan.bytes,
        "files": [{"name": file.name, "bytes": file.size} for file in plan.files],
    }


def _local(reference: str, files: Any, known: str | None) -> dict[str, Any]:
    from llava_cli.models.facts import facts
    from llava_cli.models.inventory import license_of

    found = facts(files)
    folder = files.path if files.path.is_dir() else files.path.parent
    named = found.license or license_of(folder) or known
    return {
        "model": reference,
        "on_disk": True,
        "path": str(files.path),
        "mmproj": str(files.mmproj) if files.mmproj else None,
        "format": found.format,
        "license": named or ("apache-2.0" if files.bundled else None),
        "architecture": found.architecture,
        "parameters": found.parameters,
        "quantization": found.quantization,
        "vision_tower": asdict(found.tower),
        "image_tokens": found.image_tokens,
        "prompt_format": found.prompt_format,
        "context": found.context,
        "memory_bytes": found.memory_bytes,
        "bytes": found.bytes,
        "files": [{"name": name, "bytes": size} for name, size in found.files],
    }


def _print_facts(document: dict[str, Any]) -> None:
    from llava_cli.models.facts import Tower
    from llava_cli.terminal.safe import one_line
    from llava_cli.terminal.streams import write
    from llava_cli.terminal.transfer import readable

    if not document["on_disk"]:
        write(f"not on this disk: llava pull {one_line(document['model'])}\n")
    for key, value in document.items():
        if key in ("on_disk", "files") or value is None:
            continue
        if key in ("bytes", "memory_bytes"):
            value = readable(value)
        elif key == "vision_tower":
            value = Tower(**value)
        elif key == "parameters":
            value = f"{value / 1e9:.2f} billion" if value > 1e8 else f"{value / 1e6:.2f} million"
        write(one_line(f"{key.removesuffix('_bytes').replace('_', ' '):<13} {value}") + "\n")
    for file in document["files"]:
        write(one_line(f"  {readable(file['bytes']):>9}  {file['name']}") + "\n")


@click.command(
    "rm",
    cls=Command,
    examples=(
        ("llava rm org/name", "asks before it removes"),
        ("llava rm org/name:Q8_0 -y", "one quantisation only, without asking"),
    ),
)
@click.argument("reference", metavar="REF", shell_complete=completed_by("models"))
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option(
    "--engine",
    type=click.Choice(["auto", "gguf", "torch"]),
    default="auto",
    help="Which files of an alias, where there are both.",
)
def rm(reference: str, yes: bool, engine: str) -> None:
    """Remove a model from this disk.

    Other programs that use the Hub's cache lose it, too. Files and folders of your own are left
    alone.
    """
    from llava_cli.cli.pull import wanted_model
    from llava_cli.errors import ModelNotFound, UsageError
    from llava_cli.models import cache, inventory
    from llava_cli.terminal.documents import write_document
    from llava_cli.terminal.streams import is_terminal, note
    from llava_cli.terminal.transfer import readable

    model = wanted_model(reference, None, engine)
    if not cache.repo_folder(model.repo).is_dir():
        raise ModelNotFound(f"model {model} is not on this disk", "`llava ls` shows what is")
    if not yes:
        if common().no_input or common().json or not is_terminal(sys.stdin):
            raise UsageError(f"nobody can be asked whether to remove {model}", "give -y")
        if not click.confirm(f"Remove {model} from {cache.root()}?", err=True):
            note("nothing was removed")
            return
    freed = inventory.remove(model)
    if common().json:
        write_document({"removed": str(model), "repo": model.repo, "freed_bytes": freed})
    elif not common().quiet:
        note(f"removed {model}: {readable(freed)} freed")
