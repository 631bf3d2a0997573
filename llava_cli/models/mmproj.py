"""What a mmproj is, and whether llama.cpp reads it rightly, found out before it is loaded.

llama.cpp looks for tensors by name and does not miss all of them: without some it ends the process,
with too few layers it computes something else. So every tensor of a LLaVA's mmproj is checked here,
with its shape. Those of other families are llama.cpp's own business (`engines/gguf/families.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from llava_cli.errors import ModelInvalid
from llava_cli.models.gguf_header import GGUFHeader

_TOWER_LAYERS = {768: 12, 1024: 24, 1152: 27, 1280: 32}
"""Width -> layers of the towers that LLaVA models use: CLIP B, L, SigLIP so400m, CLIP H."""
_AGAIN = "convert the model again with: llava convert"
_NUMBERS = ("image_size", "patch_size", "embedding_length", "feed_forward_length", "block_count",
            "attention.head_count")  # fmt: skip

Shape = tuple[int | None, ...]
"""ggml order; None is any size."""

LLAVA_GRAPHS = ("mlp", "mlp_norm", "ldp", "ldpv2")
"""Projectors behind the graph that llama.cpp computes LLaVA's tower with."""
_BY_WHAT_IS_IN_FRONT = ("deepseek4v", "hunyuanvl")
"""Projectors whose pictures are laid out by what stands in front of them."""
_LAST = {
    "mlp": ("mm.2.bias", 0), "pixtral": ("mm.2.weight", 1), "lightonocr": ("mm.2.weight", 1),
    "qwen2vl_merger": ("mm.2.bias", 0), "qwen2.5vl_merger": ("mm.2.bias", 0),
    "qwen3vl_merger": ("mm.2.bias", 0), "lfm2": ("mm.2.weight", 1), "kimivl": ("mm.2.weight", 1),
    "gemma3": ("mm.input_projection.weight", 0), "idefics3": ("mm.model.fc.weight", 1),
    "internvl": ("mm.model.mlp.3.weight", 1), "resampler": ("resampler.proj.weight", 0),
    "ldpv2": ("mm.model.peg.0.bias", 0),
}  # fmt: skip
"""The tensor and the dimension, in ggml's order, that a projector's rows have their width from."""


def projector_of(header: GGUFHeader) -> str:
    """llama.cpp's name of the projector for pictures; LLaVA's where an old file gives none."""
    metadata = header.metadata
    named = metadata.get("clip.vision.projector_type", metadata.get("clip.projector_type"))
    return "mlp" if named is None else str(named)


def is_llava(header: GGUFHeader) -> bool:
    """Whether this is a LLaVA's tower and projector, whose pictures `pixels.py` prepares."""
    layers = header.metadata.get("clip.vision.feature_layer")
    several = isinstance(layers, list) and len(layers) > 1
    return projector_of(header) == "mlp" and not several


def features_width(header: GGUFHeader) -> int | None:
    """Width of a picture's rows; None where the projector is of a kind that is not known here."""
    name, dimension = _LAST.get(projector_of(header), ("", 0))
    tensor = header.tensors.get(name)
    if tensor is None and projector_of(header) == "mlp":
        tensor, dimension = header.tensors.get("mm.0.bias"), 0
    return tensor.shape[dimension] if tensor and dimension < len(tensor.shape) else None


def check_encoder(header: GGUFHeader) -> None:
    """Refuse what would crash llama.cpp or be read wrongly by it."""
    _check_kind(header)
    if not is_llava(header):
        _check_family(header)
        return
    numbers = _numbers(header)
    layers = _layers_run(header, numbers["block_count"])
    for name, shapes in _expected(header.tensors, numbers, layers):
        if name not in header.tensors:
            raise ModelInvalid(
                f"{header.path} is not a complete LLaVA mmproj: it lacks {name}", _AGAIN
            )
        found = header.tensors[name].shape
        if not any(_matches(found, shape) for shape in shapes):
            raise ModelInvalid(
                f"{header.path} is damaged: {name} has the shape {list(found)}", _AGAIN
            )
    first, last = header.tensors["mm.0.weight"].shape, header.tensors["mm.2.weight"].shape
    newline = newline_name(header)
    tiled = "llava.image_grid_pinpoints" in header.metadata or (
        "clip.vision.image_grid_pinpoints" in header.metadata
    )
    if tiled and (newline is None or header.tensors[newline].shape != last[1:]):
        raise ModelInvalid(f"{header.path} cuts pictures into tiles, but has no newline", _AGAIN)
    biases = header.tensors["mm.0.bias"].shape, header.tensors["mm.2.bias"].shape
    if first[1] != last[0] or biases != (first[1:], last[1:]):
        raise ModelInvalid(f"{header.path} is damaged: its projector does not fit together", _AGAIN)


def missing_feature_layer(header: GGUFHeader) -> int | None:
    """The `clip.vision.feature_layer` that a file lacks; None where it has one or needs none.

    Older converters stored one layer fewer than the tower has: all of them are to be run.
    """
    if projector_of(header) not in LLAVA_GRAPHS:
        return None
    if header.metadata.get("clip.vision.feature_layer") is not None:
        return None
    blocks = int(header.metadata["clip.vision.block_count"])
    tower = _TOWER_LAYERS.get(header.metadata["clip.vision.embedding_length"])
    return blocks if blocks + 1 == tower else None


def newline_name(header: GGUFHeader) -> str | None:
    """The tensor that ends a row of tiles, under today's name or that of older converters."""
    names = ("v.image_newline", "model.image_newline")
    return next((name for name in names if name in header.tensors), None)


def _check_kind(header: GGUFHeader) -> None:
    metadata, path = header.metadata, header.path
    projector = projector_of(header)
    seeing = metadata.get("clip.has_vision_encoder")
    if seeing is False or (seeing is None and metadata.get("clip.has_audio_encoder")):
        hears = ", it hears sound" if metadata.get("clip.has_audio_encoder") else ""
        raise ModelInvalid(
            f"{path} has no image encoder{hears}", "give a mmproj that reads pictures"
        )
    if projector in _BY_WHAT_IS_IN_FRONT:
        raise ModelInvalid(
            f"{path} has a projector of kind {projector!r}, which is not supported",
            "use another model, or one of its forms for PyTorch with --engine torch",
        )


def _check_family(header: GGUFHeader) -> None:
    """What would end llama.cpp's process; the rest it finds itself."""
    for key in ("image_size", "patch_size"):
        _number(header, key, 1)
    name, _ = _LAST.get(projector_of(header), ("", 0))
    if name and name not in header.tensors:
        raise ModelInvalid(f"{header.path} is not complete: it lacks {name}", _AGAIN)


def _numbers(header: GGUFHeader) -> dict[str, int]:
    """The tower's numbers, all of which llama.cpp divides or counts by."""
    numbers = {key: _number(header, key, 0 if key == "block_count" else 1) for key in _NUMBERS}
    heads, width = numbers["attention.head_count"], numbers["embedding_length"]
    if width % heads or numbers["image_size"] < numbers["patch_size"]:
        raise ModelInvalid(f"{header.path} is damaged: its numbers do not fit together", _AGAIN)
    return numbers


def _number(header: GGUFHeader, key: str, lowest: int) -> int:
    value = header.metadata.get(f"clip.vision.{key}")
    if not isinstance(value, int) or not lowest <= value < 1 << 24:
        raise ModelInvalid(f"{header.path} gives no usable clip.vision.{key}: {value!r}", _AGAIN)
    return value


def _layers_run(header: GGUFHeader, blocks: int) -> int:
    """How many layers run; without `feature_layer` llama.cpp runs one fewer than there are."""
    layers = header.metadata.get("clip.vision.feature_layer")
    if layers is None:
        tower = _TOWER_LAYERS.get(header.metadata["clip.vision.embedding_length"])
        if blocks == tower:
            return blocks - 1  # all layers stored, one fewer run: LLaVA's "last but one"
        if blocks + 1 == tower:
            return blocks  # `missing_feature_layer`
        raise ModelInvalid(
            f"{header.path} does not say which layer of the image encoder to read "
            "(clip.vision.feature_layer), so llama.cpp would skip its last one",
            _AGAIN,
        )
    if not isinstance(layers, list) or len(layers) != 1 or not 0 <= layers[0] <= blocks:
        raise ModelInvalid(f"{header.path} has a bad clip.vision.feature_layer: {layers!r}", _AGAIN)
    return int(layers[0])


def _expected(
    tensors: Mapping[str, Any], numbers: Mapping[str, int], layers: int
) -> Iterator[tuple[str, tuple[Shape, ...]]]:
    """Every tensor that must be there, with the shapes it may have."""
    width, ffn, patch = (
        numbers[key] for key in ("embedding_length", "feed_forward_length", "patch_size")
    )
    patches = (numbers["image_size"] // patch) ** 2
    has_class = "v.class_embd" in tensors
    if has_class:
        yield "v.class_embd", ((width,), (width, 1))
    yield "v.patch_embd.weight", ((patch, patch, 3, width),)
    yield "v.position_embd.weight", ((width, patches + int(has_class)),)
    for name in ("v.pre_ln.weight", "v.pre_ln.bias", "v.patch_embd.bias"):
        if name in tensors:
            yield name, ((width,),)
    if "v.pre_ln.weight" in tensors:
        yield "v.pre_ln.bias", ((width,),)
    for layer in range(layers):
        block = f"v.blk.{layer}"
        for name in ("attn_q", "attn_k", "attn_v", "attn_out"):
            yield f"{block}.{name}.weight", ((width, width),)
            yield f"{block}.{name}.bias", ((width,),)
        for name in ("ln1", "ln2"):
            yield f"{block}.{name}.weight", ((width,),)
            yield f"{block}.{name}.bias", ((width,),)
        for name in ("ffn_up", "ffn_down"):  # older files have the two names swapped
            yield f"{block}.{name}.weight", ((width, ffn), (ffn, width))
            yield f"{block}.{name}.bias", ((ffn,), (width,))
    yield "mm.0.weight", ((width, None),)
    yield "mm.0.bias", ((None,),)
    yield "mm.2.weight", ((None, None),)
    yield "mm.2.bias", ((None,),)


def _matches(found: tuple[int, ...], wanted: Shape) -> bool:
    return len(found) == len(wanted) and all(
        size in (None, there) for there, size in zip(found, wanted, strict=True)
    )
