"""LLaVA-shaped GGUF files with random weights, for benchmarks: their speed is that of real ones.

    python benchmarks/llama/random_models.py --shape 1.1b -o models

Blocks of Q4_K and Q6_K are filled with random bytes and a scale that keeps activations finite;
answers are nonsense. The vocabulary is made up, but for the words that are asked: a question has
about as many tokens as for a real model. Nothing is downloaded and nothing is committed.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFWriter, TokenType

from llava_cli.engines.layouts.chat_templates import template_of
from llava_cli.prompts import FORMATS

FORMAT = "vicuna_v1"
QUESTION = "What is unusual about this picture? Answer in one sentence."
SECOND = "How many things are there?"
_BLOCK = {Kind.Q4_K: (256, 144), Kind.Q6_K: (256, 210), Kind.F16: (1, 2), Kind.F32: (1, 4)}
_VOCABULARY = 32000


@dataclass(frozen=True)
class Shape:
    """A language model of Llama's kind, with CLIP-L/14-336 in front."""

    layers: int
    width: int
    ffn: int
    heads: int
    kv_heads: int
    tower_layers: int = 23
    tower_width: int = 1024
    tower_ffn: int = 4096
    tower_heads: int = 16
    image: int = 336
    patch: int = 14


SHAPES = {
    "7b": Shape(32, 4096, 11008, 32, 32),
    "1.1b": Shape(22, 2048, 5632, 32, 4),
    "tiny": Shape(2, 256, 512, 4, 2, 2, 128, 256, 2, 56, 14),
}


def make(shape: Shape, folder: Path, name: str) -> tuple[Path, Path]:
    """Write the pair, unless it is there; the text model and the mmproj."""
    folder.mkdir(parents=True, exist_ok=True)
    text, mmproj = folder / f"{name}-Q4_K_M.gguf", folder / f"mmproj-{name}-F16.gguf"
    for path, write in ((text, _write_text), (mmproj, _write_mmproj)):
        if not path.exists():
            aside = path.with_suffix(".part")
            write(shape, aside)
            aside.replace(path)
    return text, mmproj


def _write_text(shape: Shape, path: Path) -> None:
    writer = GGUFWriter(path, "llama")
    writer.add_name("random")
    writer.add_file_type(15)  # Q4_K_M
    writer.add_context_length(4096)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(shape.width // shape.heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(_VOCABULARY)
    writer.add_string("llava.prompt_format", FORMAT)
    writer.add_chat_template(template_of(FORMAT) or "")
    _add_vocabulary(writer)
    _write(writer, _text_tensors(shape))


def _add_vocabulary(writer: GGUFWriter) -> None:
    """SentencePiece's form: specials, bytes, letters, and made-up words."""
    letters = "etaoinshrdlucmfwypvbgkqjxz"
    prompt = FORMATS[FORMAT]
    asked = f"{prompt.system} {prompt.user_open} {prompt.header} {QUESTION} {SECOND}".split()
    words = list(dict.fromkeys(f"\u2581{word}"[:n] for word in asked for n in range(1, 16)))
    words += [*letters, *(f"\u2581{a}" for a in letters)]
    words += [f"\u2581{a}{b}" for a in letters for b in letters]
    words += [f"{a}{b}{c}" for a in letters for b in letters for c in letters]
    words += [f"\u2581{a}{b}{c}" for a in letters for b in letters for c in letters]
    words = list(dict.fromkeys(words))
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    tokens = tokens[:_VOCABULARY]
    kinds = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL]
    kinds += [TokenType.BYTE] * 256 + [TokenType.NORMAL] * (len(tokens) - 259)
    tokens += [f"[PAD{n}]" for n in range(len(tokens), _VOCABULARY)]
    kinds += [TokenType.UNUSED] * (_VOCABULARY - len(kinds))
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(number) for number in range(_VOCABULARY)])
    writer.add_token_types([int(kind) for kind in kinds])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)


def _text_tensors(shape: Shape) -> Iterator[tuple[str, tuple[int, ...], Kind]]:
    """Name, shape in torch's order, type: the mixture of Q4_K_M."""
    width, kv = shape.width, shape.width // shape.heads * shape.kv_heads
    yield "token_embd.weight", (_VOCABULARY, width), Kind.Q4_K
    yield "output_norm.weight", (width,), Kind.F32
    yield "output.weight", (_VOCABULARY, width), Kind.Q6_K
    for layer in range(shape.layers):
        more = layer < shape.layers // 8 or layer >= 7 * shape.layers // 8 or layer % 3 == 2
        fine = Kind.Q6_K if more else Kind.Q4_K
        block = f"blk.{layer}"
        yield f"{block}.attn_norm.weight", (width,), Kind.F32
        yield f"{block}.ffn_norm.weight", (width,), Kind.F32
        yield f"{block}.attn_q.weight", (width, width), Kind.Q4_K
        yield f"{block}.attn_k.weight", (kv, width), Kind.Q4_K
        yield f"{block}.attn_v.weight", (kv, width), fine
        yield f"{block}.attn_output.weight", (width, width), Kind.Q4_K
        yield f"{block}.ffn_gate.weight", (shape.ffn, width), Kind.Q4_K
        yield f"{block}.ffn_up.weight", (shape.ffn, width), Kind.Q4_K
        yield f"{block}.ffn_down.weight", (width, shape.ffn), fine


def _write_mmproj(shape: Shape, path: Path) -> None:
    writer = GGUFWriter(path, "clip")
    writer.add_type("mmproj")
    writer.add_file_type(1)
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string("clip.projector_type", "mlp")
    for key, value in (
        ("image_size", shape.image),
        ("patch_size", shape.patch),
        ("embedding_length", shape.tower_width),
        ("feed_forward_length", shape.tower_ffn),
        ("block_count", shape.tower_layers),
        ("projection_dim", shape.width),
        ("attention.head_count", shape.tower_heads),
    ):
        writer.add_uint32(f"clip.vision.{key}", value)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-5)
    writer.add_array("clip.vision.image_mean", [0.48145466, 0.4578275, 0.40821073])
    writer.add_array("clip.vision.image_std", [0.26862954, 0.26130258, 0.27577711])
    writer.add_array("clip.vision.feature_layer", [shape.tower_layers])
    _write(writer, _tower_tensors(shape))


def _tower_tensors(shape: Shape) -> Iterator[tuple[str, tuple[int, ...], Kind]]:
    width, ffn, patches = shape.tower_width, shape.tower_ffn, (shape.image // shape.patch) ** 2
    yield "v.class_embd", (width,), Kind.F32
    yield "v.patch_embd.weight", (width, 3, shape.patch, shape.patch), Kind.F32
    yield "v.position_embd.weight", (patches + 1, width), Kind.F32
    yield "v.pre_ln.weight", (width,), Kind.F32
    yield "v.pre_ln.bias", (width,), Kind.F32
    for layer in range(shape.tower_layers):
        for name, rows, columns in (
            ("attn_q", width, width),
            ("attn_k", width, width),
            ("attn_v", width, width),
            ("attn_out", width, width),
            ("ffn_up", ffn, width),
            ("ffn_down", width, ffn),
        ):
            yield f"v.blk.{layer}.{name}.weight", (rows, columns), Kind.F16
            yield f"v.blk.{layer}.{name}.bias", (rows,), Kind.F32
        for name in ("ln1", "ln2"):
            yield f"v.blk.{layer}.{name}.weight", (width,), Kind.F32
            yield f"v.blk.{layer}.{name}.bias", (width,), Kind.F32
    yield "mm.0.weight", (shape.width, width), Kind.F16
    yield "mm.0.bias", (shape.width,), Kind.F32
    yield "mm.2.weight", (shape.width, shape.width), Kind.F16
    yield "mm.2.bias", (shape.width,), Kind.F32


def _write(writer: GGUFWriter, tensors: Iterator[tuple[str, tuple[int, ...], Kind]]) -> None:
    """The header with every tensor, then one tensor after the other."""
    listed = list(tensors)
    for name, shape, kind in listed:
        bits = np.dtype({Kind.F32: np.float32, Kind.F16: np.float16}.get(kind, np.uint8))
        writer.add_tensor_info(
            name, _stored(shape, kind), bits, _bytes(shape, kind), raw_dtype=kind
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    rng = np.random.default_rng(0)
    for name, shape, kind in listed:
        writer.write_tensor_data(_random(rng, name, shape, kind))
    writer.close()


def _stored(shape: tuple[int, ...], kind: Kind) -> tuple[int, ...]:
    """Quantised rows are given in bytes."""
    elements, size = _BLOCK[kind]
    return shape if elements == 1 else (*shape[:-1], shape[-1] // elements * size)


def _bytes(shape: tuple[int, ...], kind: Kind) -> int:
    elements, size = _BLOCK[kind]
    return int(np.prod(shape)) // elements * size


def _random(rng: np.random.Generator, name: str, shape: tuple[int, ...], kind: Kind) -> Any:
    """Values of a size that random layers neither blow up nor extinguish."""
    if kind in (Kind.F32, Kind.F16):
        if name.endswith("norm.weight") or ("ln" in name and name.endswith("weight")):
            return np.ones(shape, np.float32)
        scale = 0.02 if len(shape) == 1 else int(np.prod(shape[1:])) ** -0.5
        values = rng.standard_normal(shape, np.float32) * np.float32(scale)
        return values.astype(np.float16 if kind == Kind.F16 else np.float32)
    elements, size = _BLOCK[kind]
    blocks = rng.integers(0, 256, (int(np.prod(shape)) // elements, size), dtype=np.uint8)
    spread = shape[-1] ** -0.5
    if kind == Kind.Q4_K:  # value = d * scale (0..63) * nibble - dmin * minimum
        scales = np.array([spread / 32 / 8, spread / 32], np.float16)
        blocks[:, :4] = scales.view(np.uint8)
    else:  # value = d * scale (-128..127) * (-32..31)
        blocks[:, 208:] = np.array([spread / 64 / 16], np.float16).view(np.uint8)
    return blocks.reshape(_stored(shape, kind))


def main() -> None:
    """Write one pair."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shape", choices=SHAPES, default="1.1b")
    parser.add_argument("-o", "--out", type=Path, default=Path("models"))
    options = parser.parse_args()
    make(SHAPES[options.shape], options.out, f"random-{options.shape}")


if __name__ == "__main__":
    main()
