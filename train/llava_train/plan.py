"""What a run would do, without doing it: counts, FLOPs, memory and time; labels to look at.

The FLOPs are those of matrix products, causal attention halved: forward, and backward as far as the
freeze map makes it go. Memory and time are estimates and say so.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from llava_cli.prompts import FORMATS
from llava_train.assemble import Parts, assemble
from llava_train.dataset import EncodedData, Plan, gather, rendered
from llava_train.flops import sample_flops
from llava_train.labels import Encoder
from llava_train.loading import load_data
from llava_train.recipe import MODULES, Recipe
from llava_train.scienceqa import in_order
from llava_train.tiling import grid_of, shapes_of

_SPEED = {"cuda": 0.4 * 989e12, "cpu": 25e9}
"""FLOP/s that are assumed: 40 % of an H100, and what one CPU core gives in bfloat16."""
BEARS = "  loss"
"""In front of a token that bears loss."""
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def plan(
    recipe: Recipe,
    *,
    model: str | Path | None,
    from_run: str | Path | None,
    vision_tower: str | Path | None,
    data: Sequence[str | Path],
    images: str | Path | None,
    device: str | None = None,
    max_steps: int | None = None,
) -> dict[str, Any]:
    """Everything that `--plan` prints."""
    parts = assemble(recipe, model=model, vision_tower=vision_tower, from_run=from_run)
    encoded = load_data(recipe, parts, data, images)
    order = Plan(encoded, recipe)
    steps = order.steps
    if max_steps is not None:
        steps = min(steps, max_steps)
    passes = steps * recipe.batch / order.samples_per_epoch
    pictures = sum(map(len, encoded.images))
    some = _some(encoded)
    flops = float(sum(sample_flops(parts, encoded, i).step(recipe, again=True) for i in some))
    flops *= passes * len(encoded) / len(some)
    where = device or _device()
    cores = 1 if where.startswith("cuda") else os.cpu_count() or 1
    speed = _SPEED["cuda" if where.startswith("cuda") else "cpu"] * cores
    return {
        "recipe": recipe.name,
        "stage": recipe.stage,
        "modules": {name: _counts(parts, name) for name in MODULES},
        "samples": len(encoded),
        "held_out": len(order.held_out),
        "pictures": pictures,
        "cut_samples": encoded.cut,
        "steps": steps,
        "epochs": round(passes, 4),
        "tokens_per_epoch": int(encoded.lengths.sum()),
        "answer_tokens_per_epoch": int(encoded.loss.sum()),
        "longest_sample": int(encoded.lengths.max()),
        "device": where,
        "estimates": {
            "flops": flops,
            "seconds": flops / speed,
            "memory_bytes": _memory(parts, recipe, int(encoded.lengths.max())),
        },
    }


def as_text(document: dict[str, Any]) -> Iterator[str]:
    """The plan as lines to read."""
    for name, counts in document["modules"].items():
        yield f"{name:<15} {counts['trained']:>15,} of {counts['parameters']:>15,} trained"
    yield (
        f"data            {document['samples']:,} samples, {document['pictures']:,} with a "
        f"picture, longest {document['longest_sample']:,}, {document['cut_samples']:,} cut"
    )
    yield (
        f"an epoch        {document['tokens_per_epoch']:,} positions, "
        f"{document['answer_tokens_per_epoch']:,} bear loss"
    )
    yield f"the run         {document['steps']:,} steps, {document['epochs']:g} epochs"
    guess = document["estimates"]
    yield (
        f"estimates       {guess['flops']:.3g} FLOP, {guess['memory_bytes'] / 1e9:.2f} GB, "
        f"{guess['seconds'] / 60:,.1f} minutes on {document['device']}"
    )


def preview(
    recipe: Recipe,
    count: int,
    *,
    model: str | Path | None,
    from_run: str | Path | None,
    vision_tower: str | Path | None,
    data: Sequence[str | Path],
    images: str | Path | None,
) -> dict[str, Any]:
    """The first samples, token for token."""
    parts = assemble(recipe, model=model, vision_tower=vision_tower, from_run=from_run)
    encoder = Encoder(
        parts.tokenizer, image_tokens=parts.image_tokens, max_length=recipe.max_length
    )
    samples = []
    form = FORMATS[recipe.prompt_format]
    folder = None if images is None else Path(images)
    found = gather([Path(path) for path in data], folder)
    grid = grid_of(parts.model.config)
    for sample in in_order(found.samples[:count], recipe.answer_order):
        shapes = shapes_of([sample], folder, recipe.workers)[0] if grid else ()
        taken = [grid.count(*shape) for shape in shapes] if grid else None
        encoded = encoder.encode(rendered(sample, form, recipe.image_place), sample.name, taken)
        tokens = [
            {"id": row.id, "text": row.text, "loss": row.loss, "repeat": row.repeat}
            for row in encoder.preview(encoded)
        ]
        answers = encoded.answer_tokens
        samples.append(
            {
                "sample": sample.name,
                "tokens": tokens,
                "length": len(encoded.ids),
                "answer_tokens": answers,
            }
        )
    return {"prompt_format": recipe.prompt_format, "samples": samples}


def preview_as_text(document: dict[str, Any]) -> Iterator[str]:
    """One line a token; those that bear loss are marked."""
    for sample in document["samples"]:
        borne = f"{sample['answer_tokens']} of {sample['length']} positions bear loss"
        yield f"{sample['sample']}: {borne}"
        for token in sample["tokens"]:
            times = f" x {token['repeat']}" if token["repeat"] > 1 else ""
            mark = BEARS if token["loss"] else " " * len(BEARS)
            yield f"{mark} {token['id']:>7}  {token['text']}{times}"


def _counts(parts: Parts, name: str) -> dict[str, int]:
    return {
        "parameters": sum(p.numel() for p in parts.members(name)),
        "trained": sum(p.numel() for _, p in parts.parameters(name)),
    }


def _some(encoded: EncodedData) -> range:
    """At most about 1000 samples, evenly from all."""
    return range(0, len(encoded), max(1, len(encoded) // 1000))


def _memory(parts: Parts, recipe: Recipe, longest: int) -> int:
    """Weights, gradients, two moments, and what a micro-batch's backward pass keeps."""
    total = 0
    for name in MODULES:
        counts = _counts(parts, name)
        frozen = counts["parameters"] - counts["trained"]
        each = 24 if recipe.exact_sums else 16
        total += counts["trained"] * each + frozen * _BYTES[recipe.frozen_dtype]
    text = parts.model.config.text_config
    kept = 24 if recipe.train_language_model else 17  # x hidden bytes, per position and layer
    layers = (
        math.isqrt(text.num_hidden_layers) + 1
        if recipe.gradient_checkpointing
        else (text.num_hidden_layers)
    )
    wide = 2 if recipe.precision == "float32" else 1
    return int(total + recipe.micro_batch * longest * text.hidden_size * layers * kept * wide)


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
