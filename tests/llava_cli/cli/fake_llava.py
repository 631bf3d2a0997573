"""`llava` with an engine that repeats a script: what the command line makes of an answer.

As a program (`python fake_llava.py ask …`) it reads its script from FAKE_TOKENS, a JSON list of
texts; a number waits that many seconds. It stands in for the engine only: arguments, pictures,
printing and exit codes are the real ones.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from llava_cli.conversation import Conversation
from llava_cli.engines.base import Audience, Candidate, ImageInfo, Sampling, Stats, Token
from llava_cli.models.files import ModelFiles

Script = Sequence[str | float]


class FakeEngine:
    """Answers every conversation with its script; remembers what it was asked."""

    name = "gguf"
    device = "cpu"
    prompt_format = "vicuna_v1"

    def __init__(self, files: ModelFiles, script: Script) -> None:
        self.files = files
        self.script = script
        self.asked: list[tuple[Conversation, Sampling]] = []
        self.closed = False

    def generate(self, conversation: Conversation, sampling: Sampling) -> Iterator[Token]:
        self.asked.append((conversation, sampling))
        pictures = [(image.source, image.open()) for image in conversation.images]
        infos = tuple(ImageInfo(name, pic.width, pic.height, 16) for name, pic in pictures)
        candidates = tuple(Candidate(i, f"t{i}", -0.5 * i) for i in range(sampling.top_logprobs))
        for index, text in enumerate(self.script):
            if isinstance(text, float):
                time.sleep(text)
                continue
            if pictures:  # an answer that shows which picture it is about
                text = text.replace("PICTURE", Path(pictures[0][0]).name)
            yield Token(text, id=index, candidates=candidates if index == 0 else ())
        count = len(self.script)
        stats = Stats(5, 16 * len(infos), count, 0.1, 0.2, 0.3, 0.5, 0.5, images=infos)
        yield Token("", finish_reason="stop", stats=stats)

    def generate_batch(
        self,
        conversations: Sequence[Conversation],
        sampling: Sampling,
        audience: Audience | None = None,
    ) -> Iterator[tuple[int, Token]]:
        """The later conversation finishes first, as in a real batch it may."""
        for index in reversed(range(len(conversations))):
            for token in self.generate(conversations[index], sampling):
                yield index, token

    def prompt_ids(self, conversation: Conversation) -> list[int | str]:
        return []

    def close(self) -> None:
        self.closed = True


def fake_files(reference: str | None, **_: Any) -> ModelFiles:
    """Any reference names a model; none names the bundled one."""
    return ModelFiles(
        reference=reference or "llava-demo",
        format="gguf",
        path=Path("fake.gguf"),
        bundled=reference is None,
    )


def main() -> int:
    """Put the fake in and run the real command line."""
    from llava_cli import cli, engines, models

    script = json.loads(os.environ["FAKE_TOKENS"])
    fakes: dict[Any, Any] = {
        (models, "resolve"): fake_files,
        (engines, "load"): lambda files, **_: FakeEngine(files, script),
    }
    for (module, name), value in fakes.items():
        setattr(module, name, value)
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
