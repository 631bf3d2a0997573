"""Tensor names: from every naming of a llava-hf checkpoint to GGUF. The maps are data.

`assign` gives each source tensor its target, or the reason why it is left out; a tensor that no
map knows, a target that stays empty and a shape that contradicts config.json are errors that name
the tensor. Not here: values (`text.py`, `mmproj.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from llava_cli.errors import ModelInvalid
from llava_convert.checkpoints import Checkpoint
from llava_convert.shards import SourceTensor

Part = Literal["text", "head", "vision", "projector"]

PREFIXES: tuple[tuple[str, Part], ...] = (
    # as transformers 5 writes them / in older files / in memory
    ("language_model.model.", "text"),
    ("model.language_model.", "text"),
    ("language_model.", "head"),
    ("", "head"),
    ("vision_tower.", "vision"),
    ("vision_tower.vision_model.", "vision"),
    ("model.vision_tower.", "vision"),
    ("model.vision_tower.vision_model.", "vision"),
    ("multi_modal_projector.", "projector"),
    ("model.multi_modal_projector.", "projector"),
)
"""What may stand before a name, and which part of the model follows."""


@dataclass(frozen=True)
class Rule:
    """One kind of tensor."""

    source: str
    """Name behind the prefix; {n} is the layer."""
    target: str
    shape: str
    """Dimensions in torch's order, by their names in `_sizes`."""


TEXT_RULES = (
    Rule("embed_tokens.weight", "token_embd.weight", "vocab hidden"),
    Rule("norm.weight", "output_norm.weight", "hidden"),
    Rule("layers.{n}.input_layernorm.weight", "blk.{n}.attn_norm.weight", "hidden"),
    Rule("layers.{n}.self_attn.q_proj.weight", "blk.{n}.attn_q.weight", "q hidden"),
    Rule("layers.{n}.self_attn.k_proj.weight", "blk.{n}.attn_k.weight", "kv hidden"),
    Rule("layers.{n}.self_attn.v_proj.weight", "blk.{n}.attn_v.weight", "kv hidden"),
    Rule("layers.{n}.self_attn.o_proj.weight", "blk.{n}.attn_output.weight", "hidden q"),
    Rule("layers.{n}.post_attention_layernorm.weight", "blk.{n}.ffn_norm.weight", "hidden"),
    Rule("layers.{n}.mlp.gate_proj.weight", "blk.{n}.ffn_gate.weight", "ffn hidden"),
    Rule("layers.{n}.mlp.up_proj.weight", "blk.{n}.ffn_up.weight", "ffn hidden"),
    Rule("layers.{n}.mlp.down_proj.weight", "blk.{n}.ffn_down.weight", "hidden ffn"),
)
ATTENTION_BIAS_RULES = (
    Rule("layers.{n}.self_attn.q_proj.bias", "blk.{n}.attn_q.bias", "q"),
    Rule("layers.{n}.self_attn.k_proj.bias", "blk.{n}.attn_k.bias", "kv"),
    Rule("layers.{n}.self_attn.v_proj.bias", "blk.{n}.attn_v.bias", "kv"),
    Rule("layers.{n}.self_attn.o_proj.bias", "blk.{n}.attn_output.bias", "hidden"),
)
MLP_BIAS_RULES = (
    Rule("layers.{n}.mlp.gate_proj.bias", "blk.{n}.ffn_gate.bias", "ffn"),
    Rule("layers.{n}.mlp.up_proj.bias", "blk.{n}.ffn_up.bias", "ffn"),
    Rule("layers.{n}.mlp.down_proj.bias", "blk.{n}.ffn_down.bias", "hidden"),
)
HEAD_RULES = (Rule("lm_head.weight", "output.weight", "vocab hidden"),)
VISION_RULES = (
    Rule("embeddings.class_embedding", "v.class_embd", "hidden"),
    Rule("embeddings.patch_embedding.weight", "v.patch_embd.weight", "hidden rgb patch patch"),
    Rule("embeddings.position_embedding.weight", "v.position_embd.weight", "positions hidden"),
    *(Rule(f"pre_layrnorm.{kind}", f"v.pre_ln.{kind}", "hidden") for kind in ("weight", "bias")),
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
PROJECTOR_RULES = (
    Rule("linear_1.weight", "mm.0.weight", "text vision"),
    Rule("linear_2.weight", "mm.2.weight", "text text"),
)
PROJECTOR_BIAS_RULES = (
    Rule("linear_1.bias", "mm.0.bias", "text"),
    Rule("linear_2.bias", "mm.2.bias", "text"),
)

IGNORED: tuple[tuple[Part, str, str], ...] = (
    ("text", r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq", "computed from config.json"),
    ("vision", r"embeddings\.position_ids", "a constant: 0, 1, 2, ..."),
    ("vision", r"post_layernorm\.(weight|bias)", "LLaVA reads the features before this norm"),
)
"""Part, pattern behind the prefix, reason."""
BEHIND_FEATURES = "behind vision_feature_layer: never run"

_LAYER = re.compile(r"(?<=layers\.)\d+(?=\.)")


@dataclass(frozen=True)
class Names:
    """Where every tensor of a source goes."""

    text: Mapping[str, SourceTensor]
    """Text GGUF's names."""
    mmproj: Mapping[str, SourceTensor]
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
    found: dict[Part, dict[str, SourceTensor]] = {part: {} for part in parts}
    ignored: dict[str, str] = {}
    unknown: list[str] = []
    for name, tensor in checkpoint.tensors.items():
        place = _place(name, parts)
        if place is None:
            unknown.append(name)
        elif isinstance(place, str):
            ignored[name] = place
        else:
            part, target = place
            if target in found[part]:
                other = found[part][target].name
                raise ModelInvalid(f"{other} and {name} are the same tensor under two names")
            found[part][target] = tensor
    if unknown:
        more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
        raise ModelInvalid(
            f"tensor {unknown[0]}{more} has no place in the converted model",
            "nothing is left out silently: the checkpoint has parts that LLaVA does not have",
        )
    _tie(checkpoint, found, parts)
    for part, expected in parts.items():
        _check(found[part], expected)
    return Names({**found["text"], **found["head"]}, {**found["vision"], **found["projector"]},
                 ignored)  # fmt: skip


def _expected(checkpoint: Checkpoint) -> dict[Part, _Expected]:
    """The tensors that a model of these numbers has."""
    text, vision = checkpoint.text, checkpoint.vision
    rows = _embedding_rows(checkpoint.tensors)
    text_sizes = {
        "hidden": text.hidden, "ffn": text.ffn, "q": text.heads * text.head_dim,
        "kv": text.kv_heads * text.head_dim, "vocab": rows,
    }  # fmt: skip
    vision_sizes = {
        "hidden": vision.hidden, "ffn": vision.ffn, "rgb": 3, "patch": vision.patch,
        "positions": vision.positions,
    }  # fmt: skip
    mm_sizes = {"text": text.hidden, "vision": vision.hidden}
    text_rules = [
        *TEXT_RULES,
        *(ATTENTION_BIAS_RULES if text.attention_bias else ()),
        *(MLP_BIAS_RULES if text.mlp_bias else ()),
    ]
    mm_rules = [*PROJECTOR_RULES, *(PROJECTOR_BIAS_RULES if checkpoint.projector.bias else ())]
    return {
        "text": _expand(text_rules, text_sizes, text.layers, text.layers),
        "head": _expand(HEAD_RULES, text_sizes, 0, 0),
        "vision": _expand(VISION_RULES, vision_sizes, vision.layers, vision.feature_layer),
        "projector": _expand(mm_rules, mm_sizes, 0, 0),
    }


def _expand(rules: Iterable[Rule], sizes: Mapping[str, int], layers: int, kept: int) -> _Expected:
    expected = _Expected(layers=layers, kept=kept)
    for rule in rules:
        expected.rules[rule.source] = rule
        shape = tuple(sizes[dimension] for dimension in rule.shape.split())
        for n in range(kept) if "{n}" in rule.source else (0,):
            number = str(n)
            target = rule.target.replace("{n}", number)
            expected.targets[target] = (rule.source.replace("{n}", number), shape)
    return expected


def _embedding_rows(tensors: Mapping[str, SourceTensor]) -> int:
    """Rows of the embedding: a vocabulary is padded to it, whatever config.json says."""
    for ending in ("embed_tokens.weight", "lm_head.weight"):
        for name, tensor in tensors.items():
            if name.endswith(ending) and tensor.shape:
                return tensor.shape[0]
    raise ModelInvalid("the checkpoint has no embed_tokens.weight", "it is not complete")


def _place(name: str, parts: Mapping[Part, _Expected]) -> tuple[Part, str] | str | None:
    """A part and target, or the reason to leave it out, or None where no map knows the name."""
    for prefix, part in PREFIXES:
        if not name.startswith(prefix):
            continue
        rest, expected = name[len(prefix) :], parts[part]
        for ignored_part, pattern, reason in IGNORED:
            if part == ignored_part and re.fullmatch(pattern, rest):
                return reason
        rule = expected.rules.get(_LAYER.sub("{n}", rest, count=1))
        if rule is None:
            continue
        layer = _LAYER.search(rest)
        number = int(layer.group()) if layer else 0
        if layer and number >= expected.kept:
            return BEHIND_FEATURES if number < expected.layers else None
        return part, rule.target.replace("{n}", str(number))
    return None


def _tie(
    checkpoint: Checkpoint,
    found: Mapping[Part, dict[str, SourceTensor]],
    parts: Mapping[Part, _Expected],
) -> None:
    """Where one tensor is embedding and head at once, llama.cpp wants the embedding only.

    A checkpoint that says so and still holds both is taken at its tensors, as transformers does.
    """
    text, head = found["text"], found["head"]
    if not checkpoint.text.tied:
        return
    if "token_embd.weight" not in text and "output.weight" in head:
        text["token_embd.weight"] = head.pop("output.weight")
    if "output.weight" not in head:
        del parts["head"].targets["output.weight"]


def _check(found: Mapping[str, SourceTensor], expected: _Expected) -> None:
    for target, (source, shape) in expected.targets.items():
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
