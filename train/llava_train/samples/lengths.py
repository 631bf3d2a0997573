"""How many tokens a sample takes in training, under a model's own tokenizer and prompt format."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

from llava_cli.conversation import Conversation
from llava_cli.errors import DataError, LlavaError, MissingDependency, UsageError
from llava_cli.images import Image
from llava_cli.prompts import FORMATS, render, runs
from llava_train.samples.reading import Row

TOKEN = "<image>"
LengthOf = Callable[[Row], int]
_PLACE = Image(source="the sample's picture", kind="memory")
_ROLES = {"human": "user", "gpt": "assistant"}


def length_of(tokenizer: str, prompt_format: str, image_tokens: int) -> LengthOf:
    """A function from a valid sample to its length; `tokenizer` is a folder or its tokenizer.json.

    image_tokens: positions of one picture, 576 for LLaVA-1.5.
    """
    if prompt_format not in FORMATS:
        raise UsageError(
            f"unknown prompt format: {prompt_format}", f"known: {', '.join(sorted(FORMATS))}"
        )
    encode = _encoder(tokenizer)
    form = FORMATS[prompt_format]

    def length(sample: Row) -> int:
        total = 0
        for run in runs(render(conversation(sample), form, complete=True)):
            if run.image is not None:
                total += image_tokens
            else:
                total += 1 if run.special else encode(run.text)
        return total

    return length


def conversation(sample: Row) -> Conversation:
    """A valid sample as training takes it: the picture at the front of its turn, no loose ends."""
    found = Conversation()
    turns = sample["conversations"]
    turns = turns[1:] if turns[0]["from"] == "gpt" else turns
    turns = turns[:-1] if turns[-1]["from"] == "human" else turns
    for turn in turns:
        text = turn["value"]
        content: tuple[Any, ...] = (text.replace(TOKEN, "").strip(),)
        if TOKEN in text:
            content = (_PLACE, *content)
        found = found.add(_ROLES[turn["from"]], *content)  # type: ignore[arg-type]
    return found


def _encoder(tokenizer: str) -> Callable[[str], int]:
    path = Path(tokenizer)
    if tokenizer == "llava-demo":
        path = Path(str(files("llava_cli.demo") / "model"))
    if path.is_dir():
        path = path / "tokenizer.json"
    if not path.is_file():
        raise DataError(
            f"{path} is no tokenizer", "give a model folder that holds a tokenizer.json"
        )
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingDependency(
            "counting tokens needs the tokenizers package", "pip install 'llava-cli[train]'"
        ) from error
    try:
        loaded = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise LlavaError(f"{path} cannot be read: {error}", "give another tokenizer") from error
    return lambda text: len(loaded.encode(text, add_special_tokens=False).ids)
