"""The texts of requests, from files: a system message and worked examples a kind, and questions.

    KIND/system.txt                 what the language model is told first
    KIND/example-N.context.txt      a picture as the model would see it, and
    KIND/example-N.answer.txt       the answer wanted for it; in the order of N
    detail/questions.txt            requests for a detailed description, one a line
    brief.txt                       requests for a brief one (stage 1)

A person's own folder may hold any of them: each file there takes the place of ours, and where it
has examples for a kind, ours for that kind are left out altogether.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from llava_cli.errors import DataError
from llava_train.datagen.contexts import KINDS, Picture, context
from llava_train.samples.files import whole

_EXAMPLE = re.compile(r"(\w+)/example-(\d+)\.(context|answer)\.txt")
_SINGLE = ("brief.txt", "detail/questions.txt", *(f"{kind}/system.txt" for kind in KINDS))
_CURATE = ("curate/describe.txt", "curate/continue.txt", "curate/fix.txt")
_KNOWN = frozenset((*_SINGLE, *_CURATE))
_HINT = "write ours out to see the layout: llava data generate --write-prompts DIR"

Message = dict[str, str]


@dataclass(frozen=True)
class PromptSet:
    """The texts in force, by their path in the folder."""

    texts: Mapping[str, str]

    def messages(self, picture: Picture, kind: str) -> list[Message]:
        """A request: system text, examples as alternating turns, the picture's own context."""
        found = [{"role": "system", "content": self.texts[f"{kind}/system.txt"]}]
        for question, answer in self.examples(kind):
            found.append({"role": "user", "content": question})
            found.append({"role": "assistant", "content": answer})
        return [*found, {"role": "user", "content": context(picture, kind)}]

    def questions(self, name: str) -> tuple[str, ...]:
        """The requests of `detail/questions.txt` or `brief.txt`."""
        return tuple(line.strip() for line in self.texts[name].splitlines() if line.strip())

    def digest(self, kind: str) -> str:
        """SHA-256 of everything that goes into requests and samples of a kind."""
        state = hashlib.sha256()
        for name in sorted(self.texts):
            if name.startswith(f"{kind}/"):
                state.update(f"{name}\0{self.texts[name]}\0".encode())
        return state.hexdigest()

    def shortened(self, most: int) -> PromptSet:
        """With the first `most` worked examples of each kind, and everything else."""
        kept = {(kind, number) for kind in KINDS for number in sorted(self._numbers(kind))[:most]}
        return PromptSet(
            {
                name: text
                for name, text in self.texts.items()
                if not (match := _EXAMPLE.fullmatch(name)) or (match[1], int(match[2])) in kept
            }
        )

    def _numbers(self, kind: str) -> set[int]:
        found = map(_EXAMPLE.fullmatch, self.texts)
        return {int(match[2]) for match in found if match and match[1] == kind}

    def examples(self, kind: str) -> list[tuple[str, str]]:
        """(context, answer) of the worked examples, in the order of their numbers."""
        found: dict[int, dict[str, str]] = {}
        for name, text in self.texts.items():
            match = _EXAMPLE.fullmatch(name)
            if match and match[1] == kind:
                found.setdefault(int(match[2]), {})[match[3]] = text
        return [(pair["context"], pair["answer"]) for _, pair in sorted(found.items())]


def load(own: Path | None = None) -> PromptSet:
    """Our texts, with those of a person's folder in place of them."""
    texts = _ours()
    if own is not None:
        theirs = _theirs(own)
        replaced = {name.split("/")[0] for name in theirs if _EXAMPLE.fullmatch(name)}
        texts = {
            name: text
            for name, text in texts.items()
            if not (_EXAMPLE.fullmatch(name) and name.split("/")[0] in replaced)
        }
        texts.update(theirs)
    return _checked(PromptSet(texts), own)


def write_out(folder: Path) -> int:
    """Our texts into a folder, to be changed there; how many there are. Replaces nothing."""
    if folder.is_dir() and any(folder.iterdir()):
        raise DataError(f"{folder} is not empty", "name a new folder for the prompts")
    texts = _ours()
    for name, text in texts.items():
        with whole(folder / name) as file:
            file.write(text + "\n")
    return len(texts)


def _ours() -> dict[str, str]:
    root = files("llava_train.datagen") / "prompts"
    return {
        name: entry.read_text("utf-8").strip()
        for folder in ("", *KINDS, "curate")
        for entry in (root / folder if folder else root).iterdir()
        if _wanted(name := f"{folder}/{entry.name}".lstrip("/"))
    }


def _theirs(own: Path) -> dict[str, str]:
    if not own.is_dir():
        raise DataError(f"{own} is not a folder of prompts", _HINT)
    texts = {}
    for path in sorted(own.rglob("*.txt")):
        name = path.relative_to(own).as_posix()
        if not _wanted(name):
            raise DataError(f"{path}: there is no prompt of this name", _HINT)
        try:
            texts[name] = path.read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path} cannot be read: {error}", "save it as UTF-8 text") from error
        if not texts[name]:
            raise DataError(f"{path} is empty", "write the text, or remove the file to use ours")
    if not texts:
        raise DataError(f"{own} holds no prompts", _HINT)
    return texts


def _wanted(name: str) -> bool:
    match = _EXAMPLE.fullmatch(name)
    return name in _KNOWN or (match is not None and match[1] in KINDS)


def _checked(prompts: PromptSet, own: Path | None) -> PromptSet:
    """Every example has both halves."""
    halves = {(m[1], m[2], m[3]) for name in prompts.texts if (m := _EXAMPLE.fullmatch(name))}
    for kind, number, half in halves:
        other = "answer" if half == "context" else "context"
        if (kind, number, other) not in halves:
            raise DataError(
                f"{own}: {kind}/example-{number}.{other}.txt is missing",
                "an example is a context and the answer to it",
            )
    return prompts
