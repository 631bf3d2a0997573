"""The drawn world in the files of other data sets, so that their tools and ours can be tried on it.

coco       OUT/coco_captions.json, OUT/coco_instances.json: COCO's two files
vqa        OUT/v2_OpenEnded_mscoco_scenes_questions.json, OUT/v2_mscoco_scenes_annotations.json
pope       OUT/coco_pope_{random,popular,adversarial}.json: is an object there?
scienceqa  OUT/scienceqa/problems.json, pid_splits.json and SPLIT/ID/image.png

Every answer is true. No downloads, and nothing of those data sets but their layout.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llava_train.samples.files import whole, write_json
from llava_train.samples.writing import line
from llava_train.scene_questions import short_questions
from llava_train.scene_text import a, capital, unusual_reason
from llava_train.scene_wording import pick
from llava_train.scenes import COLORS, SHAPES, Scene

EXPORTS = ("coco", "vqa", "pope", "scienceqa")
_STREAM = 2
"""Distinguishes these random numbers from those of pictures and of training text."""
_INFO = {"description": "drawn scenes", "version": "1.0"}
_ANSWERS = 10
"""Annotators of a question in VQA; here they all say the same."""
_ANSWER_TYPES = {"presence": "yes/no", "count": "number"}
_SPLITS = ("train", "train", "train", "val", "test")
_LECTURES = {
    "color": "Color is a property that can be seen. Things of one shape may differ in color.",
    "shape": "A shape is told by its outline: a triangle has three corners, a circle has none.",
    "count": "To count things, go through them one by one and give each the next number.",
    "odd": "To find the odd one out, look for what all the others have in common.",
}
_CHOICES = 4


def write_exports(
    out: Path,
    scenes: Sequence[Scene],
    names: Sequence[str],
    both: dict[str, Any],
    seed: int,
    wanted: Sequence[str],
) -> None:
    """The chosen exports. names: paths of the pictures in `out`; both: captions.json's content."""
    if "coco" in wanted:
        write_json(out / "coco_captions.json", _coco(both, both["annotations"]))
        boxes = _coco(both, both["instances"])
        categories = [{**row, "supercategory": "shape"} for row in both["categories"]]
        write_json(out / "coco_instances.json", {**boxes, "categories": categories})
    if "vqa" in wanted:
        questions, annotations = _vqa(scenes, names, seed)
        write_json(out / "v2_OpenEnded_mscoco_scenes_questions.json", questions)
        write_json(out / "v2_mscoco_scenes_annotations.json", annotations)
    if "pope" in wanted:
        for split, rows in _pope(scenes, names, seed).items():
            with whole(out / f"coco_pope_{split}.json") as file:
                file.writelines(line(row) + "\n" for row in rows)
    if "scienceqa" in wanted:
        _write_scienceqa(out, scenes, names, seed)


def _coco(both: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """One of COCO's files; annotations count from 1, because COCO's own scorer takes 0 for none."""
    return {
        "info": _INFO,
        "licenses": [],
        "images": both["images"],
        "annotations": [{**row, "id": row["id"] + 1} for row in rows],
    }


def _vqa(
    scenes: Sequence[Scene], names: Sequence[str], seed: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """VQA v2's questions and annotations; pictures are named by their path in place of a number."""
    questions: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for i, (scene, name) in enumerate(zip(scenes, names, strict=True)):
        for turn in short_questions(scene, np.random.default_rng([seed, i, _STREAM])):
            ids = {"image_id": name, "question_id": len(questions)}
            questions.append({**ids, "question": turn.question})
            said = {"answer": turn.answer, "answer_confidence": "yes"}
            annotations.append(
                {
                    **ids,
                    "question_type": turn.topic,
                    "answer_type": _ANSWER_TYPES.get(turn.topic, "other"),
                    "multiple_choice_answer": turn.answer,
                    "answers": [{**said, "answer_id": n + 1} for n in range(_ANSWERS)],
                }
            )
    head = {"info": _INFO, "license": {}, "data_type": "scenes", "data_subtype": "scenes"}
    return (
        {**head, "task_type": "Open-Ended", "questions": questions},
        {**head, "annotations": annotations},
    )


def _pope(
    scenes: Sequence[Scene], names: Sequence[str], seed: int
) -> dict[str, list[dict[str, Any]]]:
    """As many true as false questions a picture; what is absent is drawn in POPE's three ways.

    random: any object; popular: one of those that most pictures have; adversarial: one whose
    colour or shape is in the picture.
    """
    counts = Counter(name for scene in scenes for name in {_named(o) for o in scene.objects})
    every = [f"{color} {shape}" for color in COLORS for shape in SHAPES]
    popular = [name for name, _ in counts.most_common(len(every) // 4)]
    found: dict[str, list[dict[str, Any]]] = {}
    for split in ("random", "popular", "adversarial"):
        rows: list[dict[str, Any]] = []
        for i, (scene, image) in enumerate(zip(scenes, names, strict=True)):
            rng = np.random.default_rng([seed, i, _STREAM + 1])
            there = list(dict.fromkeys(_named(o) for o in scene.objects))
            parts = {word for name in there for word in name.split()}
            pool = {"random": every, "popular": popular}.get(
                split, [name for name in every if parts & set(name.split())]
            )
            absent = [name for name in pool if name not in there] or [
                name for name in every if name not in there
            ]
            for label, options in (("yes", there), ("no", absent)):
                text = f"Is there {a(pick(rng, options))} in the image?"
                head = {"question_id": len(rows) + 1, "image": image}
                rows.append({**head, "text": text, "label": label})
        found[split] = rows
    return found


def _named(o: Any) -> str:
    return f"{o.color} {o.shape}"


def _write_scienceqa(out: Path, scenes: Sequence[Scene], names: Sequence[str], seed: int) -> None:
    folder = out / "scienceqa"
    problems: dict[str, Any] = {}
    splits: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for i, (scene, name) in enumerate(zip(scenes, names, strict=True)):
        key, split = str(i + 1), _SPLITS[i % len(_SPLITS)]
        image = f"image{Path(name).suffix}"
        problem = _problem(scene, np.random.default_rng([seed, i, _STREAM + 2]))
        problems[key] = {**problem, "image": image, "split": split}
        splits[split].append(key)
        _link(out / name, folder / split / key / image)
    write_json(folder / "problems.json", problems)
    splits["trainval"] = splits["train"] + splits["val"]
    write_json(folder / "pid_splits.json", splits)


def _problem(scene: Scene, rng: np.random.Generator) -> dict[str, Any]:
    """One question with choices, its lecture and its solution."""
    kinds = ["color", "shape", "count"] + ["odd"] * (scene.odd is not None)
    kind = pick(rng, kinds)
    question, right, wrong, solution = _MAKERS[kind](scene, rng)
    others = [wrong[i] for i in rng.permutation(len(wrong))[: _CHOICES - 1]]
    choices = [[right, *others][i] for i in rng.permutation(len(others) + 1)]
    return {
        "question": question,
        "choices": choices,
        "answer": choices.index(right),
        "hint": "",
        "task": "closed choice",
        "grade": f"grade{1 + int(rng.integers(12))}",
        "subject": "natural science",
        "topic": "shapes",
        "category": "drawn scenes",
        "skill": f"Tell the {kind}",
        "lecture": _LECTURES[kind],
        "solution": solution,
    }


_Parts = tuple[str, str, list[str], str]
"""Question, right choice, wrong choices, solution."""


def _color(scene: Scene, rng: np.random.Generator) -> _Parts:
    o = scene.objects[int(rng.integers(len(scene.objects)))]
    wrong = [color for color in COLORS if color != o.color]
    solution = f"The shape in the {o.place} is {a(f'{o.color} {o.shape}')}."
    return f"What color is the shape in the {o.place}?", o.color, wrong, solution


def _shape(scene: Scene, rng: np.random.Generator) -> _Parts:
    o = scene.objects[int(rng.integers(len(scene.objects)))]
    wrong = [shape for shape in SHAPES if shape != o.shape]
    solution = f"The {o.color} shape in the {o.place} is {a(o.shape)}."
    return f"Which shape is in the {o.place}?", o.shape, wrong, solution


def _count(scene: Scene, rng: np.random.Generator) -> _Parts:
    number = len(scene.objects)
    wrong = [str(n) for n in range(1, 10) if n != number and abs(n - number) <= 3]
    places = ", ".join(o.place for o in scene.objects)
    return "How many shapes are there?", str(number), wrong, f"There are shapes here: {places}."


def _odd(scene: Scene, rng: np.random.Generator) -> _Parts:
    said = [f"the {_named(o)} in the {o.place}" for o in scene.objects]
    right = said.pop(scene.odd or 0)
    reason = unusual_reason(scene)
    return "Which one is unlike the others?", right, said, f"{capital(reason)}."


_MAKERS: dict[str, Callable[[Scene, np.random.Generator], _Parts]] = {
    "color": _color,
    "shape": _shape,
    "count": _count,
    "odd": _odd,
}


def _link(picture: Path, target: Path) -> None:
    """The picture under another name, without a second copy where the disk can do that."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(picture, target)
    except OSError:
        shutil.copyfile(picture, target)
