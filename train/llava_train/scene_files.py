"""Writing a data set of scenes: pictures, what is true of them, and LLaVA's training files.

OUT/images/000000.png ...   the pictures
OUT/scenes.jsonl            one scene a line: objects with box, background, the odd one
OUT/captions.json           COCO's layout: images, annotations (5 captions each), instances (boxes)
OUT/stage1.json             LLaVA stage 1: a request for a brief description, one caption
OUT/instruct.json           LLaVA JSON in three kinds: conversation, detail, reasoning
OUT/card.json, card.md      seed and counts
and, where asked for, what `scene_exports` writes.

Pictures are named relative to OUT, which is what `--images` of `llava train` takes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np

from llava_train.samples.card import write_card
from llava_train.samples.files import whole
from llava_train.scene_exports import write_exports
from llava_train.scene_phrases import BRIEF
from llava_train.scene_questions import conversation, detail, reasoning
from llava_train.scene_text import captions
from llava_train.scene_wording import Turn, as_typed
from llava_train.scenes import Scene, sample_scene

ImageFormat = Literal["png", "jpg"]
TEXT_STREAM = 1
"""Distinguishes the random numbers of a scene's text from those of its picture."""


def scene_name(index: int, image_format: ImageFormat) -> str:
    """The picture's path inside the data set."""
    return f"images/{index:06d}.{image_format}"


def write_scenes(
    out: Path,
    *,
    n: int,
    seed: int,
    size: int | None = None,
    image_format: ImageFormat = "png",
    workers: int = 1,
    also: Sequence[str] = (),
) -> None:
    """Write `n` scenes of the world `seed`; the same bytes for any number of workers.

    size: the longer side in pixels, None for a mixture. Pictures that are already there are drawn
    again. Files appear whole or not at all. also: names of `scene_exports.EXPORTS`.
    """
    (out / "images").mkdir(parents=True, exist_ok=True)
    draw = partial(_draw, out, seed, size, image_format)
    if workers > 1:
        # spawn: a fork would copy the locks of whatever threads the caller runs
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            scenes = list(pool.map(draw, range(n), chunksize=64))
    else:
        scenes = [draw(i) for i in range(n)]
    names = [scene_name(i, image_format) for i in range(n)]
    lines = (
        json.dumps({"image": name, **scene.record()})
        for name, scene in zip(names, scenes, strict=True)
    )
    with whole(out / "scenes.jsonl") as file:
        file.write("\n".join([*lines, ""]))
    both = coco(scenes, names)
    _write_json(out / "captions.json", both)
    rngs = [np.random.default_rng([seed, i, TEXT_STREAM]) for i in range(n)]
    _write_json(
        out / "stage1.json", [stage1_sample(*row) for row in zip(scenes, names, rngs, strict=True)]
    )
    instruct = [s for row in zip(scenes, names, rngs, strict=True) for s in instruct_samples(*row)]
    _write_json(out / "instruct.json", instruct)
    write_exports(out, scenes, names, both, seed, also)
    content = {
        "seed": seed,
        "source": "drawn by the program, not taken from anywhere",
        "pictures": {"count": n, "format": image_format, "longer_side": size or "varies"},
        "samples": {"stage1": n, "instruct": len(instruct), "captions": len(both["annotations"])},
        "also": sorted(also),
    }
    write_card(out, "Drawn scenes and what is in them", content, folder=True, dated=False)


def _draw(
    folder: Path, seed: int, size: int | None, image_format: ImageFormat, index: int
) -> Scene:
    scene, picture = sample_scene(seed, index, size)
    target = folder / scene_name(index, image_format)
    aside = target.with_suffix(".part")
    if image_format == "jpg":
        picture.save(aside, "JPEG", quality=90)
    else:
        picture.save(aside, "PNG", compress_level=1)
    os.replace(aside, target)
    return scene


def _write_json(path: Path, value: Any) -> None:
    with whole(path) as file:
        file.write(json.dumps(value, indent=1) + "\n")


def coco(scenes: list[Scene], names: list[str]) -> dict[str, Any]:
    """COCO's captions file, with COCO's instances (boxes in pixels: x, y, width, height) beside."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    instances: list[dict[str, Any]] = []
    categories = sorted({o.shape for s in scenes for o in s.objects})
    for i, (scene, name) in enumerate(zip(scenes, names, strict=True)):
        images.append({"id": i, "file_name": name, "width": scene.width, "height": scene.height})
        for text in captions(scene):
            annotations.append({"id": len(annotations), "image_id": i, "caption": text})
        for o in scene.objects:
            x1, y1, x2, y2 = (
                v * s for v, s in zip(o.box, (scene.width, scene.height) * 2, strict=True)
            )
            row = {
                "id": len(instances),
                "image_id": i,
                "category_id": 1 + categories.index(o.shape),
            }
            box = [round(v, 2) for v in (x1, y1, x2 - x1, y2 - y1)]
            instances.append(
                {
                    **row,
                    "bbox": box,
                    "area": round(box[2] * box[3], 2),
                    "iscrowd": 0,
                    "color": o.color,
                }
            )
    rows = [{"id": 1 + i, "name": c} for i, c in enumerate(categories)]
    return {
        "images": images,
        "annotations": annotations,
        "instances": instances,
        "categories": rows,
    }


def sample(name: str, kind: str, turns: list[tuple[str, str]]) -> dict[str, Any]:
    """One sample of LLaVA's JSON; the picture is asked about from the first turn on."""
    rows: list[dict[str, str]] = []
    for i, (question, answer) in enumerate(turns):
        rows.append({"from": "human", "value": f"<image>\n{question}" if i == 0 else question})
        rows.append({"from": "gpt", "value": answer})
    head = {"id": f"{Path(name).stem}-{kind}", "image": name, "kind": kind}
    return {**head, "conversations": rows}


def stage1_sample(scene: Scene, name: str, rng: np.random.Generator) -> dict[str, Any]:
    """A request for a brief description and one of the captions."""
    options = captions(scene)
    turns = [(BRIEF[int(rng.integers(len(BRIEF)))], options[int(rng.integers(len(options)))])]
    return sample(name, "caption", turns)


def instruct_samples(scene: Scene, name: str, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """The three kinds: conversation, detail, reasoning."""
    kinds: dict[str, list[Turn]] = {
        "conversation": conversation(scene, rng),
        "detail": [detail(scene, rng)],
        "reasoning": reasoning(scene, rng),
    }
    for kind, turns in kinds.items():
        yield sample(name, kind, [(as_typed(t.question, rng), t.answer) for t in turns])
