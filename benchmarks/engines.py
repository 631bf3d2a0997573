"""Compare the two engines on the bundled model: the same ids, the same logits, the same answers.

Example: python benchmarks/engines.py --n 200

Both read the same weights in float32 (the GGUF pair is converted for the comparison); then the
shipped GGUF is held against them, to see what its quantisation costs. Pictures are scenes that no
training saw, lying and upright. Not a benchmark of truth: that is
`python -m llava_train.demo evaluate`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# The folder of a script comes first: gguf.py beside this one would stand in for the package `gguf`.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np

from llava_cli import engines, models
from llava_cli.conversation import Conversation
from llava_cli.engines.base import Sampling
from llava_cli.images import Image
from llava_convert.conversion import convert
from llava_train.demo.evaluate import SEED
from llava_train.scene_questions import conversation, detail, reasoning
from llava_train.scene_wording import as_typed
from llava_train.scenes import sample_scene

STREAM = 3
"""Distinguishes the random numbers of the questions from those of the pictures."""


def asked(n: int, seed: int) -> Iterator[Conversation]:
    """One picture each, with a question; every fourth is a conversation of several turns."""
    for index in range(n):
        scene, picture = sample_scene(seed, index)
        rng = np.random.default_rng([seed, index, STREAM])
        turns = [*reasoning(scene, rng)[:1], detail(scene, rng), *conversation(scene, rng)]
        chosen = [turns[i] for i in rng.permutation(len(turns))[: 1 if index % 4 else 3]]
        talk = Conversation()
        for number, turn in enumerate(chosen):
            question = as_typed(turn.question, rng)
            shown = [Image.from_pil(picture, source=f"scene {index}")] if number == 0 else []
            talk = talk.add("user", *shown, question)
            if number < len(chosen) - 1:
                talk = talk.add("assistant", turn.answer)
        yield talk


def answer(engine: Any, talk: Conversation) -> tuple[int | None, ...]:
    """Ids of the greedy answer."""
    return tuple(token.id for token in engine.generate(talk, Sampling(max_tokens=160)))


def compare(model: str | None, n: int, seed: int) -> Iterator[tuple[str, str]]:
    """Rows of the report: what was compared, and the outcome."""
    files = models.resolve(model, engine="torch")
    torch: Any = engines.load(files, engine="torch", dtype="float32")
    with tempfile.TemporaryDirectory() as folder:
        exact_path = Path(folder) / "f32"
        convert(files.path, exact_path, outtypes=("f32",), mmproj_outtype="f32")
        exact: Any = engines.load(models.resolve(str(exact_path)))
        shipped: Any = engines.load(models.resolve(model, engine="gguf"))
        ids = slots = same = near = upright = 0
        apart = 0.0
        for talk in asked(n, seed):
            theirs, ours = (engine.prompt_ids(talk) for engine in (torch, exact))
            ids += ours == theirs
            slots += [i for i, x in enumerate(ours) if x == "image"] == [
                i for i, x in enumerate(theirs) if x == "image"
            ]
            first = [engine.first_logits(talk) for engine in (torch, exact)]
            apart = max(apart, float(np.abs(first[0] - first[1]).max()))
            reference = answer(torch, talk)
            same += answer(exact, talk) == reference
            near += answer(shipped, talk) == reference
            picture = talk.images[0].open()
            upright += picture.height > picture.width
        yield "pictures (upright among them)", f"{n} ({upright})"
        yield "prompts with identical ids", f"{ids} of {n}"
        yield "prompts with identical image slots", f"{slots} of {n}"
        yield "first token's logits, largest difference", f"{apart:.1e}"
        yield "greedy answers identical, float32", f"{same} of {n}"
        yield f"greedy answers identical, {shipped.files.path.name}", f"{near} of {n}"
        for engine in (torch, exact, shipped):
            engine.close()


def main() -> None:
    """Print one row a comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("-m", "--model", help="a RUN folder or converted pair (default: bundled)")
    parser.add_argument("--n", type=int, default=200, help="pictures (default 200)")
    parser.add_argument("--seed", type=int, default=SEED, help="world of the pictures")
    options = parser.parse_args()
    for name, outcome in compare(options.model, options.n, options.seed):
        sys.stdout.write(f"{name:<60} {outcome}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
