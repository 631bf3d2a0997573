"""Questions answered by a letter: MMBench, SEED-Bench, ScienceQA."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from typing import Any

from llava_cli.errors import ImageError
from llava_cli.evals import mmbench, scienceqa, scienceqa_prompts, seed
from llava_cli.evals.rows import Row, read_rows, row_id, row_text
from llava_cli.evals.scoring import Inputs
from llava_cli.evals.tasks import (
    CHOICE,
    CHOICE_CN,
    Asking,
    Pictures,
    Plan,
    Task,
    maybe_file,
    one_file,
)
from llava_cli.images import Image


def mmbench_en(asking: Asking) -> Plan:
    """MMBench."""
    return _mmbench(asking, CHOICE, "mmbench_dev_2*.tsv")


def mmbench_cn(asking: Asking) -> Plan:
    """MMBench-CN."""
    return _mmbench(asking, CHOICE_CN, "mmbench_dev_cn_*.tsv")


def _mmbench(asking: Asking, suffix: str, name: str) -> Plan:
    path = one_file(asking.data, name, "*.tsv", split=asking.split)
    tasks: list[Task] = []
    images: dict[str, Image] = {}
    public = True
    for row in read_rows(path):
        # A cell may name another row's picture by its index.
        cell = row_text(row, "image").strip()
        image = images[cell] if cell in images else _embedded(row)
        images[str(row.data.get("index"))] = image
        tasks += _rounds(row, image, asking, suffix)
        public = public and row.data.get("answer") in mmbench.LETTERS
    return Plan(tasks, (path,) if public else (), upload=path)


def _rounds(row: Row, image: Image, asking: Asking, suffix: str) -> Iterator[Task]:
    """One task, or one for each rotation of the options."""
    found, letters = mmbench.options(row), list(mmbench.LETTERS)
    letters = letters[: len(found)]
    for number in range(len(found) if asking.all_rounds else 1):
        lines = [f"{letter}. {text}" for letter, text in zip(mmbench.LETTERS, found, strict=False)]
        hint = row.data.get("hint")
        head = [] if mmbench.is_none(hint) else [str(hint)]
        prompt = "\n".join([*head, row_text(row, "question"), *lines])
        extra = {"round_id": number, "options": list(found), "option_char": list(letters)}
        index = row_id(row, "index")
        yield Task(index, prompt + asking.closing(suffix), image, prompt, extra)
        found, letters = found[1:] + found[:1], letters[1:] + letters[:1]


def _embedded(row: Row) -> Image:
    """The picture in a table's cell; kept encoded until it is asked about."""
    text = row_text(row, "image")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError(
            f"{row.where}: the picture is no base64", "fetch the file again"
        ) from error
    return Image.from_bytes(data, f"{row.path.name} row {row.number}", "data")


def seed_plan(asking: Asking) -> Plan:
    """SEED-Bench; of a video its middle frame, as LLaVA's script saves it."""
    path = one_file(asking.data, *seed.FILES, split=asking.split)
    pictures, tasks = Pictures(asking.data), []
    for row in seed.questions(path)[0]:
        key = row_id(row, "question_id")
        video = row.data.get("data_type") == "video"
        name = f"{row.data['question_id']}.png" if video else row_text(row, "data_id")
        folder = "SEED-Bench-video-image" if video else "SEED-Bench-image"
        names = [f"choice_{letter}" for letter in "abcd"]
        lines = [
            f"{letter}. {row_text(row, name)}"
            for letter, name in zip(mmbench.LETTERS, names, strict=True)
        ]
        text = "\n".join([row_text(row, "question"), *lines]) + asking.closing(CHOICE)
        tasks.append(Task(key, text, pictures.find(name, folder)))
    return Plan(tasks, (path,), upload=path)


def scienceqa_plan(asking: Asking) -> Plan:
    """ScienceQA's problems of one split, in LLaVA-1.5's form or one of v1's."""
    path = one_file(asking.data, *scienceqa.FILES)
    splits, split = maybe_file(asking.data, "pid_splits.json"), asking.split or "test"
    form, _ = scienceqa_prompts.check_style(asking.style)
    inputs = Inputs((), (path,), splits=splits, split=split)
    pictures, tasks = Pictures(asking.data), []
    for problem in scienceqa.problems(inputs):
        data = problem.row.data
        name = data.get("image")
        folder = f"{data.get('split', split)}/{problem.key}"
        image = pictures.find(f"{folder}/{name}", f"images/{folder}", folder) if name else None
        text = _scienceqa_text(data, asking, form)
        prompt = f"<image>\n{text}" if image else text
        tasks.append(Task(str(problem.key), text, image, prompt))
    return Plan(tasks, (path,), splits=splits, split=split)


def _scienceqa_text(data: Any, asking: Asking, form: str) -> str:
    if asking.style == scienceqa_prompts.ZERO_SHOT:
        return scienceqa_prompts.zero_shot(data) + asking.closing(CHOICE)
    return scienceqa_prompts.question(data, form) + asking.closing("")
