"""`--check`: does a converted model answer as its source does?

Both are loaded, the source in PyTorch and each result in llama.cpp, and asked the same: a wide, a
tall and a square picture, and a text alone. Compared are the prompt's token ids, the first token's
logits and greedy answers. A sum of numbers is not enough for a person, so there is a verdict.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import numpy as np
import numpy.typing as npt

from llava_cli import engines
from llava_cli.conversation import Conversation
from llava_cli.engines.base import Sampling
from llava_cli.engines.layouts.source import Source
from llava_cli.errors import LlavaError, ModelInvalid
from llava_cli.images import Image
from llava_cli.models import resolve
from llava_convert.hf_target import convert_to_hf
from llava_convert.result import ConvertedFile

Verdict = Literal["equal", "close", "different"]
Logits = npt.NDArray[np.float32]

SHAPES = ((640, 400), (360, 620), (224, 224))
"""Pixels, width by height."""
NEUTRAL_FORMAT = "vicuna_v1"
"""How both are asked where the source says nothing: words that any model reads."""
QUESTION = "what is unusual here?"
ANSWER_TOKENS = 24
EXACT = 5e-3
"""How far logits of equal weights in float32 may lie apart: two libraries' rounding."""
DIVERGENCE = {
    "F32": 1e-5, "F16": 2e-3, "BF16": 2e-2, "Q8_0": 2e-2, "Q6_K": 5e-2, "Q5_K_M": 0.1,
    "Q5_K_S": 0.1, "Q4_K_M": 0.6, "Q4_K_S": 0.6, "Q4_0": 0.6, "Q3_K_M": 1.2, "Q2_K": 3.0,
}  # fmt: skip
"""Type -> mean Kullback-Leibler divergence of the first token, in nats, that the type itself
explains, with room for small models."""


class _Checkable(engines.Engine, Protocol):
    """An engine that shows its logits."""

    def first_logits(self, conversation: Conversation) -> Logits:
        """Logits (V,) of the answer's first token."""
        ...


@dataclass(frozen=True)
class Answer:
    """What a model says to one prompt."""

    ids: list[int | str]
    logits: Logits
    tokens: list[int]


@dataclass(frozen=True)
class Compared:
    """One file against the source."""

    path: str
    type: str
    verdict: Verdict
    prompts: int
    same_ids: int
    """Prompts with equal token ids."""
    max_logit_difference: float
    divergence: float
    """Mean of KL(source || file) over the prompts, in nats."""
    same_first_token: int
    same_answers: int
    """Prompts whose greedy answers are equal to the last token compared."""


@dataclass(frozen=True)
class Check:
    """The verdict on a conversion."""

    verdict: Verdict
    files: tuple[Compared, ...]

    def document(self) -> dict[str, Any]:
        """For `--json`."""
        return {"verdict": self.verdict, "files": [asdict(file) for file in self.files]}


def check(source: Source, files: Sequence[ConvertedFile], threads: int | None = None) -> Check:
    """Compare every text model among `files`, each with the mmproj, to its source."""
    if source.config.get("model_type") == "llava_onevision":
        raise ModelInvalid(
            "transformers does not compute OneVision's features without `anyres_max_N`: there is "
            "nothing to compare the result with",
            "leave out --check",
        )
    mmproj = next(file.path for file in files if file.role == "mmproj")
    with _loadable(source, files[0].path.parent) as folder:
        expected = _answers(str(folder), None, source, threads, "torch")
    compared = []
    for file in files:
        if file.role == "text":
            ours = _answers(str(file.path), mmproj, source, threads, "gguf")
            compared.append(compare(file, mmproj, ours, expected))
    order: tuple[Verdict, ...] = ("equal", "close", "different")
    worst = max((one.verdict for one in compared), key=order.index)
    return Check(worst, tuple(compared))


def compare(
    file: ConvertedFile, mmproj: Path, ours: Sequence[Answer], expected: Sequence[Answer]
) -> Compared:
    """One file's answers against the source's."""
    pairs = list(zip(ours, expected, strict=True))
    same_ids = sum(mine.ids == theirs.ids for mine, theirs in pairs)
    size = min(pairs[0][0].logits.size, pairs[0][1].logits.size)
    peaks = [float(np.abs(m.logits[:size] - t.logits[:size]).max()) for m, t in pairs]
    divergence = float(np.mean([_divergence(t.logits[:size], m.logits[:size]) for m, t in pairs]))
    same_answers = sum(mine.tokens == theirs.tokens for mine, theirs in pairs)
    verdict: Verdict = "different"
    if same_ids == len(pairs):
        if max(peaks) <= EXACT and same_answers == len(pairs):
            verdict = "equal"
        elif divergence <= DIVERGENCE.get(file.type, 0.1):
            verdict = "close"
    return Compared(
        path=str(file.path),
        type=file.type,
        verdict=verdict,
        prompts=len(pairs),
        same_ids=same_ids,
        max_logit_difference=max(peaks),
        divergence=divergence,
        same_first_token=sum(int(m.logits.argmax()) == int(t.logits.argmax()) for m, t in pairs),
        same_answers=same_answers,
    )


def conversations() -> list[Conversation]:
    """What both are asked."""
    asked = [Conversation().add("user", _picture(*shape), QUESTION) for shape in SHAPES]
    return [*asked, Conversation().add("user", "Tell me about a red circle.")]


def lines(found: Check) -> Iterator[str]:
    """For people."""
    words = {
        "equal": "answers as the source does, to float error",
        "close": "differs as much as its type explains",
        "different": "DOES NOT answer as the source does",
    }
    for file in found.files:
        yield f"{Path(file.path).name}: {words[file.verdict]}"
        yield (
            f"  ids {file.same_ids}/{file.prompts}, first token {file.same_first_token}/"
            f"{file.prompts}, answers {file.same_answers}/{file.prompts}, logits within "
            f"{file.max_logit_difference:.2g}, divergence {file.divergence:.2g}"
        )


def _answers(
    reference: str, mmproj: Path | None, source: Source, threads: int | None, kind: str
) -> list[Answer]:
    """Load, ask everything, and free it: two models need not fit at once."""
    files = resolve(reference, mmproj=str(mmproj) if mmproj else None, engine=kind)
    engine = engines.load(
        files, engine=kind, device="cpu", threads=threads,
        prompt_format=source.prompt_format or NEUTRAL_FORMAT,
        dtype="float32" if kind == "torch" else None,
    )  # fmt: skip
    if not hasattr(engine, "first_logits"):
        raise LlavaError(f"the {engine.name} engine does not show its logits")
    loaded = cast(_Checkable, engine)
    try:
        return [_answer(loaded, conversation) for conversation in conversations()]
    finally:
        loaded.close()


def _answer(engine: _Checkable, conversation: Conversation) -> Answer:
    sampling = Sampling(max_tokens=ANSWER_TOKENS)
    ids = [token.id for token in engine.generate(conversation, sampling) if token.id is not None]
    logits = np.array(engine.first_logits(conversation), np.float32)
    return Answer(engine.prompt_ids(conversation), logits, ids)


@contextmanager
def _loadable(source: Source, near: Path) -> Iterator[Path]:
    """A folder that transformers loads safely: the source's own, or a copy in llava-hf's form."""
    if source.kind == "llava-hf" and any(source.folder.glob("*.safetensors")):
        yield source.folder
        return
    aside = Path(tempfile.mkdtemp(prefix=".check-", dir=near))
    try:
        convert_to_hf(source, aside / "model")
        yield aside / "model"
    except OSError as error:
        raise ModelInvalid(f"the source cannot be written for the check: {error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _picture(width: int, height: int) -> Image:
    """Coloured shapes on a gradient, the same every time."""
    from PIL import Image as PIL
    from PIL import ImageDraw

    across = np.linspace(40, 220, width)[None, :, None]
    down = np.linspace(30, 200, height)[:, None, None]
    mix = np.array([0.9, 0.5, 0.2]) * across + np.array([0.1, 0.5, 0.8]) * down
    picture = PIL.fromarray(np.clip(mix, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    draw.ellipse((width * 0.1, height * 0.2, width * 0.35, height * 0.6), fill=(200, 30, 40))
    draw.rectangle((width * 0.55, height * 0.5, width * 0.9, height * 0.8), fill=(20, 60, 190))
    return Image.from_pil(picture, source=f"{width}x{height}")


def _divergence(expected: Logits, ours: Logits) -> float:
    """KL(expected || ours) of two rows of logits, in nats."""
    first, second = _log_softmax(expected), _log_softmax(ours)
    return float(np.sum(np.exp(first) * (first - second)))


def _log_softmax(values: Logits) -> npt.NDArray[np.float64]:
    wide = values.astype(np.float64)
    wide -= wide.max()
    shifted: npt.NDArray[np.float64] = wide - np.log(np.exp(wide).sum())
    return shifted
