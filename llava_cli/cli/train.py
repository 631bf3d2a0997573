"""`llava train`: stage 1 and stage 2 of a LLaVA, by a recipe."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llava_cli.cli.groups import Command, LazyGroup
from llava_cli.cli.options import common
from llava_cli.errors import MissingDependency

if TYPE_CHECKING:
    from llava_train.loop import Result, StepLog
    from llava_train.recipe import Recipe

STOPPED = 143
"""Exit code after SIGTERM, as shells count it."""


@click.group(
    "train",
    cls=LazyGroup,
    examples=(
        (
            "llava train stage1 --model vicuna-7b --vision-tower clip-vit-large-patch14-336 "
            "--data pairs.json --images pictures --output align",
            "the connector learns to caption",
        ),
        (
            "llava train stage2 --from align --data instruct.json --images pictures --output mine",
            "connector and language model learn to converse",
        ),
    ),
)
def train() -> None:
    """Train a model: first its connector (stage 1), then with the language model (stage 2)."""


def _options(command: Callable[..., None]) -> Callable[..., None]:
    """What both stages take."""
    folder = click.Path(path_type=Path)
    file = click.Path(path_type=Path, exists=True, dir_okay=False)
    declared = (
        click.option("--model", metavar="REF", help="Language model, or a whole LLaVA."),
        click.option("--from", "from_run", metavar="RUN", help="A run, or a whole LLaVA."),
        click.option("--vision-tower", metavar="REF", help="CLIP that looks at the pictures."),
        click.option(
            "--data", multiple=True, required=True, type=file, help="LLaVA JSON or JSON Lines."
        ),
        click.option("--images", type=folder, help="Folder that the data's pictures lie in."),
        click.option("--output", "-o", required=True, type=folder, help="Folder of the run."),
        click.option("--recipe", metavar="NAME|FILE", help="Every number of the run."),
        click.option(
            "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change a number of it."
        ),
        click.option(
            "--resume",
            default="auto",
            show_default=True,
            metavar="auto|never|STEP",
            help="Go on from a checkpoint.",
        ),
        click.option(
            "--max-steps",
            type=click.IntRange(min=1),
            help="Stop early, schedule unchanged; the run can be continued.",
        ),
        click.option("--plan", is_flag=True, help="Say what would be trained, and stop."),
        click.option(
            "--preview-labels",
            type=click.IntRange(min=1),
            metavar="N",
            help="Show which tokens of N samples bear loss, and stop.",
        ),
        click.option("--device", metavar="cpu|cuda|cuda:N", help="Default: a GPU if there is one."),
    )
    for option in reversed(declared):
        command = option(command)
    return command


@train.command(
    "stage1",
    cls=Command,
    examples=(
        (
            "llava train stage1 --model LM --vision-tower CLIP --data pairs.json --images pictures "
            "--output align",
            "LLaVA-1.5's recipe",
        ),
        ("llava train stage1 … --recipe demo-stage1 --set lr=1e-3", "another recipe, one change"),
    ),
)
@_options
def stage1(**given: Any) -> None:
    """Train the connector: pictures and captions, in the format `plain`."""
    _run("stage1", given)


@train.command(
    "stage2",
    cls=Command,
    examples=(
        (
            "llava train stage2 --from align --data instruct.json --images pictures --output mine",
            "LLaVA-1.5's recipe",
        ),
        ("llava train stage2 … --preview-labels 3", "which tokens bear loss"),
        ("llava train stage2 … --plan", "what would be trained, and how long it takes"),
    ),
)
@_options
def stage2(**given: Any) -> None:
    """Train connector and language model on conversations about pictures."""
    _run("stage2", given)


def _run(stage: str, given: dict[str, Any]) -> None:
    """One stage: read the recipe, then plan, preview or train."""
    for package in ("torch", "transformers"):  # asked here, so that absence is one clear line
        if find_spec(package) is None:
            raise MissingDependency(f"training needs {package}", "pip install 'llava-cli[train]'")
    recipe = _recipe(stage, given.pop("recipe"), given.pop("settings"))
    plan, preview = given.pop("plan"), given.pop("preview_labels")
    if plan or preview:
        _look(recipe, given, preview if not plan else None)
        return
    from llava_train.loop import train as run

    result = run(recipe, note=_note, on_step=_progress(), **given)
    _report(result)


def _recipe(stage: str, name: str | None, settings: tuple[str, ...]) -> Recipe:
    from llava_cli.errors import UsageError
    from llava_train import recipe as recipes

    recipe = recipes.override(recipes.load(name or f"llava-1.5-{stage}"), settings)
    if recipe.stage != stage:
        raise UsageError(
            f"the recipe {recipe.name} is for {recipe.stage}",
            f"use llava train {recipe.stage}, or a recipe for {stage}",
        )
    return recipe


def _look(recipe: Recipe, given: dict[str, Any], preview: int | None) -> None:
    """What would be trained, without training."""
    from llava_cli.terminal.documents import write_document
    from llava_cli.terminal.safe import one_line
    from llava_cli.terminal.streams import write
    from llava_train import plan

    places = {key: given[key] for key in ("model", "from_run", "vision_tower", "data", "images")}
    if preview is None:
        document = plan.plan(recipe, **places, device=given["device"], max_steps=given["max_steps"])
        lines = plan.as_text(document)
    else:
        document = plan.preview(recipe, preview, **places)
        lines = plan.preview_as_text(document)
    if common().json:
        write_document(document)
    else:
        write("".join(one_line(line) + "\n" for line in lines))


def _note(text: str) -> None:
    from llava_cli.terminal.streams import note

    if not common().quiet:
        note(text)


def _progress() -> Callable[[StepLog], None]:
    """A line on stderr: in place on a terminal, every tenth step (or all with -v) elsewhere."""
    import sys

    from llava_cli.terminal.streams import takes_escapes

    moving, quiet, every = takes_escapes(sys.stderr), common().quiet, common().verbose

    def show(line: StepLog) -> None:
        if quiet or not (moving or every or line.step % 10 == 0):
            return
        text = (
            f"step {line.step}  loss {line.loss:.4f}  lr {line.lr:.2e}  "
            f"{line.tokens / line.seconds:,.0f} positions/s"
        )
        sys.stderr.write(f"\r\x1b[K{text}" if moving and not every else text + "\n")
        sys.stderr.flush()

    return show


def _report(result: Result) -> None:
    """What became of the run; the exit code of one that SIGTERM stopped."""
    import sys

    from llava_cli.terminal.documents import write_document
    from llava_cli.terminal.safe import one_line
    from llava_cli.terminal.streams import note, takes_escapes, write

    if takes_escapes(sys.stderr) and not common().quiet and result.loss is not None:
        sys.stderr.write("\n")
    if common().json:
        write_document(
            {
                "output": str(result.output),
                "model": None if result.interrupted else str(result.model),
                "steps": result.steps,
                "total_steps": result.total,
                "loss": result.loss,
                "interrupted": result.interrupted,
            }
        )
    elif not result.interrupted:
        write(one_line(str(result.model)) + "\n")
    if result.interrupted:
        note(f"stopped after step {result.steps} of {result.total}; the same command goes on")
        click.get_current_context().exit(STOPPED)
