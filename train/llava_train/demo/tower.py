"""Pretraining the demo's vision tower on dense labels, then discarding the heads.

LLaVA takes a pretrained CLIP tower as given. At this size a contrastive tower learns what is in a
picture but hardly where, so this one learns what every patch shows: the shape, colour, size and
cell of the object that covers it, whether the object's centre lies in it, and whether that object
is the odd one. The labels sit on the layer before the last, the one that LLaVA reads; the last
layer's class token learns picture-level labels (count, background, whether anything is odd).

Legend: B pictures, N patches, D tower width.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from llava_train import parallel
from llava_train.parallel import Group
from llava_train.scenes import BACKGROUNDS, CELLS, COLORS, SHAPES, SIZES, Scene, sample_scene

IMAGE_PX, PATCH_PX = 160, 16
GRID = IMAGE_PX // PATCH_PX
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
PAD_COLOR = (122, 116, 104)
"""CLIP's mean colour, as LLaVA 1.5 pads a picture to a square."""

PATCH_HEADS = {
    "shape": len(SHAPES) + 1,
    "color": len(COLORS) + 1,
    "size": len(SIZES) + 1,
    "cell": len(CELLS) + 1,
    "centre": 2,
    "odd": 2,
}
HEAD_WEIGHTS = {"odd": 6.0, "shape": 2.5}
"""How heavy a patch label is; 1.0 where none is given. Which object is the odd one is learnt last:
it takes a look at all of them, and few patches show it. Shapes of half a patch are what is taken
for something else when all other labels are right."""
PICTURE_HEADS = {"count": 10, "background": len(BACKGROUNDS), "any odd": 2}


@dataclass(frozen=True)
class TowerSettings:
    """Every number of the tower's pretraining."""

    scenes: int = 64_000
    seed: int = 11
    steps: int = 3_300
    batch_size: int = 128
    lr: float = 1.5e-3
    warmup_steps: int = 100
    save_every: int = 100
    weight_decay: float = 0.02
    hidden: int = 192
    layers: int = 6
    heads: int = 6
    ffn: int = 768


def tower_config(settings: TowerSettings) -> CLIPVisionConfig:
    """A small CLIP tower."""
    config = CLIPVisionConfig(
        hidden_size=settings.hidden,
        intermediate_size=settings.ffn,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        image_size=IMAGE_PX,
        patch_size=PATCH_PX,
        projection_dim=settings.hidden,
    )
    config._attn_implementation = "eager"  # on a CPU twice as quick as sdpa at 101 tokens
    return config


def to_square(picture: Image.Image) -> tuple[np.ndarray, float, float, float]:
    """Pad to a square and resize, as `pixels.prepare` does; and where the picture went.

    Returns uint8 (IMAGE_PX, IMAGE_PX, 3), then scale and offsets (pixels) of the picture in it.
    """
    from llava_cli.pixels import PixelConfig, prepare

    config = PixelConfig(size=IMAGE_PX, mean=MEAN, std=STD, aspect="pad", pad_color=PAD_COLOR)
    side = max(picture.size)
    scale = IMAGE_PX / side
    left, top = (side - picture.width) // 2 * scale, (side - picture.height) // 2 * scale
    return prepare(picture, config), scale, left, top


def patch_labels(scene: Scene, scale: float, left: float, top: float) -> np.ndarray:
    """uint8 (N, len(PATCH_HEADS)): what each patch shows; 0 is background."""
    labels = np.zeros((GRID, GRID, len(PATCH_HEADS)), np.uint8)
    for i, o in enumerate(scene.objects):
        x1, x2 = (v * scene.width * scale + left for v in (o.box[0], o.box[2]))
        y1, y2 = (v * scene.height * scale + top for v in (o.box[1], o.box[3]))
        row, column = (min(GRID - 1, int((a + b) / 2 / PATCH_PX)) for a, b in ((y1, y2), (x1, x2)))
        kind = (
            1 + SHAPES.index(o.shape),
            1 + list(COLORS).index(o.color),
            1 + SIZES.index(o.size),
            1 + o.cell,
            0,
            int(i == scene.odd),
        )
        inside_x = [c for c in range(GRID) if x1 <= (c + 0.5) * PATCH_PX <= x2]
        inside_y = [r for r in range(GRID) if y1 <= (r + 0.5) * PATCH_PX <= y2]
        for r in inside_y:
            for c in inside_x:
                if not labels[r, c, 4]:
                    labels[r, c] = kind
        labels[row, column] = (*kind[:4], 1, kind[5])
    return labels.reshape(GRID * GRID, -1)


def _draw_range(job: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    seed, start, stop = job
    pixels, patches, pictures = [], [], []
    for index in range(start, stop):
        scene, picture = sample_scene(seed, index)
        square, scale, left, top = to_square(picture)
        pixels.append(square)
        patches.append(patch_labels(scene, scale, left, top))
        pictures.append(
            (
                len(scene.objects),
                list(BACKGROUNDS).index(scene.background),
                int(scene.odd is not None),
            )
        )
    return np.stack(pixels), np.stack(patches), np.array(pictures, np.uint8)


def draw(out: Path, settings: TowerSettings, workers: int) -> None:
    """Write pixels.npy (S, P, P, 3), patches.npy (S, N, heads), pictures.npy (S, heads), once."""
    if (out / "done").exists():
        return
    out.mkdir(parents=True, exist_ok=True)
    n, chunk = settings.scenes, 500
    shapes = {
        "pixels": (n, IMAGE_PX, IMAGE_PX, 3),
        "patches": (n, GRID * GRID, len(PATCH_HEADS)),
        "pictures": (n, len(PICTURE_HEADS)),
    }
    arrays = {
        k: np.lib.format.open_memmap(out / f"{k}.npy", "w+", np.uint8, v) for k, v in shapes.items()
    }
    jobs = [(settings.seed, i, min(i + chunk, n)) for i in range(0, n, chunk)]
    with ProcessPoolExecutor(workers) as pool:
        for (_, start, stop), parts in zip(jobs, pool.map(_draw_range, jobs), strict=True):
            for array, part in zip(arrays.values(), parts, strict=True):
                array[start:stop] = part
    (out / "done").touch()


class LabelledTower(nn.Module):
    """The tower with throw-away heads."""

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__()
        self.tower = CLIPVisionModel(config)
        self.patch_heads = nn.Linear(config.hidden_size, sum(PATCH_HEADS.values()))
        self.picture_heads = nn.Linear(config.hidden_size, sum(PICTURE_HEADS.values()))
        self.norm = nn.LayerNorm(config.hidden_size)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """pixels (B, 3, P, P) to patch logits (B, N, .) and picture logits (B, .)."""
        out = self.tower(pixels, output_hidden_states=True)
        patches = self.norm(out.hidden_states[-2][:, 1:])
        return self.patch_heads(patches), self.picture_heads(out.pooler_output)


def object_weights(cells: Tensor) -> Tensor:
    """Weights (B, N) that let a small object count nearly as much as a large one.

    cells (B, N): the label of the object that covers a patch. Most mistakes are made about shapes
    that one or two patches show.
    """
    ones = torch.ones_like(cells, dtype=torch.float32)
    covered = ones.new_zeros(len(cells), PATCH_HEADS["cell"]).scatter_add_(1, cells, ones)
    return (6 / covered.gather(1, cells)).clamp(0.5, 6.0)


def loss_of(
    model: LabelledTower, pixels: Tensor, patches: Tensor, pictures: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted cross entropies; and the accuracies, patch ones over patches that show an object.

    pixels (B, 3, P, P), patches (B, N, heads), pictures (B, heads).
    """
    patch_logits, picture_logits = model(pixels)
    shown = patches[..., 0] > 0
    weight = torch.where(shown, object_weights(patches[..., 3].long()), 0.15)
    loss = patch_logits.new_zeros((), dtype=torch.float32)
    accuracy: dict[str, Tensor] = {}
    for i, (name, logits) in enumerate(
        zip(PATCH_HEADS, patch_logits.split(list(PATCH_HEADS.values()), -1), strict=True)
    ):
        target = patches[..., i].long()
        each = nn.functional.cross_entropy(
            logits.float().flatten(0, 1), target.flatten(), reduction="none"
        )
        loss = loss + HEAD_WEIGHTS.get(name, 1.0) * (each * weight.flatten()).sum() / weight.sum()
        accuracy[name] = (logits.argmax(-1) == target)[shown].float().mean()
    for i, (name, logits) in enumerate(
        zip(PICTURE_HEADS, picture_logits.split(list(PICTURE_HEADS.values()), -1), strict=True)
    ):
        target = pictures[:, i].long()
        loss = loss + 0.2 * nn.functional.cross_entropy(logits.float(), target)
        accuracy[name] = (logits.argmax(-1) == target).float().mean()
    return loss, accuracy


def batches(
    data: Path, settings: TowerSettings, first: int, total: int, group: Group
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """This process's share of the batches from step `first` on: jittered, mirrored, shuffled.

    A picture that is not square comes twice in an epoch: its objects are the smallest.
    """
    arrays = [np.load(data / f"{k}.npy", mmap_mode="r") for k in ("pixels", "patches", "pictures")]
    every = np.concatenate([np.arange(settings.scenes), np.flatnonzero(padded(arrays[0]))])
    per_epoch = len(every) // settings.batch_size
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    for step in range(first, total):
        epoch, place = divmod(step, per_epoch)
        order = np.random.default_rng([settings.seed, epoch]).permutation(every)
        start = place * settings.batch_size
        rows = np.sort(order[start : start + settings.batch_size])[group.rank :: group.size]
        rng = np.random.default_rng([settings.seed, epoch, place, group.rank])
        pixels, patches, pictures = (torch.from_numpy(a[rows]) for a in arrays)
        x = pixels.permute(0, 3, 1, 2).float() / 255
        if rng.random() < 0.5:  # every shape is its own mirror image
            x, patches = x.flip(-1), mirror_labels(patches)
        gain = torch.from_numpy(rng.uniform(0.94, 1.03, (len(rows), 3, 1, 1)).astype(np.float32))
        yield ((x * gain).clamp(0, 1) - mean) / std, patches, pictures


def padded(pixels: np.ndarray) -> np.ndarray:
    """Which pictures (S, P, P, 3) have a border above or at the left: bool (S,)."""
    middle = IMAGE_PX // 2
    edges = np.stack([pixels[:, 0, middle], pixels[:, middle, 0]])
    return np.asarray((edges == np.array(PAD_COLOR, np.uint8)).all(-1).any(0))


def mirror_labels(patches: Tensor) -> Tensor:
    """Patch labels (B, N, heads) of the picture mirrored left to right."""
    grid = patches.unflatten(1, (GRID, GRID)).flip(2).flatten(1, 2).clone()
    names = torch.tensor(
        [0, *(1 + 3 * (i // 3) + 2 - i % 3 for i in range(len(CELLS)))], dtype=torch.uint8
    )
    grid[..., 3] = names[grid[..., 3].long()]
    return grid


def train_tower(out: Path, settings: TowerSettings) -> None:
    """Train on what `draw` wrote to `out`/data and save a CLIPVisionModel folder; resumes by step.

    Started by torchrun, every process takes a share of each batch.
    """
    torch.manual_seed(settings.seed)
    model = LabelledTower(tower_config(settings))
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(
        parameters, lr=settings.lr, weight_decay=settings.weight_decay, betas=(0.9, 0.98)
    )
    state_file = out / "state.pt"
    first = 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    with parallel.group("cpu") as group, (out / "log.jsonl").open("a") as log:
        gradients = parallel.GradientSum(parameters, torch.float32)
        steps = batches(out / "data", settings, first, settings.steps, group)
        for step, batch in enumerate(steps, start=first + 1):
            began = time.perf_counter()
            for options in optimizer.param_groups:
                options["lr"] = settings.lr * learning_rate(settings, step - 1)
            with torch.autocast("cpu", torch.bfloat16):
                loss, accuracy = loss_of(model, *batch)
            (loss / group.size).backward()
            gradients.add()
            gradients.finish(group)
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if not group.first:
                continue
            row = {"step": step, "loss": loss.item(), **{k: v.item() for k, v in accuracy.items()}}
            row["seconds"] = time.perf_counter() - began
            log.write(json.dumps({k: round(v, 4) for k, v in row.items()}) + "\n")
            log.flush()
            if step % settings.save_every == 0 or step == settings.steps:
                parts = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                aside = state_file.with_suffix(".tmp")
                torch.save({**parts, "step": step}, aside)
                aside.replace(state_file)
        if group.first:
            model.tower.save_pretrained(out / "model")


def learning_rate(settings: TowerSettings, step: int) -> float:
    """The share of the highest rate at a step: a linear rise, then a cosine down to a fiftieth."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / settings.steps))
