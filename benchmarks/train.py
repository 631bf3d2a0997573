"""Compare the training loop with transformers' Trainer: the same model, data, dtype and batch.

Example: python benchmarks/train.py --size toy --steps 6

Prints samples a second of both and their ratio, for stage 1 without and with the feature cache and
for stage 2. Weights and data are random: nothing is downloaded, and speed does not depend on them.
Filling the feature cache, once a run, is not counted. With a CUDA GPU, `--size 7b` measures
LLaVA-1.5-7B's shape, ours alone, as a share of the GPU's dense bfloat16 peak (MFU); what is
computed again to save memory is not counted.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

# Run as a script, gguf.py beside this file would stand in for the package `gguf`.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import torch
from PIL import Image as PIL

from llava_cli.pixels import PixelConfig
from llava_train import connectors, flops
from llava_train.assemble import Parts, freeze
from llava_train.dataset import EncodedData, Plan
from llava_train.loader import Loader
from llava_train.loading import feature_cache
from llava_train.parallel import Group
from llava_train.recipe import Recipe
from llava_train.sources import Picture
from llava_train.stepping import Rounded, Stepper, build_optimizer, speed_up

WARM = 2
"""Steps that are not counted."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a model and of its data."""

    vision: dict[str, int]
    text: dict[str, int]
    batch: int
    micro: int
    texts: tuple[int, int]
    """Shortest and longest text of stage 2; stage 1 has the shorter half."""


SHAPES = {
    "toy": Shape(
        {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3,
         "num_attention_heads": 2, "image_size": 56, "patch_size": 14},
        {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2,
         "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 512},
        8, 4, (12, 60),
    ),
    "small": Shape(
        {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 12,
         "num_attention_heads": 6, "image_size": 224, "patch_size": 16},
        {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8,
         "num_attention_heads": 8, "num_key_value_heads": 8, "vocab_size": 32000},
        8, 4, (15, 120),
    ),
    "7b": Shape(
        {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
         "num_attention_heads": 16, "image_size": 336, "patch_size": 14},
        {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
         "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32064},
        32, 16, (30, 500),
    ),
}  # fmt: skip


def build(shape: Shape, recipe: Recipe, device: torch.device) -> Parts:
    """A LLaVA of random weights, made on the device itself."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig
    from transformers import LlavaForConditionalGeneration as Llava

    torch.manual_seed(0)
    vision = CLIPVisionConfig(**shape.vision)  # type: ignore[arg-type]
    text = LlamaConfig(**shape.text, max_position_embeddings=4096)  # type: ignore[arg-type]
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=5, vision_feature_layer=-2,
        vision_feature_select_strategy="default", projector_hidden_act="gelu",
    )  # fmt: skip
    config._attn_implementation = "sdpa"
    frozen = torch.float32 if recipe.train_language_model else getattr(torch, recipe.frozen_dtype)
    before = torch.get_default_dtype()
    torch.set_default_dtype(frozen)
    try:
        with device:
            model: Any = Llava(config)
    finally:
        torch.set_default_dtype(before)
    model.model.multi_modal_projector = connectors.build("mlp2x_gelu", config).to(device)
    positions = (shape.vision["image_size"] // shape.vision["patch_size"]) ** 2
    tokenizer = SimpleNamespace(pad_token_id=0)
    pixels = PixelConfig(size=shape.vision["image_size"])
    parts = Parts(model, tokenizer, pixels, positions, "random")
    freeze(parts, recipe)
    return parts


def data(shape: Shape, recipe: Recipe, folder: Path, samples: int) -> EncodedData:
    """Random texts of many lengths, each behind a picture; stage 2 has some without."""
    rng = np.random.default_rng(0)
    side = shape.vision["image_size"]
    for number in range(min(samples, 64)):
        noise = PIL.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        noise.resize((side + 40, side), PIL.Resampling.BICUBIC).save(folder / f"{number}.jpg")
    positions = (side // shape.vision["patch_size"]) ** 2
    rows, loss, lengths = [], [], []
    images: list[tuple[Picture, ...]] = []
    low, high = shape.texts
    for number in range(samples):
        whole = recipe.train_language_model
        length = int(rng.integers(low, high if whole else (low + high) // 2 + 1))
        pictured = not whole or number % 8 != 7
        ids = rng.integers(6, shape.text["vocab_size"], length)
        ids = np.concatenate([[1], [5] if pictured else [], ids]).astype(np.int32)
        bears = np.zeros(len(ids), np.bool_)
        bears[-length // 2 if whole else -length :] = True
        rows.append(ids)
        loss.append(bears)
        lengths.append(len(ids) + (positions - 1) * pictured)
        images.append((Picture(folder / f"{number % 64}.jpg"),) if pictured else ())
    starts = np.cumsum([0, *map(len, rows)])
    return EncodedData(
        [str(i) for i in range(samples)], images, np.concatenate(rows), np.concatenate(loss),
        starts, np.array(lengths), np.ones(samples), positions, 5, 0, 0, "random",
    )  # fmt: skip


def ours(
    shape: Shape, recipe: Recipe, encoded: EncodedData, device: torch.device, work: Path
) -> tuple[list[float], Parts]:
    """Seconds of each counted step, waiting for data included."""
    parts = build(shape, recipe, device)
    speed_up(parts, recipe, device)
    group = Group(device=device)
    plan = Plan(encoded, recipe)
    cache = feature_cache(recipe, parts, encoded, work, group, lambda text: None)
    Rounded(parts, recipe)
    stepper = Stepper(parts, recipe, build_optimizer(parts, recipe), recipe.steps, group)
    batches = Loader(encoded, parts.pixels, recipe, cache).steps(
        plan.micro_batches, 0, recipe.steps
    )
    took = []
    began = time.perf_counter()
    for number, batch in enumerate(batches, 1):
        stepper.step(number, batch)
        now = time.perf_counter()
        took.append(now - began)
        began = now
    return took[WARM:], parts


def theirs(
    shape: Shape, recipe: Recipe, encoded: EncodedData, device: torch.device, work: Path
) -> list[float]:
    """The same with transformers' Trainer: its collation, accumulation, autocast and AdamW."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    parts = build(shape, recipe, device)
    loader = Loader(encoded, parts.pixels, recipe)
    order = [int(i) for step in range(recipe.steps) for i in Plan(encoded, recipe).batch(step)]

    def collate(rows: Sequence[int]) -> dict[str, Any]:
        batch = loader.batch(np.array(rows))
        lengths = torch.tensor([int(encoded.lengths[i]) for i in rows])
        mask = torch.arange(batch.ids.shape[1]) < lengths[:, None]
        found = {"input_ids": batch.ids, "labels": batch.labels, "attention_mask": mask.long()}
        return found | ({} if batch.pixels is None else {"pixel_values": batch.pixels})

    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *arguments: Any, **more: Any) -> None:
            ends.append(time.perf_counter())

    arguments = TrainingArguments(
        output_dir=str(work / "trainer"), per_device_train_batch_size=recipe.micro_batch,
        gradient_accumulation_steps=recipe.batch // recipe.micro_batch, max_steps=recipe.steps,
        learning_rate=recipe.lr, bf16=recipe.precision == "bfloat16", report_to=[],
        use_cpu=device.type == "cpu", remove_unused_columns=False, save_strategy="no",
        logging_strategy="no", disable_tqdm=True, dataloader_num_workers=recipe.workers,
        train_sampling_strategy="sequential",
    )  # fmt: skip
    trainer = Trainer(
        model=parts.model, args=arguments, train_dataset=order, data_collator=collate,
        callbacks=[Clock()],
    )  # fmt: skip
    began = time.perf_counter()
    trainer.train()
    return [b - a for a, b in zip([began, *ends], ends, strict=False)][WARM:]


def cases(shape: Shape, steps: int, precision: str) -> Iterator[tuple[str, Recipe]]:
    """What is measured, and the recipe of each."""
    stage1 = Recipe(
        stage="stage1", train_language_model=False, batch=shape.batch, micro_batch=shape.micro,
        steps=steps + WARM, grouping="length", precision=precision, workers=2, save_every=0,
        frozen_dtype="bfloat16" if precision == "bfloat16" and torch.cuda.is_available()
        else "float32",
    )  # fmt: skip
    yield "stage 1", stage1
    yield "stage 1, feature cache", replace(stage1, feature_cache=True)
    whole = replace(stage1, stage="stage2", train_language_model=True)
    if shape is SHAPES["7b"]:  # 108 GB of weights, gradients and moments leave little room
        whole = replace(whole, micro_batch=2, gradient_checkpointing=True)
    yield "stage 2", whole


def measure(size: str, steps: int, precision: str, alone: bool) -> Iterator[str]:
    """Lines of the report."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    threads = torch.get_num_threads()
    yield f"{size} on {name}, {threads} threads, {precision}, torch {torch.__version__}"
    shape = SHAPES[size]
    for label, recipe in cases(shape, steps, precision):
        with tempfile.TemporaryDirectory() as folder:
            encoded = data(shape, recipe, Path(folder), 8 * shape.batch)
            mine, parts = ours(shape, recipe, encoded, device, Path(folder))
            rate = recipe.batch / statistics.median(mine)
            peak = flops.peak(name)
            done = flops.of_samples(parts, encoded, recipe, range(len(encoded))) / len(encoded)
            share = ""
            if peak:
                share = f", MFU {100 * rate * done / peak:.1f} % of {peak / 1e12:.0f} TFLOP/s"
            del parts
            if alone or size == "7b":
                yield f"{label}: {rate:.2f} samples/s{share}"
                continue
            other = recipe.batch / statistics.median(
                theirs(shape, recipe, encoded, device, Path(folder))
            )
            ratio = f"Trainer {other:.2f}, ratio {rate / other:.2f}"
            yield f"{label}: {rate:.2f} samples/s{share}, {ratio}"


def main() -> None:
    """Read the options, print the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SHAPES, default="small")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--precision", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--alone", action="store_true", help="without transformers' Trainer")
    given = parser.parse_args()
    for line in measure(given.size, given.steps, given.precision, given.alone):
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
