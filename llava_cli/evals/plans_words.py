"""Questions answered in words: VQA in its many forms, POPE, MME, and open questions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llava_cli.errors import DataError
from llava_cli.evals import gqa, mme, pope, scenes, vqa
from llava_cli.evals.rows import Row, read_object, read_rows, row_id, row_text
from llava_cli.evals.scoring import find
from llava_cli.evals.tasks import (
    CAPTION,
    SHORT,
    UNANSWERABLE,
    Asking,
    Pictures,
    Plan,
    Task,
    maybe_file,
    one_file,
)


def vqav2(asking: Asking) -> Plan:
    """VQAv2 (and OK-VQA) from the organisers' questions."""
    names = ("v2_OpenEnded_mscoco_*_questions.json", "OpenEnded_mscoco_*_questions.json")
    path = one_file(asking.data, *names, split=asking.split)
    document = read_object(path)
    subtype = str(document.get("data_subtype") or path.stem.split("_")[-2])
    pictures, tasks = Pictures(asking.data), []
    folder = "test2015" if subtype.startswith("test") else subtype
    for row in read_rows(path, "questions"):
        image = row_id(row, "image_id")
        name = f"COCO_{folder}_{image:012d}.jpg" if isinstance(image, int) else str(image)
        text = row_text(row, "question") + asking.closing(SHORT)
        key = row_id(row, "question_id")
        tasks.append(Task(key, text, pictures.find(name, folder)))
    gold = maybe_file(path.parent, f"*mscoco_{subtype}_annotations.json")
    every = maybe_file(path.parent, "v2_OpenEnded_mscoco_test2015_questions.json")
    upload = every if subtype.startswith("test") and every else path
    return Plan(tasks, (gold,) if gold else (), upload=upload)


def gqa_plan(asking: Asking) -> Plan:
    """GQA from the organisers' questions."""
    path = one_file(asking.data, *gqa.FILES, split=asking.split)
    pictures, tasks, public = Pictures(asking.data), [], True
    for key, row in gqa.gold_rows(path):
        image = pictures.find(f"{row_id(row, 'imageId', 'image')}.jpg", "images")
        text = row_text(row, "question") + asking.closing(SHORT)
        tasks.append(Task(str(key), text, image))
        public = public and "answer" in row.data
    return Plan(tasks, (path,) if public else ())


def vizwiz(asking: Asking) -> Plan:
    """VizWiz from val.json or test.json."""
    path = one_file(asking.data, f"{asking.split or 'val'}.json", "test.json", "*.json")
    pictures, tasks = Pictures(asking.data), []
    for row in read_rows(path, "questions"):
        name = row_text(row, "image")
        text = row_text(row, "question") + asking.closing(UNANSWERABLE)
        tasks.append(Task(name, text, pictures.find(name, path.stem)))
    return Plan(tasks, (path,) if vqa.has_answers(path) else ())


def textvqa(asking: Asking) -> Plan:
    """TextVQA with the OCR tokens of the organisers' other file in the prompt."""
    path = one_file(
        asking.data, "TextVQA_[0-9]*_val.json", "TextVQA_[0-9]*.json", split=asking.split
    )
    words = _ocr(asking) if asking.ocr else None
    pictures, tasks = Pictures(asking.data), []
    for row in read_rows(path, "data"):
        image = row_text(row, "image_id")
        text = row_text(row, "question")
        if words is not None:
            text += f"\nReference OCR token: {', '.join(words.get(image, []))}"
        picture = pictures.find(f"{image}.jpg", "train_images", "test_images")
        tasks.append(Task(image, text + asking.closing(SHORT), picture))
    return Plan(tasks, (path,))


def _ocr(asking: Asking) -> dict[str, list[str]]:
    path = maybe_file(asking.data, "TextVQA*OCR*_val.json", "*OCR*.json")
    if path is None:
        raise DataError(
            f"{asking.data}: holds no OCR tokens (TextVQA_Rosetta_OCR_v0.2_val.json)",
            "LLaVA's numbers need them; --no-ocr asks without",
        )
    found = {}
    for row in read_rows(path, "data"):
        tokens = row.data.get("ocr_tokens")
        if not isinstance(tokens, list):
            raise row.bad("has no ocr_tokens")
        found[row_text(row, "image_id")] = [str(token) for token in tokens]
    return found


def pope_plan(asking: Asking) -> Plan:
    """POPE's three splits, with ids that are unique over them."""
    files = find((asking.data,), *pope.FILES)
    files = sorted(files, key=lambda path: _place(pope.split_of(path)))
    pictures = Pictures(asking.data)
    tasks: list[Task] = []
    for path in files:
        for row in read_rows(path):
            name = row_text(row, "image")
            text = row_text(row, "text", "question") + asking.closing(SHORT)
            extra = {"image": name, "category": pope.split_of(path)}
            tasks.append(Task(len(tasks), text, pictures.find(name, "val2014"), extra=extra))
    return Plan(tasks, tuple(files))


def _place(split: str) -> int:
    return pope.SPLITS.index(split) if split in pope.SPLITS else len(pope.SPLITS)


def mme_plan(asking: Asking) -> Plan:
    """MME's folders, the closing request replaced by LLaVA's."""
    root = asking.data / "MME_Benchmark_release_version"
    root = root if root.is_dir() else asking.data
    pictures = Pictures(root)
    tasks: list[Task] = []
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        images = folder / "images" if (folder / "images").is_dir() else folder
        for file in mme.question_files(folder):
            image = pictures.by_stem(images, file.stem)
            for question in mme.read_questions(folder.name, file):
                asked = question.text.replace(mme.REQUEST, "").strip()
                name = f"{folder.name}/{image.path.name if image.path else file.stem}"
                tasks.append(Task(name, asked + asking.closing(SHORT), image))
    if not tasks:
        raise DataError(f"{root}: holds no questions", "give MME_Benchmark_release_version")
    return Plan(tasks, (root,))


def llava_bench(asking: Asking) -> Plan:
    """LLaVA-Bench's bare questions; answers go to a judge."""
    path = one_file(asking.data, "questions.jsonl", "qa90_questions.jsonl", "*question*.jsonl")
    pictures, tasks = Pictures(asking.data), []
    for row in read_rows(path):
        extra = {"category": row_text(row, "category")}
        image = pictures.find(row_text(row, "image"), "images", "val2014")
        text = row_text(row, "text") + asking.closing("")
        tasks.append(Task(row_id(row, "question_id"), text, image, extra=extra))
    return Plan(tasks)


def mm_vet(asking: Asking) -> Plan:
    """MM-Vet's bare questions; answers go to a judge."""
    path = one_file(asking.data, "mm-vet.json")
    pictures, tasks = Pictures(asking.data), []
    for number, (name, item) in enumerate(read_object(path).items(), 1):
        row = Row(item if isinstance(item, dict) else {}, path, number, "item")
        key: Any = name.removeprefix("v1_")
        image = pictures.find(row_text(row, "imagename"), "images")
        text = row_text(row, "question") + asking.closing("")
        tasks.append(Task(int(key) if key.isdigit() else name, text, image))
    return Plan(tasks)


def owleval(asking: Asking) -> Plan:
    """OwlEval's questions; answers are graded by people."""
    path = one_file(asking.data, "questions.jsonl", "*question*.jsonl", "*.jsonl")
    pictures, tasks = Pictures(asking.data), []
    for row in read_rows(path):
        name, question = row_text(row, "image"), row_text(row, "question")
        extra = {"image": name, "question": question}
        image = any_suffix(pictures, name)
        text = question + asking.closing("")
        tasks.append(Task(row_id(row, "question_id"), text, image, extra=extra))
    return Plan(tasks)


def any_suffix(pictures: Pictures, name: str) -> Any:
    """OwlEval's releases name the same pictures .jpg and .png."""
    from llava_cli.errors import ImageError

    names = (name, *(Path(name).with_suffix(suffix).name for suffix in (".jpg", ".png")))
    for other in names:
        try:
            return pictures.find(other, "cases", "images")
        except ImageError as error:
            missing = error
    raise missing


def coco_caption(asking: Asking) -> Plan:
    """A caption for each picture of COCO's annotations."""
    path = one_file(asking.data, "captions_val*.json", "captions*.json", split=asking.split)
    pictures, tasks = Pictures(asking.data), []
    for row in read_rows(path, "images"):
        image = pictures.find(row_text(row, "file_name"), "val2014", "images")
        text = CAPTION if asking.suffix is None else asking.suffix
        tasks.append(Task(row_id(row, "id"), text, image))
    return Plan(tasks, (path,))


def scenes_plan(asking: Asking) -> Plan:
    """Questions about drawn scenes."""
    path = one_file(asking.data, "scenes.jsonl")
    pictures = Pictures(asking.data)
    tasks = [
        Task(q.key, q.text + asking.closing(""), pictures.find(q.image))
        for q in scenes.gold((path,))
    ]
    return Plan(tasks, (path,))
