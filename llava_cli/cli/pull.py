"""`llava pull` and `llava verify`: models from the Hub onto this disk, whole to the last byte."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from llava_cli.cli.groups import Command
from llava_cli.cli.options import common, completed_by

if TYPE_CHECKING:
    from llava_cli.models.hub import Found, HubModel, Plan


@click.command(
    "pull",
    cls=Command,
    examples=(
        ("llava pull llava-1.5-7b", "a model that llava knows by name"),
        ("llava pull org/name --quant Q8_0", "a GGUF model, in the quantisation named"),
        ("llava pull org/name@v1.0 --dry-run", "what that would fetch, and how much"),
    ),
)
@click.argument("reference", metavar="REF", shell_complete=completed_by("models"))
@click.option("--quant", metavar="Q", help="Quantisation of a GGUF model: Q4_K_M, Q8_0, …")
@click.option(
    "--engine",
    type=click.Choice(["auto", "gguf", "torch"]),
    default="auto",
    help="For which engine, where there are files for both.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be fetched; fetch nothing.")
def pull(reference: str, quant: str | None, engine: str, dry_run: bool) -> None:
    """Fetch a model from the Hub, or complete and update it.

    REF is an alias (see llava alias) or a Hub id: org/name[@revision][:quant]. An interrupted pull
    goes on where it stopped; files that are there already are checked, damaged ones replaced.
    """
    from llava_cli.cli import fetching
    from llava_cli.cli.models import hub_is_offline
    from llava_cli.errors import ModelNotFound
    from llava_cli.models import hub
    from llava_cli.terminal.documents import write_document
    from llava_cli.terminal.streams import note, status
    from llava_cli.terminal.transfer import readable

    model = wanted_model(reference, quant, engine)
    if common().offline or hub_is_offline():
        raise ModelNotFound(f"llava is offline and cannot fetch {model}", "leave out --offline")
    loud = not common().quiet and not common().json
    with status(f"asking the Hub for {model} …", loud):
        plan = hub.plan(model, check=True)
    found = None
    if not dry_run:
        with fetching.Fetching(common()) as bar:
            if plan.missing:
                bar.start(plan)
            found = hub.download(plan, bar.progress)
    if common().json:
        write_document(_document(plan, found))
    elif dry_run:
        _print_plan(plan)
    elif loud:
        done = f"fetched {readable(sum(f.size for f in plan.missing))}" if plan.missing else "whole"
        note(f"{model}: {done}, {readable(plan.bytes)} on this disk")


def wanted_model(reference: str, quant: str | None, engine: str) -> HubModel:
    """The Hub model that a reference names, or why it names none."""
    from dataclasses import replace

    from llava_cli.errors import UsageError
    from llava_cli.models import BUNDLED, aliases
    from llava_cli.models.resolve import hub_model, unknown

    if aliases.expand(reference) == BUNDLED:
        raise UsageError(f"{BUNDLED} comes with llava", "it needs no pull, and cannot be removed")
    if quant is not None and engine == "auto":
        engine = "gguf"
    model = hub_model(aliases.expand(reference), engine)
    if model is None:
        from pathlib import Path

        if reference.strip() and Path(reference).expanduser().exists():
            raise UsageError(
                f"{reference} is a file or folder of this disk, not of the Hub's cache",
                "name a model of the Hub: org/name, or an alias",
            )
        raise unknown(reference)
    if quant is None:
        return model
    if model.quant not in (None, quant):
        raise UsageError(f"{reference} and --quant {quant} name two quantisations", "name one")
    asked = f"{model.asked}:{quant}" if model.asked else ""
    return replace(model, quant=quant, asked=asked)


def _print_plan(plan: Plan) -> None:
    from llava_cli.terminal.safe import one_line
    from llava_cli.terminal.streams import write
    from llava_cli.terminal.transfer import readable

    for file in plan.files:
        state = "fetch" if file in plan.missing else "there"
        write(f"{state}  {readable(file.size):>9}  {one_line(file.name)}\n")


def _document(plan: Plan, found: Found | None) -> dict[str, Any]:
    files = [
        {
            "name": file.name,
            "bytes": file.size,
            "checksum": file.checksum,
            "fetched": file in plan.missing and found is not None,
        }
        for file in plan.files
    ]
    return {
        "model": str(plan.model),
        "repo": plan.model.repo,
        "revision": plan.listing.commit,
        "license": plan.listing.license,
        "path": str(found.path) if found else None,
        "mmproj": str(found.mmproj) if found and found.mmproj else None,
        "bytes": plan.bytes,
        "fetched_bytes": sum(file.size for file in plan.missing) if found else 0,
        "missing_bytes": 0 if found else plan.missing_bytes,
        "files": files,
    }


@click.command(
    "verify",
    cls=Command,
    examples=(("llava verify llava-1.5-7b", "read every byte and compare checksums"),),
)
@click.argument("reference", metavar="REF", shell_complete=completed_by("models"))
def verify(reference: str) -> None:
    """Check a model's files against their checksums.

    Uses no network. A file of this disk without a checksum is checked as far as its header goes.
    """
    from llava_cli.errors import ModelInvalid
    from llava_cli.terminal.documents import write_document
    from llava_cli.terminal.safe import one_line
    from llava_cli.terminal.streams import write

    files = list(_checked(reference))
    bad = [file for file in files if file["status"] in ("damaged", "missing")]
    if common().json:
        write_document({"model": reference, "ok": not bad, "files": files})
    else:
        for file in files:
            write(one_line(f"{file['status']:<8} {file['name']}") + "\n")
    if bad:
        raise ModelInvalid(
            f"{reference}: {len(bad)} of {len(files)} files damaged: {bad[0]['name']}",
            f"llava pull {reference} fetches what is damaged again",
        )


def _checked(reference: str) -> list[dict[str, Any]]:
    from llava_cli import models
    from llava_cli.models import aliases, inventory
    from llava_cli.models.resolve import hub_model

    hub = hub_model(aliases.expand(reference), "auto")
    if hub is not None:
        found = inventory.verify(hub)
        return [{"name": f.name, "bytes": f.bytes, "status": f.status} for f in found]
    files = models.resolve(reference, offline=True)
    paths = [path for path in (files.path, files.mmproj) if path is not None]
    if files.format != "gguf":
        paths = sorted(files.path.glob("*.safetensors"))
    return [{"name": p.name, "bytes": p.stat().st_size, "status": "readable"} for p in paths]
