"""Tensor names: from llava-hf's to GGUF's.

The maps are data: here for towers and projectors, in `llava_cli.models.families` for the rest.

`assign` gives each source tensor its target, or the reason why it is left out; a tensor that no
map knows, a target that stays empty and a shape that contradicts config.json are errors that name
the tensor. Not here: values (`text.py`, `mmproj.py`), other programs' names
(`llava_cli.models.tensor_names`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from llava_cli.engines.layouts.tensors import Tensor
from llava_cli.errors import ModelInvalid
from llava_cli.models.families import Rule
from llava_cli.models.tensor_names import NEWLINE, NOT_WEIGHTS, PROJECTOR, VISION
from llava_convert.checkpoints import Checkpoint

VISION_RULES = (
    Rule("embeddings.class_embedding", "v.class_embd", "hidden", "clip"),
    Rule("embeddings.patch_embedding.weight", "v.patch_embd.weight", "hidden rgb patch patch"),
    Rule("embeddings.patch_embedding.bias", "v.patch_embd.bias", "hidden", "siglip"),
    Rule("embeddings.position_embedding.weight", "v.position_embd.weight", "positions hidden"),
    *(
        Rule(f"pre_layrnorm.{kind}", f"v.pre_ln.{kind}", "hidden", "clip")
        for kind in ("weight", "bias")
    ),
    *(
        Rule(f"encoder.layers.{{n}}.{source}.{kind}", f"v.blk.{{n}}.{target}.{kind}", shape)
        for source, target, weight, bias in (
            ("layer_norm1", "ln1", "hidden", "hidden"),
            ("layer_norm2", "ln2", "hidden", "hidden"),
            ("self_attn.q_proj", "attn_q", "hidden hidden", "hidden"),
            ("self_attn.k_proj", "attn_k", "hidden hidden", "hidden"),
            ("self_attn.v_proj", "attn_v", "hidden hidden", "hidden"),
            ("self_attn.out_proj", "attn_out", "hidden hidden", "hidden"),
            ("mlp.fc1", "ffn_up", "ffn hidden", "ffn"),
            ("mlp.fc2", "ffn_down", "hidden ffn", "hidden"),
        )
        for kind, shape in (("weight", weight), ("bias", bias))
    ),
)
"""Names behind `vision_tower.vision_model.`."""
PROJECTOR_RULES = (
    Rule(PROJECTOR + "linear_1.weight", "mm.0.weight", "text vision"),
    Rule(PROJECTOR + "linear_2.weight", "mm.2.weight", "text text"),
    Rule(PROJECTOR + "linear_1.bias", "mm.0.bias", "text", "projector_bias"),
    Rule(PROJECTOR + "linear_2.bias", "mm.2.bias", "text", "projector_bias"),
    Rule(NEWLINE, "v.image_newline", "text", "tiles"),
)

IGNORED: tuple[tuple[str, str], ...] = (
    *NOT_WEIGHTS,
    (
        re.escape(VISION) + r"post_layernorm\.(weight|bias)",
        "LLaVA reads the features before this norm",
    ),
)
"""Pattern, reason."""
MAY_LACK = ("output.bias",)
"""transformers' LLaVA classes give Phi's head no bias; llama.cpp wants one, of zeros."""
BEHIND_FEATURES = "behind vision_feature_layer: never run"

_LAYER = re.compile(r"(?<=layers\.)\d+(?=\.)")


@dataclass(frozen=True)
class Names:
    """Where every tensor of a source goes."""

    text: Mapping[str, Tensor]
    """Text GGUF's names."""
    mmproj: Mapping[str, Tensor]
    ignored: Mapping[str, str]
    """Source name -> why it is left out."""

    @property
    def mapped(self) -> int:
        """How many source tensors are used."""
        return len({t.name for t in (*self.text.values(), *self.mmproj.values())})


@dataclass
class _Expected:
    """What one part must hold: target -> dimensions, and the way there."""

    rules: dict[str, Rule] = field(default_factory=dict)
    targets: dict[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    """Target -> (source name behind the prefix, shape)."""
    layers: int = 0
    kept: int = 0
    """Layers written; the others are left out."""


def assign(checkpoint: Checkpoint) -> Names:
    """Give each source tensor its target, and check that every target is filled, in its shape."""
    parts = _expected(checkpoint)
    found: dict[str, dict[str, Tensor]] = {part: {} for part in parts}
    ignored: dict[str, str] = {}
    unknown: list[str] = []
    for name, tensor in checkpoint.tensors.items():
        place = _place(name, parts)
        if place is None:
            unknown.append(tensor.name)
        elif isinstance(place, str):
            ignored[tensor.name] = place
        else:
            part, target = place
            found[part][target] = tensor
    if unknown:
        more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
        raise ModelInvalid(
            f"tensor {unknown[0]}{more} has no place in the converted model",
            "nothing is left out silently: the checkpoint has parts that LLaVA does not have",
        )
    _tie(checkpoint, found["text"], parts["text"])
    for part, expected in parts.items():
        _check(found[part], expected)
    return Names(found["text"], {**found["vision"], **found["projector"]}, ignored)


def _expected(checkpoint: Checkpoint) -> dict[str, _Expected]:
    """The tensors that a model of these numbers has."""
    text, vision = checkpoint.text, checkpoint.vision
    q, kv = text.heads * text.head_dim, text.kv_heads * text.head_dim
    text_sizes = {
        "hidden": text.hidden, "ffn": text.ffn, "ffn2": 2 * text.ffn, "q": q, "kv": kv,
        "qkv": q + 2 * kv, "vocab": _embedding_rows(checkpoint.tensors),
    }  # fmt: skip
    vision_sizes = {
        "hidden": vision.hidden, "ffn": vision.ffn, "rgb": 3, "patch": vision.patch,
        "positions": vision.positions,
    }  # fmt: skip
    mm_sizes = {"text": text.hidden, "vision": vision.hidden}
    flags = {
        name
        for name, holds in (
            ("attention_bias", text.attention_bias),
            ("mlp_bias", text.mlp_bias),
            ("projector_bias", checkpoint.projector.bias),
            ("tiles", checkpoint.tiles is not None),
            (vision.kind, True),
        )
        if holds
    }
    tower = [
        Rule(VISION + rule.source, rule.target, rule.shape, rule.when) for rule in VISION_RULES
    ]
    return {
        "text": _expand(text.family.rules, text_sizes, flags, text.layers, text.layers),
        "vision": _expand(tower, vision_sizes, flags, vision.layers, vision.feature_layer),
        "projector": _expand(PROJECTOR_RULES, mm_sizes, flags, 0, 0),
    }


def _expand(
    rules: Iterable[Rule], sizes: Mapping[str, int], flags: set[str], layers: int, kept: int
) -> _Expected:
    expected = _Expected(layers=layers, kept=kept)
    for rule in rules:
        if rule.when and rule.when not in flags:
            continue
        expected.rules[rule.source] = rule
        shape = tuple(sizes[dimension] for dimension in rule.shape.split())
        for n in range(kept) if "{n}" in rule.source else (0,):
            number = str(n)
            target = rule.target.replace("{n}", number)
            expected.targets[target] = (rule.source.replace("{n}", number), shape)
    return expected


def _embedding_rows(tensors: Mapping[str, Tensor]) -> int:
    """Rows of the embedding: a vocabulary is padded to it, whatever config.json says."""
    for ending in ("embed_tokens.weight", "lm_head.weight"):
        for name, tensor in tensors.items():
            if name.endswith(ending) and tensor.shape:
                return tensor.shape[0]
    raise ModelInvalid("the checkpoint has no embed_tokens.weight", "it is not complete")


def _place(name: str, parts: Mapping[str, _Expected]) -> tuple[str, str] | str | None:
    """A part and target, or the reason to leave it out, or None where no map knows the name."""
    for pattern, reason in IGNORED:
        if re.fullmatch(pattern, name):
            return reason
    layer = _LAYER.search(name)
    number = int(layer.group()) if layer else 0
    for part, expected in parts.items():
        rule = expected.rules.get(_LAYER.sub("{n}", name, count=1))
        if rule is None:
            continue
        if layer and number >= expected.kept:
            return BEHIND_FEATURES if number < expected.layers else None
        return part, rule.target.replace("{n}", str(number))
    return None


def _tie(checkpoint: Checkpoint, found: dict[str, Tensor], expected: _Expected) -> None:
    """Where one tensor is embedding and head at once, llama.cpp wants the embedding only.

    A checkpoint that says so and still holds both is taken at its tensors, as transformers does.
    """
    if not checkpoint.text.tied:
        return
    if "token_embd.weight" not in found and "output.weight" in found:
        found["token_embd.weight"] = found.pop("output.weight")
    if "output.weight" not in found:
        del expected.targets["output.weight"]


def _check(found: Mapping[str, Tensor], expected: _Expected) -> None:
    for target, (source, shape) in expected.targets.items():
        if target not in found and target in MAY_LACK:
            continue
        if target not in found:
            raise ModelInvalid(
                f"the checkpoint has no tensor {source}, which is needed for {target}",
                "it is not complete, or config.json belongs to another model",
            )
        tensor = found[target]
        if tensor.shape != shape:
            raise ModelInvalid(
                f"tensor {tensor.name} is {list(tensor.shape)}, config.json says {list(shape)}",
                "config.json belongs to another model",
            )
