"""`llava data pull`: LLaVA's published data sets, with their terms."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llava_cli.cli.groups import Command
from llava_cli.cli.options import common

if TYPE_CHECKING:
    from llava_train.samples.pull import Plan

_NEW = click.Path(path_type=Path, file_okay=False)
NAMES = ("llava-instruct-150k", "blip-558k", "mix665k", "cc3m-595k")


@click.command(
    "pull",
    cls=Command,
    examples=(
        ("llava data pull llava-instruct-150k", "LLaVA's instruction data, without pictures"),
        ("llava data pull blip-558k --pictures -o pretrain", "stage-1 data with its archive"),
    ),
)
@click.argument("name", type=click.Choice(NAMES))
@click.option("-o", "--out", type=_NEW, help="Default: a folder NAME here.")
@click.option("--pictures", is_flag=True, help="The archive of pictures too, where there is one.")
def pull(name: str, out: Path | None, pictures: bool) -> None:
    """Fetch one of LLaVA's data sets from the Hub, and say under which terms it stands."""
    from llava_cli.cli.models import hub_is_offline
    from llava_cli.terminal.documents import write_document
    from llava_cli.terminal.streams import write
    from llava_cli.terminal.transfer import TransferBar
    from llava_train.samples.card import write_card
    from llava_train.samples.pull import plan
    from llava_train.samples.pull import pull as fetch

    folder = out or Path(name)
    offline = common().offline or hub_is_offline()
    planned = plan(name, with_pictures=pictures, offline=offline)
    document = _document(name, planned)
    if not common().quiet:
        _say(name, planned)
    with TransferBar(planned.bytes, not common().quiet and not common().json) as bar:
        paths = fetch(planned, folder, lambda file, there: bar.update(file.name, there, file.size))
    names = {file.name: file.checksum for file in planned.files}
    write_card(folder / name, f"Published data: {name}", {**document, "files": names})
    if common().json:
        write_document({**document, "files": [str(path) for path in paths]})
    else:
        write("".join(f"{path}\n" for path in paths))


def _say(name: str, planned: Plan) -> None:
    """Before anything is fetched: how much it is, and under which terms."""
    from llava_cli.terminal.safe import one_line
    from llava_cli.terminal.streams import note
    from llava_cli.terminal.transfer import readable

    found, stated = planned.wanted, planned.listing.license
    size = readable(planned.bytes)
    note(f"{name}: {found.samples} samples from {found.repo}, {size} in {len(planned.files)} files")
    on_the_hub = f" (the Hub says: {one_line(stated)})" if stated else ""
    note(f"licence: {found.licence}{on_the_hub}; {found.terms}")
    if found.pictures_from:
        note(f"pictures are fetched elsewhere: {found.pictures_from}")


def _document(name: str, planned: Plan) -> dict[str, Any]:
    found = planned.wanted
    return {
        "name": name,
        "repo": found.repo,
        "commit": planned.listing.commit,
        "samples": found.samples,
        "bytes": planned.bytes,
        "licence": found.licence,
        "licence_on_the_hub": planned.listing.license,
        "terms": found.terms,
    }
