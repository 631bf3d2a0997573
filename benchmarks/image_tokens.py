"""How right is the bundled model when only N tokens of a picture are read?

    python benchmarks/image_tokens.py --n 100 --tokens 100,64,49,36,25,16

In every scene one shape differs; an answer counts if it names its colour, shape and place. Both
ways of `llava_cli.engines.reduction` are measured on the same scenes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

# Run as a script, gguf.py beside this file would stand in for the package `gguf`.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from llava_cli import engines, models
from llava_cli.conversation import Conversation
from llava_cli.engines import reduction
from llava_cli.engines.base import Sampling
from llava_cli.engines.gguf import pictures
from llava_cli.images import Image
from llava_train.demo.evaluate import names_odd
from llava_train.scenes import Scene, sample_scene

QUESTION = "what is unusual here?"
SEED = 99
"""A world that no model was trained on."""


def scenes(count: int) -> list[tuple[Scene, Image]]:
    """Scenes with an odd one."""
    found: list[tuple[Scene, Image]] = []
    index = 0
    while len(found) < count:
        scene, picture = sample_scene(SEED, index)
        index += 1
        if scene.odd is not None:
            found.append((scene, Image.from_pil(picture)))
    return found


def right(cases: list[tuple[Scene, Image]], count: int) -> int:
    """How many answers are right with so many tokens a picture."""
    engine = engines.load(models.resolve(None), image_tokens=count)
    asked = [Conversation().add("user", image, QUESTION) for _, image in cases]
    texts = [""] * len(cases)
    for index, token in engine.generate_batch(asked, Sampling(max_tokens=40)):
        texts[index] += token.text
    engine.close()
    return sum(names_odd(text, scene) for text, (scene, _) in zip(texts, cases, strict=True))


def main() -> int:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--tokens", default="100,64,49,36,25,16")
    options = parser.parse_args()
    cases = scenes(options.n)
    sys.stdout.write("tokens  merged  chosen\n")
    for count in map(int, options.tokens.split(",")):
        shares = []
        for way in (reduction.merged, reduction.chosen):
            setattr(pictures, "chosen", way)  # noqa: B010 - the other way is no option
            shares.append(right(cases, count) / len(cases))
        sys.stdout.write(f"{count:6}  {shares[0]:6.1%}  {shares[1]:6.1%}\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
