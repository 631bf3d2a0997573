"""`llava caption`: a caption for every picture of a folder, a list or a tar."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llava_cli.cli.groups import Command
from llava_cli.cli.options import common, model_options, sampling_from, sampling_options

if TYPE_CHECKING:
    from llava_cli.captioning.run import Job
    from llava_cli.captioning.wording import Template

EXAMPLES = (
    ("llava caption photos", "photos/a.txt for photos/a.jpg, and so on"),
    ("llava caption photos -r --preview 3", "look at three captions first; nothing is written"),
    ('llava caption photos --prompt "What is {stem}?"', "your own question"),
    ("llava caption photos --format imagefolder", "metadata.jsonl for 🤗 datasets"),
    ("llava caption photos --existing append --preset tags", "add to what is there"),
    ("llava caption photos --retry-failed", "only what failed last time"),
    ("find . -name '*.jpg' -print0 | llava caption -0", "a list of files"),
    ("llava caption photos --html report.html", "a page to look at the result"),
)
_FORMATS = ("txt", "caption", "json", "jsonl", "csv", "imagefolder", "webdataset", "kohya", "xmp")
_PRESETS = ("descriptive", "short", "tags", "sd-prompt", "alt-text", "product", "ocr")
_folder_or_file = click.Path(path_type=Path)


@click.command("caption", cls=Command, examples=EXAMPLES)
@click.argument("paths", nargs=-1, metavar="PATH...")
@click.option("-r", "--recursive", is_flag=True, help="Look into subfolders, too.")
@click.option("--include", multiple=True, metavar="GLOB", help="Only these names; repeatable.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Not these names; repeatable.")
@click.option("--from-file", metavar="FILE", help="Read paths from a list; - is standard input.")
@click.option("-0", "--null", "nul", is_flag=True, help="The list is separated by NUL bytes.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Caption at most N.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(_FORMATS),
    default="txt",
    show_default=True,
    help="Where captions go: a file beside each picture (txt, caption, xmp), or one for all.",
)
@click.option(
    "-o", "--out", type=_folder_or_file, help="Write there instead of beside the pictures."
)
@click.option(
    "--existing",
    type=click.Choice(["skip", "overwrite", "append", "prepend"]),
    default="skip",
    show_default=True,
    help="What to do with pictures that have a caption.",
)
@click.option("--preset", type=click.Choice(_PRESETS), help="A prompt for a purpose.")
@click.option(
    "-p",
    "--prompt",
    metavar="TEXT",
    help="Your own; {stem} {name} {dir} {caption} {exif.date} are filled in.",
)
@click.option("--prompt-file", type=_folder_or_file, help="Your own, from a file.")
@click.option("-s", "--system", metavar="TEXT", help="Replace the system message.")
@click.option("--prefill", metavar="TEXT", default="", help="Begin every caption with this text.")
@click.option("--prefix", metavar="TEXT", default="", help="Put in front; variables as in -p.")
@click.option("--suffix", metavar="TEXT", default="", help="Put behind; variables as in -p.")
@click.option("--trigger", metavar="WORD", default="", help="First word of every caption.")
@click.option(
    "--strip-lead-in", is_flag=True, help='Take "The image shows" and its like from the beginning.'
)
@click.option("--ban", multiple=True, metavar="WORDS", help="Take these out; repeatable.")
@click.option("--max-words", type=click.IntRange(min=1), metavar="N", help="Cut longer captions.")
@click.option(
    "--batch-size", default="auto", metavar="auto|N", help="Pictures that are answered together."
)
@click.option("--retry-failed", is_flag=True, help="Only pictures that failed last time.")
@click.option(
    "--on-error",
    type=click.Choice(["skip", "stop"]),
    default="skip",
    show_default=True,
    help="What to do when a picture fails.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be captioned; load no model.")
@click.option(
    "--preview", type=click.IntRange(min=1), metavar="N", help="Show N captions, write nothing."
)
@click.option("--html", type=_folder_or_file, metavar="FILE", help="Write a page of the result.")
@click.option(
    "--background",
    default="white",
    show_default=True,
    metavar="COLOUR",
    help="What transparent pixels are laid on.",
)
@sampling_options
@model_options
def caption(paths: tuple[str, ...], **options: Any) -> None:
    """Caption many pictures.

    PATH is a folder, a picture, a pattern or a webdataset tar. Captions are written one by one: a
    run that is stopped or killed goes on where it was when the same command is given again.
    """
    from llava_cli.captioning.keepers import keeper_of, output_of
    from llava_cli.cli import captioning
    from llava_cli.cli.models import ModelChoice

    job = _job(paths, options)
    choice = ModelChoice.from_options(options)
    output = output_of(options["format_"], job.sources.root, options["out"])
    rehearsal = options["dry_run"] or options["preview"] is not None
    if rehearsal and options["html"]:
        raise click.UsageError("--html needs captions: leave out --dry-run and --preview")
    keeper = keeper_of(output, rehearsal=rehearsal)
    session = captioning.Session(job, keeper, choice, common())
    if options["dry_run"]:
        session.dry_run()
    elif options["preview"] is not None:
        session.preview()
    else:
        session.run(stop_at_failure=options["on_error"] == "stop", report=options["html"])


def _job(paths: tuple[str, ...], options: dict[str, Any]) -> Job:
    """What is asked, checked before anything is looked at."""
    from llava_cli.captioning.run import Job
    from llava_cli.captioning.sources import Sources
    from llava_cli.captioning.wording import Finish, Template
    from llava_cli.decode import background_rgb

    background_rgb(options["background"])
    list_file = options["from_file"]
    if list_file is None and options["nul"]:
        list_file = "-"
    if not paths and list_file is None:
        raise click.UsageError("no pictures were named: give a folder, or a list with --from-file")
    sources = Sources(
        paths,
        recursive=options["recursive"],
        include=options["include"],
        exclude=options["exclude"],
        list_file=list_file,
        nul=options["nul"],
    )
    sources.check()
    for name in ("include", "exclude", "ban"):
        if any(not text.strip() for text in options[name]):
            raise click.UsageError(f"--{name} needs a text")
    return Job(
        sources=sources,
        prompt=_prompt(options),
        sampling=sampling_from(options),
        finish=Finish(
            prefix=Template(options["prefix"]),
            suffix=Template(options["suffix"]),
            trigger=options["trigger"].strip(),
            strip_lead_in=options["strip_lead_in"],
            ban=options["ban"],
            max_words=options["max_words"],
        ),
        existing=options["existing"],
        system=options["system"],
        prefill=options["prefill"],
        background=options["background"],
        # Previews are read as they come: one by one, in order.
        batch_size=1 if options["preview"] else _batch_size(options["batch_size"]),
        limit=options["preview"] or options["limit"],
        only_failed=options["retry_failed"],
    )


def _prompt(options: dict[str, Any]) -> Template:
    """The one prompt that was asked for, as a template."""
    from llava_cli.captioning.presets import DEFAULT, PRESETS
    from llava_cli.captioning.wording import Template
    from llava_cli.errors import UsageError

    given = [name for name in ("preset", "prompt", "prompt_file") if options[name] is not None]
    if len(given) > 1:
        raise click.UsageError("--preset, --prompt and --prompt-file exclude each other")
    text = options["prompt"]
    if options["prompt_file"] is not None:
        path = options["prompt_file"]
        try:
            text = path.read_text(encoding="utf-8-sig").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "is not UTF-8"
            raise UsageError(f"{path}: {reason}", "give a text file with the prompt") from error
    if text is None:
        text = PRESETS[options["preset"] or DEFAULT].prompt
    if not text.strip():
        raise click.UsageError("the prompt is empty")
    return Template(text)


def _batch_size(text: str) -> int | None:
    if text == "auto":
        return None
    if text.isdecimal() and 1 <= int(text) <= 1024:
        return int(text)
    raise click.UsageError(f"--batch-size {text}: give auto or a number of 1 to 1024")
