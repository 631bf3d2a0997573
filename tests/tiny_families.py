"""Tiny random GGUF models of families that are no LLaVA, written tensor by tensor.

SmolVLM (SigLIP, pixel shuffle, tiles), Gemma 3 (rows of a picture see each other), Qwen2-VL and
Qwen2.5-VL (M-RoPE; windows in the latter's tower) and Pixtral (rotary tower, a break behind each
row of patches). Text: hidden 64, FFN 96, 2 layers, 2 heads of 32. Neither torch nor a converter is
needed; `tests/families_torch.py` puts the same numbers into transformers' models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGUFWriter

Array = npt.NDArray[np.float32]
HIDDEN, FFN, HEADS, HEAD, LAYERS = 64, 96, 2, 32, 2
TOWER, TOWER_FFN, TOWER_LAYERS = 64, 128, 2
CONTROLS = (
    "<unk>", "<s>", "</s>", "<image>", "<start_of_image>", "<end_of_image>", "<start_of_turn>",
    "<end_of_turn>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|image_pad|>",
    "<|vision_end|>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>",
    "[INST]", "[/INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]",
)  # fmt: skip
MERGES = ("t h", "Ċ Ċ", "Ġ t")
_NORMAL, _CONTROL = 1, 3
TURNS = (
    "{% for m in messages %}OPEN{{ m['role'] }}\n{% for p in m['content'] %}"
    "{% if p['type'] == 'image' %}IMAGE{% else %}{{ p['text'] }}{% endif %}{% endfor %}CLOSE\n"
    "{% endfor %}{% if add_generation_prompt %}OPENassistant\n{% endif %}"
)


@dataclass(frozen=True)
class Family:
    """What sets a family apart."""

    architecture: str
    projector: str
    template: str
    picture: tuple[int, int]
    """A size (width, height) that the tower reads as it is."""
    patch: int
    side: int
    """`clip.vision.image_size`"""
    vision: Mapping[str, Any] = field(default_factory=dict)
    text: Mapping[str, Any] = field(default_factory=dict)
    add_bos: bool = False


def _chat(opened: str, closed: str, image: str) -> str:
    return TURNS.replace("OPEN", opened).replace("CLOSE", closed).replace("IMAGE", image)


FAMILIES = {
    "smolvlm": Family(
        "llama", "idefics3", _chat("<|im_start|>", "<end_of_utterance>", "<image>"), (32, 32), 8,
        32, {"projector.scale_factor": 2},
    ),
    "gemma3": Family(
        "gemma3", "gemma3",
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
        "{{ raise_exception('there is no system role') }}{% endif %}"
        + _chat("<start_of_turn>", "<end_of_turn>", "<start_of_image>")
        .replace("{{ p['text'] }}", "{{ p['text'] | trim }}"),
        (48, 48), 8, 48, {"projector.scale_factor": 2}, {"attention.sliding_window": 512},
        add_bos=True,
    ),
    "qwen2vl": Family(
        "qwen2vl", "qwen2vl_merger",
        _chat("<|im_start|>", "<|im_end|>", "<|vision_start|><|image_pad|><|vision_end|>"),
        (112, 84), 14, 560, {}, {"rope.dimension_sections": [4, 6, 6, 0]},
    ),
    "qwen2.5vl": Family(
        "qwen2vl", "qwen2.5vl_merger",
        _chat("<|im_start|>", "<|im_end|>", "<|vision_start|><|image_pad|><|vision_end|>"),
        (224, 168), 14, 560, {"n_wa_pattern": 2}, {"rope.dimension_sections": [4, 6, 6, 0]},
    ),
    "pixtral": Family(
        "llama", "pixtral",
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}"
        "{{ m['content'] + eos_token }}{% elif m['role'] == 'user' %}[INST]"
        "{% for p in m['content'] %}{% if p['type'] == 'image' %}[IMG]{% else %}{{ p['text'] }}"
        "{% endif %}{% endfor %}[/INST]{% endif %}{% endfor %}",
        (48, 32), 8, 64, add_bos=True,
    ),
}  # fmt: skip


def build(folder: Path, name: str, *, seed: int = 0, gain: float = 4.0) -> Path:
    """A folder with `NAME.gguf` and `mmproj-NAME.gguf`; `gain` widens the logits."""
    family = FAMILIES[name]
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    text, tower = text_tensors(family, rng, gain), tower_tensors(family, rng)
    if name == "pixtral":
        row = text["token_embd.weight"][CONTROLS.index("[IMG_BREAK]")]
        tower["v.token_embd.img_break"] = row
    _text(family, text, folder / f"{name}.gguf")
    _mmproj(family, tower, folder / f"mmproj-{name}.gguf")
    return folder


def vocabulary() -> list[str]:
    """Special tokens, GPT-2's letters for the 256 bytes, and what the merges make."""
    return [*CONTROLS, *_byte_letters(), *(merge.replace(" ", "") for merge in MERGES)]


def text_tensors(family: Family, rng: np.random.Generator, gain: float) -> dict[str, Array]:
    """The language model's tensors by GGUF's names, in numpy's order of dimensions."""
    words = len(vocabulary())
    gemma = family.architecture == "gemma3"
    tensors = {
        # Gemma multiplies its embeddings by the root of their width
        "token_embd.weight": _normal(rng, (words, HIDDEN), 0.125 if gemma else 1.0),
        "output.weight": _normal(rng, (words, HIDDEN), gain / HIDDEN**0.5),
        "output_norm.weight": _around_one(rng, HIDDEN),
    }
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            tensors[f"{block}.{name}.weight"] = _matrix(rng, HEADS * HEAD, HIDDEN)
            if family.architecture == "qwen2vl" and name != "attn_output":
                tensors[f"{block}.{name}.bias"] = _normal(rng, (HEADS * HEAD,), 0.1)
        tensors[f"{block}.ffn_gate.weight"] = _matrix(rng, FFN, HIDDEN)
        tensors[f"{block}.ffn_up.weight"] = _matrix(rng, FFN, HIDDEN)
        tensors[f"{block}.ffn_down.weight"] = _matrix(rng, HIDDEN, FFN)
        norms = {"attn_norm": HIDDEN, "ffn_norm": HIDDEN}
        if gemma:
            norms |= {"post_attention_norm": HIDDEN, "post_ffw_norm": HIDDEN}
            norms |= {"attn_q_norm": HEAD, "attn_k_norm": HEAD}
        for name, width in norms.items():
            tensors[f"{block}.{name}.weight"] = _around_one(rng, width)
    return tensors


def tower_tensors(family: Family, rng: np.random.Generator) -> dict[str, Array]:
    """The tensors of tower and projector."""
    if family.projector == "pixtral":
        return pixtral_tensors(family, rng)
    if family.projector == "qwen2.5vl_merger":
        return qwen25_tensors(family, rng)
    qwen, patch = family.projector == "qwen2vl_merger", family.patch
    tensors = {"v.patch_embd.weight": _normal(rng, (TOWER, 3, patch, patch), 0.7 / patch)}
    if qwen:
        tensors["v.patch_embd.weight.1"] = _normal(rng, (TOWER, 3, patch, patch), 0.7 / patch)
    else:
        count = (family.side // patch) ** 2
        tensors["v.patch_embd.bias"] = _normal(rng, (TOWER,), 0.1)
        tensors["v.position_embd.weight"] = _normal(rng, (count, TOWER), 0.7)
    for layer in range(TOWER_LAYERS):
        block = f"v.blk.{layer}"
        shapes = {"attn_q": (TOWER, TOWER), "attn_k": (TOWER, TOWER), "attn_v": (TOWER, TOWER),
                  "attn_out": (TOWER, TOWER), "ffn_up": (TOWER_FFN, TOWER),
                  "ffn_down": (TOWER, TOWER_FFN)}  # fmt: skip
        for name, shape in shapes.items():
            tensors[f"{block}.{name}.weight"] = _matrix(rng, *shape)
            tensors[f"{block}.{name}.bias"] = _normal(rng, shape[:1], 0.1)
        for name in ("ln1", "ln2"):
            tensors |= _norm(rng, f"{block}.{name}")
    tensors |= _norm(rng, "v.post_ln")
    if qwen:
        tensors |= _merger(rng)
    elif family.projector == "gemma3":
        tensors["mm.input_projection.weight"] = _matrix(rng, HIDDEN, TOWER).T.copy()
        tensors["mm.soft_emb_norm.weight"] = _around_one(rng, TOWER)
    else:
        tensors["mm.model.fc.weight"] = _matrix(rng, HIDDEN, 4 * TOWER)
    return tensors


def pixtral_tensors(family: Family, rng: np.random.Generator) -> dict[str, Array]:
    """Pixtral's: gated feed-forward parts, norms without bias, no learned positions."""
    tensors = {
        "v.patch_embd.weight": _normal(rng, (TOWER, 3, family.patch, family.patch), 0.1),
        "v.pre_ln.weight": _around_one(rng, TOWER),
        "mm.1.weight": _matrix(rng, HIDDEN, TOWER),
        "mm.1.bias": _normal(rng, (HIDDEN,), 0.1),
        "mm.2.weight": _matrix(rng, HIDDEN, HIDDEN),
        "mm.2.bias": _normal(rng, (HIDDEN,), 0.1),
    }
    return tensors | _gated_layers(rng)


def qwen25_tensors(family: Family, rng: np.random.Generator) -> dict[str, Array]:
    """Qwen2.5-VL's: as Pixtral's, but with biases, and with Qwen2-VL's patches and projector."""
    layers = _gated_layers(rng)
    biases = {
        name.replace("weight", "bias"): _normal(rng, values.shape[:1], 0.1)
        for name, values in layers.items()
        if ".ln" not in name
    }
    shape = (TOWER, 3, family.patch, family.patch)
    patches = {f"v.patch_embd.weight{end}": _normal(rng, shape, 0.05) for end in ("", ".1")}
    norm = {"v.post_ln.weight": _around_one(rng, TOWER)}
    return patches | layers | biases | norm | _merger(rng)


def _gated_layers(rng: np.random.Generator) -> dict[str, Array]:
    tensors = {}
    for layer in range(TOWER_LAYERS):
        block = f"v.blk.{layer}"
        for name in ("attn_q", "attn_k", "attn_v", "attn_out"):
            tensors[f"{block}.{name}.weight"] = _matrix(rng, TOWER, TOWER)
        for name in ("ffn_gate", "ffn_up"):
            tensors[f"{block}.{name}.weight"] = _matrix(rng, TOWER_FFN, TOWER)
        tensors[f"{block}.ffn_down.weight"] = _matrix(rng, TOWER, TOWER_FFN)
        for name in ("ln1", "ln2"):
            tensors[f"{block}.{name}.weight"] = _around_one(rng, TOWER)
    return tensors


def _merger(rng: np.random.Generator) -> dict[str, Array]:
    return {
        "mm.0.weight": _matrix(rng, 4 * TOWER, 4 * TOWER),
        "mm.0.bias": _normal(rng, (4 * TOWER,), 0.1),
        "mm.2.weight": _matrix(rng, HIDDEN, 4 * TOWER),
        "mm.2.bias": _normal(rng, (HIDDEN,), 0.1),
    }


def _text(family: Family, tensors: Mapping[str, Array], path: Path) -> None:
    writer = GGUFWriter(path, family.architecture)
    writer.add_type("model")
    writer.add_file_type(0)
    writer.add_block_count(LAYERS)
    writer.add_context_length(2048)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_key_length(HEAD)
    writer.add_value_length(HEAD)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(HEAD)
    writer.add_rope_freq_base(10000.0)
    words = vocabulary()
    writer.add_vocab_size(len(words))
    _add(writer, family.architecture, family.text)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(words)
    kinds = [_CONTROL if place < len(CONTROLS) else _NORMAL for place in range(len(words))]
    writer.add_token_types(kinds)
    writer.add_token_merges(list(MERGES))
    writer.add_bos_token_id(words.index("<s>"))
    writer.add_eos_token_id(words.index("</s>"))
    writer.add_add_bos_token(family.add_bos)
    writer.add_chat_template(family.template)
    _finish(writer, tensors)


def _mmproj(family: Family, tensors: Mapping[str, Array], path: Path) -> None:
    writer = GGUFWriter(path, "clip")
    writer.add_type("mmproj")
    writer.add_file_type(0)
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string("clip.projector_type", family.projector)
    if family.projector != "qwen2vl_merger":  # whose activation is llama.cpp's default
        gated = family.projector in ("pixtral", "qwen2.5vl_merger")
        writer.add_bool(f"clip.use_{'silu' if gated else 'gelu'}", True)
    numbers = {"image_size": family.side, "patch_size": family.patch, "embedding_length": TOWER,
               "feed_forward_length": TOWER_FFN, "block_count": TOWER_LAYERS,
               "attention.head_count": 2, "projection_dim": HIDDEN, **family.vision}  # fmt: skip
    _add(writer, "clip.vision", numbers)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-6)
    writer.add_array("clip.vision.image_mean", [0.5, 0.5, 0.5])
    writer.add_array("clip.vision.image_std", [0.5, 0.5, 0.5])
    _finish(writer, tensors)


def _add(writer: GGUFWriter, prefix: str, keys: Mapping[str, Any]) -> None:
    for key, value in keys.items():
        if isinstance(value, list):
            writer.add_array(f"{prefix}.{key}", value)
        else:
            writer.add_uint32(f"{prefix}.{key}", value)


def _finish(writer: GGUFWriter, tensors: Mapping[str, Array]) -> None:
    for name, values in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(values, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _byte_letters() -> list[str]:
    """GPT-2's: printable bytes stand for themselves, the others for letters from 256 on."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte if byte in plain else next(others)) for byte in range(256)]


def _normal(rng: np.random.Generator, shape: tuple[int, ...], width: float) -> Array:
    return (rng.normal(size=shape) * width).astype(np.float32)


def _matrix(rng: np.random.Generator, rows: int, columns: int) -> Array:
    return _normal(rng, (rows, columns), 1.2 / columns**0.5)


def _around_one(rng: np.random.Generator, width: int) -> Array:
    return np.asarray(1.0 + _normal(rng, (width,), 0.1), np.float32)


def _norm(rng: np.random.Generator, name: str) -> dict[str, Array]:
    return {f"{name}.weight": _around_one(rng, TOWER), f"{name}.bias": _normal(rng, (TOWER,), 0.1)}
