"""Every benchmark's data in its organisers' layout, two or three items small."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image as PIL

SHORT = "Answer the question using a single word or phrase."
CHOICE = "Answer with the option's letter from the given choices directly."


def picture(path: Path, color: str = "red") -> None:
    """A small picture that is no square."""
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.new("RGB", (24, 16), color).save(path)


def put(path: Path, value: Any) -> None:
    """A JSON document."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def lines(path: Path, rows: list[Any]) -> None:
    """JSON Lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def ten(text: str) -> list[dict[str, Any]]:
    return [{"answer": text, "answer_confidence": "yes", "answer_id": n} for n in range(1, 11)]


def _vqa(folder: Path, prefix: str) -> None:
    questions = [
        {"image_id": 42, "question": "Is it red?", "question_id": 420},
        {"image_id": 42, "question": "What is it?", "question_id": 421},
    ]
    put(folder / f"{prefix}OpenEnded_mscoco_val2014_questions.json",
        {"data_subtype": "val2014", "questions": questions})  # fmt: skip
    annotations = [
        {"question_id": 420, "image_id": 42, "answer_type": "yes/no", "answers": ten("yes")},
        {"question_id": 421, "image_id": 42, "answer_type": "other", "answers": ten("wall")},
    ]
    put(folder / f"{prefix}mscoco_val2014_annotations.json", {"annotations": annotations})
    picture(folder / "val2014/COCO_val2014_000000000042.jpg")


def vqav2(folder: Path) -> None:
    _vqa(folder, "v2_")


def okvqa(folder: Path) -> None:
    _vqa(folder, "")


def gqa(folder: Path) -> None:
    put(folder / "testdev_balanced_questions.json", {
        "201307251": {"question": "Is it red?", "imageId": "n161313", "answer": "yes",
                      "fullAnswer": "Yes, it is.", "types": {"structural": "verify"}},
        "201640614": {"question": "What is it?", "imageId": "n235859", "answer": "wall",
                      "fullAnswer": "A wall.", "types": {"structural": "query"}},
    })  # fmt: skip
    for name in ("n161313", "n235859"):
        picture(folder / f"images/{name}.jpg")


def vizwiz(folder: Path) -> None:
    rows = [
        {"image": f"VizWiz_val_0000000{n}.jpg", "question": q, "answers": ten(a), "answerable": 1}
        for n, (q, a) in enumerate([("Is it red?", "yes"), ("What is it?", "unanswerable")])
    ]
    put(folder / "val.json", rows)
    for row in rows:
        picture(folder / "val" / str(row["image"]))


def textvqa(folder: Path) -> None:
    data = [
        {"question_id": 34602, "question": "what brand?", "image_id": "00685bc495504d61",
         "answers": ["yes"] * 10, "image_width": 24, "image_height": 16},
        {"question_id": 34603, "question": "what year?", "image_id": "00685bc495504d61",
         "answers": ["1999"] * 10, "image_width": 24, "image_height": 16},
    ]  # fmt: skip
    put(folder / "TextVQA_0.5.1_val.json", {"dataset_type": "val", "data": data})
    ocr = [{"image_id": "00685bc495504d61", "ocr_tokens": ["MIA", "intel"], "ocr_info": []}]
    put(folder / "TextVQA_Rosetta_OCR_v0.2_val.json", {"data": ocr})
    picture(folder / "train_images/00685bc495504d61.jpg")


def pope(folder: Path) -> None:
    for split in ("adversarial", "popular", "random"):
        name = "COCO_val2014_000000310196.jpg"
        lines(folder / f"coco_pope_{split}.json", [
            {"question_id": n, "image": name, "text": text, "label": label}
            for n, (text, label) in enumerate([
                ("Is there a snowboard in the image?", "yes"),
                (f"Is there a {split} in the imange?", "no"),
            ], 1)
        ])  # fmt: skip
        picture(folder / "val2014" / name)


def mme(folder: Path) -> None:
    root, ask = folder / "MME_Benchmark_release_version", "Please answer yes or no."
    picture(root / "existence/0001.jpg")
    (root / "existence/0001.txt").write_text(f"Is it red? {ask}\tYes\nIs it blue?  {ask}\tNo\n")
    picture(root / "artwork/images/1.jpg")
    (root / "artwork/questions_answers_YN").mkdir(parents=True)
    (root / "artwork/questions_answers_YN/1.txt").write_text(f"A? {ask}\tYes\nB? {ask}\tNo\n")


def _mmbench(folder: Path, name: str) -> None:
    buffer = io.BytesIO()
    PIL.new("RGB", (24, 16), "red").save(buffer, "PNG")
    image = base64.b64encode(buffer.getvalue()).decode()
    names = "index question hint A B C D answer category image source l2-category comment split"
    rows = [
        "0 Which? See|it yes no   A cat {i} s fine x dev",
        "1000000 Which? See|it no yes   B cat {i} s fine x dev",
        "1 Who?  a b nan d A dog {i} s fine x dev",
    ]
    text = "\t".join(names.split()) + "\n"
    for row in rows:
        cells = [cell.replace("|", " ").format(i=image) for cell in row.split(" ")]
        text += "\t".join(cells) + "\n"
    (folder / name).write_text(text, encoding="utf-8")


def mmbench(folder: Path) -> None:
    _mmbench(folder, "mmbench_dev_20230712.tsv")


def mmbench_cn(folder: Path) -> None:
    _mmbench(folder, "mmbench_dev_cn_20231003.tsv")


def seed(folder: Path) -> None:
    choices = {f"choice_{c}": c * 2 for c in "abcd"}
    put(folder / "SEED-Bench.json", {
        "questions": [
            {"question_id": "101669", "question": "Which?", **choices, "answer": "A",
             "data_type": "image", "data_id": "1454426_2591111986", "question_type_id": 1},
            {"question_id": "v10_7", "question": "What?", **choices, "answer": "B",
             "data_type": "video", "data_id": "x.webm", "question_type_id": 10, "segment": []},
        ],
        "question_type": {"Scene Understanding": 1, "Action Recognition": 10},
    })  # fmt: skip
    (folder / "SEED-Bench-image").mkdir()
    PIL.new("RGB", (24, 16), "red").save(folder / "SEED-Bench-image/1454426_2591111986", "JPEG")
    picture(folder / "SEED-Bench-video-image/v10_7.png")


def scienceqa(folder: Path) -> None:
    common = {"choices": ["yes", "no"], "answer": 0, "split": "test", "grade": "grade2",
              "lecture": "L1\nL2", "solution": "S"}  # fmt: skip
    put(folder / "problems.json", {
        "4": {**common, "question": "Is it?", "hint": "Look.", "image": "image.png",
              "subject": "natural science"},
        "5": {**common, "question": "Is it not?", "hint": "", "image": None,
              "subject": "language science"},
    })  # fmt: skip
    put(folder / "pid_splits.json", {"test": ["4", "5"], "train": []})
    picture(folder / "test/4/image.png")


def llava_bench(folder: Path) -> None:
    lines(folder / "questions.jsonl", [
        {"question_id": 0, "image": "001.jpg", "text": "What is it?", "category": "conv"},
        {"question_id": 1, "image": "001.jpg", "text": "Describe it.", "category": "detail"},
    ])  # fmt: skip
    lines(folder / "context.jsonl", [{"id": "001", "image": "001.jpg", "caption": "A red wall."}])
    lines(folder / "answers_gpt4.jsonl", [
        {"question_id": 0, "text": "A wall.", "category": "conv", "answer_id": "r0"},
        {"question_id": 1, "text": "A red wall.", "category": "detail"},
    ])  # fmt: skip
    picture(folder / "images/001.jpg")


def mm_vet(folder: Path) -> None:
    put(folder / "mm-vet.json", {
        "v1_0": {"imagename": "v1_0.png", "question": "What is x?", "answer": "-1<AND>-5",
                 "capability": ["ocr", "math"]},
        "v1_1": {"imagename": "v1_0.png", "question": "Color?", "answer": "red<OR>crimson",
                 "capability": ["rec"]},
    })  # fmt: skip
    picture(folder / "images/v1_0.png")


def owleval(folder: Path) -> None:
    rows = [
        {"image": "1.jpg", "question_id": n, "question": q, "ability": "a,b",
         "category": ["single_turn"]}
        for n, q in enumerate(["What is it?", "Why?"], 1)
    ]  # fmt: skip
    lines(folder / "questions.jsonl", rows)
    picture(folder / "cases/1.png")


def coco_caption(folder: Path) -> None:
    put(folder / "captions_val2014.json", {
        "images": [{"id": 42, "file_name": "COCO_val2014_000000000042.jpg"}],
        "annotations": [{"image_id": 42, "id": n, "caption": "A red wall."} for n in range(5)],
    })  # fmt: skip
    picture(folder / "val2014/COCO_val2014_000000000042.jpg")


def scenes(folder: Path) -> None:
    objects = [
        {"shape": "star", "color": "red", "size": "large", "cell": "top left", "box": [0, 0, 1, 1]},
        {"shape": "star", "color": "blue", "size": "large", "cell": "center", "box": [0, 0, 1, 1]},
    ]
    row = {"image": "images/000000.png", "width": 24, "height": 16, "background": "white",
           "objects": objects, "odd": None}  # fmt: skip
    lines(folder / "scenes.jsonl", [row])
    picture(folder / "images/000000.png")


LAYOUTS: dict[str, Callable[[Path], None]] = {
    "vqav2": vqav2,
    "gqa": gqa,
    "vizwiz": vizwiz,
    "textvqa": textvqa,
    "pope": pope,
    "mme": mme,
    "mmbench": mmbench,
    "mmbench-cn": mmbench_cn,
    "seed": seed,
    "scienceqa": scienceqa,
    "llava-bench": llava_bench,
    "mm-vet": mm_vet,
    "owleval": owleval,
    "okvqa": okvqa,
    "coco-caption": coco_caption,
    "scenes": scenes,
}


def make(name: str, folder: Path) -> Path:
    """The data of one benchmark."""
    folder.mkdir(parents=True, exist_ok=True)
    LAYOUTS[name](folder)
    return folder
