"""`python -m llava_train.demo -o DIR` makes the bundled model; `... evaluate` scores a model."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click


@click.group(invoke_without_command=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder of the build.")
@click.option("--workers", type=int, default=os.cpu_count(), help="Processes that draw and train.")
@click.pass_context
def main(context: click.Context, output: Path | None, workers: int) -> None:
    """Make the bundled model from nothing: some hours on two CPU cores, resumable."""
    if context.invoked_subcommand:
        return
    if output is None:
        raise click.UsageError("Give -o DIR, or the command evaluate.")
    from llava_train.demo.build import BuildSettings, build

    build(output, BuildSettings(), workers, lambda text: click.echo(text, err=True))


@main.command("evaluate")
@click.option("-m", "--model", help="A model reference; the bundled model if not given.")
@click.option("--engine", type=click.Choice(["auto", "gguf", "torch"]), default="auto")
@click.option("--n", type=int, default=1000, show_default=True, help="Scenes.")
@click.option("--seed", type=int, default=None, help="World of the scenes; never one of training.")
@click.option("--workers", type=int, default=os.cpu_count())
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def evaluate_command(
    model: str | None, engine: str, n: int, seed: int | None, workers: int, as_json: bool
) -> None:
    """Score a model on scenes it has never seen."""
    from llava_train.demo.evaluate import SEED, evaluate, table

    measures = evaluate(model, engine, n, SEED if seed is None else seed, workers)
    if as_json:
        rows = {
            m.name: {"percent": m.percent, "interval": m.interval, "n": m.total} for m in measures
        }
        click.echo(json.dumps(rows))
    else:
        click.echo(table(measures))


if __name__ == "__main__":
    main()
