"""`llava data pull`: LLaVA's published data sets, with their terms."""

from __future__ import annotations

from pathlib import Path

import click

from llava_cli.cli.groups import Command
from llava_cli.cli.options import common

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
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Default: a folder NAME here.")
@click.option("--pictures", is_flag=True, help="The archive of pictures too, where there is one.")
def pull(name: str, out: Path | None, pictures: bool) -> None:
    """Fetch one of LLaVA's data sets from the Hub, and say under which terms it stands."""
    from llava_cli.cli.models import hub_is_offline
    from llava_cli.terminal.documents import write_document
    from llava_cli.terminal.streams import note, write
    from llava_train.samples.pull import DATA_SETS, pull

    found = DATA_SETS[name]
    folder = out or Path(name)
    if not common().quiet:
        note(f"{name}: {found.samples} samples from {found.repo}")
        note(f"licence: {found.licence}; {found.terms}")
        if found.pictures_from:
            note(f"pictures are fetched elsewhere: {found.pictures_from}")
    offline = common().offline or hub_is_offline()
    paths = pull(name, folder, with_pictures=pictures, offline=offline)
    if common().json:
        write_document(
            {
                "name": name,
                "repo": found.repo,
                "files": [str(path) for path in paths],
                "licence": found.licence,
                "terms": found.terms,
            }
        )
    else:
        write("".join(f"{path}\n" for path in paths))
