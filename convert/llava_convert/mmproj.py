"""The mmproj GGUF of a CLIP or SigLIP tower and LLaVA's projector: its metadata and tensors.

Only the layers that `vision_feature_layer` reads are written, and `clip.vision.feature_layer`
always is: without it llama.cpp runs one layer less than the file holds. The norm behind the tower
is never written, because llama.cpp would apply it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from gguf import GGUFValueType, GGUFWriter

from llava_cli.engines.layouts.tensors import Array, Tensor, constant, each, whole
from llava_cli.errors import ModelInvalid
from llava_convert.checkpoints import Checkpoint, Tiles, VisionShape
from llava_convert.gguf_file import PlannedTensor
from llava_convert.mixtures import OutType
from llava_convert.text import QUANTIZATION_VERSION, add_facts

FULL = ("v.patch_embd.weight", "v.position_embd.weight")
"""Always float32."""
QUICK_GELU_GAIN = 1.702
"""quick_gelu(x) = x sigmoid(1.702 x) = silu(1.702 x) / 1.702. llama.cpp looks quick_gelu up in a
float16 table, but computes silu in float32: written as silu, features are 400 times closer to
transformers'."""
LINEAR_GAIN = 16.0
"""gelu(x) - gelu(-x) = x, but llama.cpp looks gelu up in a float16 table below |x| = 10: a gain
before it, taken back behind it, makes its error as many times smaller. A power of two, so that it
costs no precision itself."""


def plan_mmproj(checkpoint: Checkpoint, tensors: Mapping[str, Tensor]) -> tuple[PlannedTensor, ...]:
    """The tensors of the mmproj: tower by layers, then the projector."""
    vision, text = checkpoint.vision, checkpoint.text
    if checkpoint.tiles is not None and checkpoint.tiles.vision_aspect_ratio != "anyres":
        raise ModelInvalid(
            f"tiles of the kind {checkpoint.tiles.vision_aspect_ratio} cannot be run by llama.cpp: "
            "features of large pictures are shrunk before they are packed",
            "LLaVA-1.6's `anyres` can be converted; --to hf keeps this model for transformers",
        )
    tower = sorted((n for n in tensors if n.startswith("v.")), key=_order)  # the newline too
    plan = [_tower_tensor(name, tensors[name], vision) for name in tower]
    for name, outputs in (("mm.0", text.hidden), ("mm.2", text.hidden)):
        weight, bias = tensors[f"{name}.weight"], tensors.get(f"{name}.bias")
        if checkpoint.projector.linear:
            plan += _linear(name, weight, bias)
            continue
        plan.append(_plain(f"{name}.weight", weight))
        plan.append(_plain(f"{name}.bias", bias) if bias else _zeros(f"{name}.bias", outputs))
    return tuple(plan)


def mmproj_header(checkpoint: Checkpoint, wanted: OutType, name: str) -> GGUFWriter:
    """Everything about the tower, the projector and the preparation of pictures."""
    vision = checkpoint.vision
    writer = GGUFWriter(None, "clip")
    writer.add_type("mmproj")
    writer.add_name(name)
    add_facts(writer, checkpoint.source.facts)
    writer.add_file_type(wanted.file_type)
    writer.add_quantization_version(QUANTIZATION_VERSION)
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string("clip.projector_type", "mlp")
    writer.add_uint32("clip.vision.patch_size", vision.patch)
    writer.add_uint32("clip.vision.embedding_length", vision.hidden)
    writer.add_uint32("clip.vision.feed_forward_length", vision.ffn)
    writer.add_uint32("clip.vision.block_count", vision.feature_layer)
    writer.add_uint32("clip.vision.projection_dim", checkpoint.text.hidden)
    writer.add_uint32("clip.vision.attention.head_count", vision.heads)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", vision.eps)
    writer.add_array("clip.vision.feature_layer", [vision.feature_layer])
    writer.add_bool("clip.use_gelu" if vision.activation == "gelu" else "clip.use_silu", True)
    writer.add_string("llava.vision_hidden_act", vision.hidden_act)
    if checkpoint.tiles is not None:
        _add_tiles(writer, checkpoint.tiles)
    for key, value in checkpoint.pixels.to_metadata().items():
        if key == "llava.image_aspect" and checkpoint.tiles is not None:
            value = "anyres"
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        else:
            whole = all(isinstance(item, int) for item in value)
            items = GGUFValueType.UINT32 if whole else GGUFValueType.FLOAT32
            writer.add_key_value(key, value, GGUFValueType.ARRAY, sub_type=items)
    return writer


def _add_tiles(writer: GGUFWriter, tiles: Tiles) -> None:
    """The grid: as transformers means it under our key, as llama.cpp reads it under its own."""
    flat = [side for pair in tiles.pinpoints for side in pair]
    turned = [side for height, width in tiles.pinpoints for side in (width, height)]
    u32 = GGUFValueType.UINT32
    writer.add_key_value("llava.image_grid_pinpoints", flat, GGUFValueType.ARRAY, sub_type=u32)
    writer.add_key_value(
        "clip.vision.image_grid_pinpoints",
        turned,
        GGUFValueType.ARRAY,
        sub_type=GGUFValueType.INT32,
    )
    writer.add_string("llava.vision_aspect_ratio", tiles.vision_aspect_ratio)


def _tower_tensor(name: str, tensor: Tensor, vision: VisionShape) -> PlannedTensor:
    """One tensor of the tower, its FFN in the form that llama.cpp computes exactly."""
    gain = 1.0
    if vision.activation == "quick_gelu":
        if ".ffn_up." in name:
            gain = QUICK_GELU_GAIN
        elif name.endswith(".ffn_down.weight"):
            gain = 1 / QUICK_GELU_GAIN
    if vision.ffn == vision.hidden:  # llama.cpp swaps the two matrices of such a block: swap first
        swapped = {"ffn_up": "ffn_down", "ffn_down": "ffn_up"}
        name = ".".join(swapped.get(piece, piece) for piece in name.split("."))
    if gain == 1.0:
        return _plain(name, tensor)
    factor = np.float32(gain)
    return _plain(name, each(tensor, lambda rows: rows * factor))


def _plain(name: str, tensor: Tensor) -> PlannedTensor:
    return PlannedTensor(name, tensor, full=name in FULL)


def _zeros(name: str, size: int) -> PlannedTensor:
    """A bias that the checkpoint does not have and llama.cpp cannot do without."""
    return PlannedTensor(name, constant(name, np.zeros(size, np.float32)))


def _linear(name: str, weight: Tensor, bias: Tensor | None) -> list[PlannedTensor]:
    """A projector without activation in a graph that always has one.

    mm.0 = [W; -W] and mm.2 = [V, -V], so that V (gelu(Wx + b) - gelu(-Wx - b)) = V (Wx + b).
    """
    rows, columns = weight.shape

    def both(values: Array) -> Array:
        return np.concatenate([values * LINEAR_GAIN, values * -LINEAR_GAIN])

    def beside(values: Array) -> Array:
        return np.concatenate([values / LINEAR_GAIN, values / -LINEAR_GAIN], axis=1)

    shift = bias or constant(f"{name}.bias", np.zeros(rows, np.float32))
    if name == "mm.0":
        return [
            _plain("mm.0.weight", whole(weight, both, (2 * rows, columns))),
            _plain("mm.0.bias", whole(shift, both, (2 * rows,))),
        ]
    return [
        _plain("mm.2.weight", whole(weight, beside, (rows, 2 * columns))),
        _plain("mm.2.bias", shift),
    ]


def _order(name: str) -> tuple[int, int, str]:
    pieces = name.split(".")
    if pieces[1] == "blk":
        return 1, int(pieces[2]), name
    return 0, 0, name
