"""Which of a repository's files make a model; before a download their names are all there is.

A GGUF pair (text model and mmproj), or what a safetensors model needs. Never a pickle.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from llava_cli.errors import ModelInvalid, ModelNotFound

TEXT_QUANTS = (
    "q4_k_m", "q4_k_s", "q4_k", "q5_k_m", "q8_0", "q6_k", "q5_k_s", "q5_k", "q4_0", "q4_1",
    "int4", "f16", "fp16", "bf16", "f32", "q3_k_m", "q3_k_l", "q3_k_s", "q2_k",
)  # fmt: skip
MMPROJ_QUANTS = ("f16", "fp16", "bf16", "f32", "q8_0")
"""Taken in this order where none is named."""
_QUANT = re.compile(
    r"(?<![a-z0-9])(i?q\d(?:_[a-z0-9]+)*|b?f16|fp16|f32|fp32|int[48])(?![a-z0-9_])", re.IGNORECASE
)
_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
_SETTINGS = (".json", ".model", ".jinja", ".txt")
_CARDS = ("README.md", "LICENSE", "LICENSE.txt", "LICENSE.md")
_PIECE = re.compile(r"-\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)


def choose(
    repo: str,
    names: Iterable[str],
    quant: str | None,
    engine: str,
    *,
    text: str | None = None,
    mmproj: str | None = None,
) -> tuple[str, ...]:
    """The model's files, the text .gguf and its mmproj first; the card, if there is one, last.

    `text` and `mmproj` are names known beforehand (an alias's), taken where they are there.
    """
    names = sorted(set(names))
    card = [name for name in names if name in _CARDS]
    ggufs = [name for name in names if name.lower().endswith(".gguf")]
    if engine != "torch" and ggufs:
        return (*_pair(repo, ggufs, quant, text, mmproj), *card)
    if quant is not None:
        raise ModelNotFound(f"{repo} has no GGUF files", f"leave out :{quant}")
    return (*_snapshot(repo, names), *card)


def quant_of(name: str) -> str | None:
    """The quantisation that a file's name ends in, as it is written there."""
    found = _QUANT.findall(name.rsplit("/", 1)[-1])
    return str(found[-1]) if found else None


def is_projector(name: str) -> bool:
    """Whether a GGUF file's name says that it holds an image encoder."""
    return "mmproj" in name.rsplit("/", 1)[-1].lower()


def _pair(
    repo: str, ggufs: Sequence[str], quant: str | None, text: str | None, mmproj: str | None
) -> tuple[str, str]:
    projectors = [name for name in ggufs if is_projector(name)]
    texts = [name for name in ggufs if name not in projectors]
    if not projectors:
        raise ModelInvalid(
            f"{repo} has no mmproj, so the model cannot look at pictures",
            "choose a repository that has the model's mmproj too",
        )
    chosen = text if quant is None and text in texts else _pick(repo, texts, quant, TEXT_QUANTS)
    if _PIECE.search(chosen):
        raise ModelInvalid(
            f"{repo} has this model in several pieces, which is not supported",
            f"choose a smaller quantisation: {repo}:Q4_K_M",
        )
    if mmproj not in projectors:
        mmproj = _pick(repo, projectors, None, MMPROJ_QUANTS)
    return chosen, mmproj


def _pick(repo: str, names: Sequence[str], quant: str | None, order: Sequence[str]) -> str:
    """The file of the quantisation that was named, or of the first that there is."""
    for wanted in [quant.lower()] if quant else order:
        for name in names:
            if wanted == (quant_of(name) or "").lower():
                return name
    if quant is None and names:
        return names[0]
    there = sorted({quant_of(name) or name for name in names})
    raise ModelNotFound(
        f"{repo} has no {quant or 'text'} model",
        f"it has: {', '.join(there)}" if there else "choose another repository",
    )


def _snapshot(repo: str, names: Sequence[str]) -> tuple[str, ...]:
    """Weights as safetensors, settings and tokenizer, from the repository's top."""
    top = [name for name in names if "/" not in name]
    weights = [name for name in top if _WEIGHTS.fullmatch(name)] or [
        name for name in top if name.endswith(".safetensors")
    ]
    if not weights:
        if any(name.endswith((".bin", ".pt", ".pth", ".ckpt")) for name in names):
            raise ModelNotFound(
                f"{repo} has its weights as pickle files only, which can run foreign code",
                "choose a repository that has safetensors or GGUF files",
            )
        raise ModelNotFound(
            f"{repo} has no model that can be used: neither GGUF nor safetensors files",
            "choose another repository",
        )
    settings = [name for name in top if name.endswith(_SETTINGS) and name not in _CARDS]
    return (*weights, *settings)
