"""`llava train`: stages, adapters and tasks of a LLaVA by a recipe, and a run as a page."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llava_cli.cli.groups import Command, LazyGroup
from llava_cli.cli.options import common
from llava_cli.errors import MissingDependency

if TYPE_CHECKING:
    from llava_train.loop import Result
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


_DEFAULTS = {
    "stage1": "llava-1.5-stage1",
    "stage2": "llava-1.5-stage2",
    "lora": "llava-1.5-lora",
    "scienceqa": "llava-1-scienceqa",
}
"""The recipe of each command where none is named."""


def _options(command: Callable[..., None]) -> Callable[..., None]:
    """What both stages take."""
    folder = click.Path(path_type=Path)
    data = click.Path(path_type=Path, exists=True)
    declared = (
        click.option("--model", metavar="REF", help="Language model, or a whole LLaVA."),
        click.option("--from", "from_run", metavar="RUN", help="A run, or a whole LLaVA."),
        click.option(
            "--vision-tower", metavar="REF", help="CLIP or SigLIP that looks at pictures."
        ),
        click.option(
            "--data",
            multiple=True,
            required=True,
            type=data,
            help="LLaVA or ShareGPT samples as JSON, JSON Lines, parquet, a webdataset tar or a "
            "folder of these; or a TOML file that lists such files with weights.",
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
        click.option("--tensorboard", is_flag=True, help="Write curves for TensorBoard too."),
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


@train.command(
    "lora",
    cls=Command,
    examples=(
        (
            "llava train lora --from llava-1.5-7b --data mine.json --images pictures -o tuned",
            "LLaVA-1.5's LoRA recipe",
        ),
        ("llava train lora … --set adapter=dora --set lora_rank=32", "DoRA, smaller"),
    ),
)
@_options
def lora(**given: Any) -> None:
    """Train the connector and low-rank updates of the language model; the result is merged."""
    _run("lora", given)


@train.command(
    "scienceqa",
    cls=Command,
    examples=(
        (
            "llava train scienceqa --from align --data scienceqa.json --images pictures -o mine",
            "LLaVA's recipe",
        ),
        ("llava train scienceqa … --order answer-first", "the answer before its reasoning"),
    ),
)
@_options
@click.option(
    "--order",
    type=click.Choice(("data", "answer-first", "reasoning-first")),
    default="data",
    show_default=True,
    help="Answer and reasoning in the answers.",
)
def scienceqa(order: str, **given: Any) -> None:
    """Train on ScienceQA, as `llava data convert` writes it."""
    given["settings"] = (*given["settings"], f"answer_order={order}")
    _run("scienceqa", given)


@train.command(
    "report",
    cls=Command,
    examples=(("llava train report mine", "writes mine/report.html"),),
)
@click.argument("run", type=click.Path(path_type=Path, exists=True, file_okay=False))
def report(run: Path) -> None:
    """Write a run as one HTML page: curves, pictures held out with their answers, the recipe."""
    from llava_cli.terminal.documents import write_document
    from llava_cli.terminal.safe import one_line
    from llava_cli.terminal.streams import write
    from llava_train import report as pages

    page = pages.write(run)
    if common().json:
        write_document({"page": str(page)})
    else:
        write(one_line(str(page)) + "\n")


def _run(stage: str, given: dict[str, Any]) -> None:
    """One training: read the recipe, then plan, preview or train."""
    for package in ("torch", "transformers"):  # asked here, so that absence is one clear line
        if find_spec(package) is None:
            raise MissingDependency(f"training needs {package}", "pip install 'llava-cli[train]'")
    recipe = _recipe(stage, given.pop("recipe"), given.pop("settings"))
    plan, preview = given.pop("plan"), given.pop("preview_labels")
    curves = given.pop("tensorboard")
    if plan or preview:
        _look(recipe, given, preview if not plan else None)
        return
    from llava_cli.cli.train_progress import watching
    from llava_train.loop import train as run
    from llava_train.parallel import leave

    with watching(given["output"] if curves else None) as watch:
        result = run(recipe, watch=watch, **given)
    if os.environ.get("RANK", "0") == "0":
        _report(result)
    leave()


def _recipe(stage: str, name: str | None, settings: tuple[str, ...]) -> Recipe:
    """The named recipe with its settings; one for stage 2 serves `lora` and `scienceqa` too."""
    from llava_cli.errors import UsageError
    from llava_train import recipe as recipes

    recipe = recipes.load(name or _DEFAULTS[stage])
    if recipe.stage == "stage2" and stage in ("lora", "scienceqa"):
        adapter = "lora" if stage == "lora" and recipe.adapter == "none" else recipe.adapter
        settings = (f"adapter={adapter}", f"stage={stage}", *settings)
    recipe = recipes.override(recipe, settings)
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
    from llava_cli.terminal.streams import takes_escapes, write
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
        colour = takes_escapes(sys.stdout)
        for line in lines:
            text = one_line(line)
            bears = colour and preview is not None and line.startswith(plan.BEARS)
            write((f"\x1b[32m{text}\x1b[0m" if bears else text) + "\n")


def _report(result: Result) -> None:
    """What became of the run; the exit code of one that SIGTERM stopped."""
    from llava_cli.terminal.documents import write_document
    from llava_cli.terminal.safe import one_line
    from llava_cli.terminal.streams import note, write

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
