"""A LLaVA checkpoint to Q4_K_M and its mmproj: `llava convert` beside llama.cpp's two steps.

Example: python benchmarks/convert.py --llama-cpp llama.cpp --work /tmp/bench --quick

The checkpoint is random, in LLaVA-1.5's shapes (7B, or 1.1B with --quick), and is made once in the
work folder. llama.cpp's side is its own converter (`convert_hf_to_gguf.py`, from its sources) to
float16, as the source is, and then `llama_model_quantize`, which is what the llama-quantize tool
calls; it writes no mmproj, because its converter cannot. Prints wall time, CPU time, peak memory
and what each side has on the disk at most, and compares the text files: quantised tensors byte by
byte, metadata key by key.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

# Or gguf.py beside this script would stand in for the package `gguf`.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

Shapes = dict[str, tuple[int, ...]]
SHARD_BYTES = 4_900_000_000


@dataclass(frozen=True)
class Size:
    """Numbers of a language model."""

    hidden: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int


SIZES = {
    "7b": Size(4096, 11008, 32, 32, 32, 32064),
    "1.1b": Size(2048, 5632, 22, 32, 4, 32064),
}
TOWER = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
         "num_attention_heads": 16, "image_size": 336, "patch_size": 14}  # fmt: skip


@dataclass(frozen=True)
class Measure:
    """What one command took."""

    wall_s: float
    cpu_s: float
    peak_mb: float
    disk_mb: float
    """Most that lay in its folder at any time."""


def main() -> None:
    """Make, run both, print one JSON document."""
    options = _options()
    work = options.work.resolve()
    source = work / ("llava-1.1b" if options.quick else "llava-7b")
    if not (source / "config.json").is_file():  # apart: its memory would count as the children's
        size = "1.1b" if options.quick else "7b"
        subprocess.run([sys.executable, __file__, "--make", str(source), size], check=True)
    for path in source.iterdir():
        path.read_bytes() if path.stat().st_size < 1 << 20 else _warm(path)
    ours = _measured(
        [sys.executable, "-m", "llava_cli", "convert", str(source), "-o", str(work / "ours"),
         "--quant", "q4_k_m", "--name", "m", "--no-card"], work / "ours",
    )  # fmt: skip
    report: dict[str, Any] = {"ours": asdict(ours), "output_mb": _folder_mb(work / "ours")}
    if options.llama_cpp is not None:
        report |= _theirs(options.llama_cpp.resolve(), source, work, ours)
    sys.stdout.write(json.dumps(report, indent=2) + "\n")


def _theirs(llama_cpp: Path, source: Path, work: Path, ours: Measure) -> dict[str, Any]:
    folder = work / "theirs"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    large, small = folder / "f16.gguf", folder / "q4_k_m.gguf"
    convert = _measured(
        [sys.executable, str(llama_cpp / "convert_hf_to_gguf.py"), str(source), "--outfile",
         str(large), "--outtype", "f16"], folder,
    )  # fmt: skip
    quantise = _measured([sys.executable, __file__, "--quantize", str(large), str(small)], folder)
    total = convert.wall_s + quantise.wall_s
    return {
        "llama.cpp convert": asdict(convert),
        "llama.cpp quantize": asdict(quantise),
        "wall ratio": ours.wall_s / total,
        "cpu ratio": ours.cpu_s / (convert.cpu_s + quantise.cpu_s),
        "text files": compare(work / "ours" / "m-Q4_K_M.gguf", small),
    }


def compare(ours: Path, theirs: Path) -> dict[str, Any]:
    """Tensors whose type or bytes differ, and keys that one side lacks or says differently."""
    from gguf import GGUFReader

    mine, other = GGUFReader(ours), GGUFReader(theirs)
    first = {t.name: t for t in mine.tensors}
    second = {t.name: t for t in other.tensors}
    differing = [
        name
        for name in first.keys() | second.keys()
        if name not in first
        or name not in second
        or first[name].tensor_type != second[name].tensor_type
        or not np.array_equal(first[name].data, second[name].data)
    ]
    keys: dict[str, list[str]] = {}
    for name in sorted(mine.fields.keys() | other.fields.keys()):
        values = [
            reader.fields[name].contents() if name in reader.fields else None
            for reader in (mine, other)
        ]
        if values[0] != values[1]:
            keys[name] = [repr(value)[:80] for value in values]
    return {"tensors": len(first), "differing tensors": sorted(differing), "differing keys": keys}


def make_checkpoint(folder: Path, size: Size) -> None:
    """Random weights in llava-hf's layout, float16, in shards."""
    folder.mkdir(parents=True, exist_ok=True)
    _tokenizer(folder)
    noise = np.random.default_rng(0).standard_normal(1 << 26, np.float32).astype(np.float16)
    noise *= np.float16(0.02)
    places: dict[str, str] = {}
    for number, shard in enumerate(_shards(_shapes(size))):
        name = f"model-{number + 1:05}.safetensors"
        _write_shard(folder / name, shard, noise)
        places |= dict.fromkeys(shard, name)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    square = {"height": 336, "width": 336}
    settings = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 336},
                "crop_size": square, "do_center_crop": True, "resample": 3}  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps(_config(size)))


def _config(size: Size) -> dict[str, Any]:
    return {
        "architectures": ["LlavaForConditionalGeneration"], "model_type": "llava",
        "image_token_index": 32000, "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default", "projector_hidden_act": "gelu",
        "llava_prompt_format": "vicuna_v1", "torch_dtype": "float16",
        "text_config": {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama",
            "vocab_size": size.vocabulary,
            "hidden_size": size.hidden, "intermediate_size": size.ffn, "rms_norm_eps": 1e-5,
            "num_hidden_layers": size.layers, "num_attention_heads": size.heads,
            "num_key_value_heads": size.kv_heads, "max_position_embeddings": 4096,
            "rope_theta": 10000.0, "torch_dtype": "float16",
        },
        "vision_config": {"model_type": "clip_vision_model", **TOWER},
    }  # fmt: skip


def _shapes(size: Size) -> Shapes:
    """Every tensor in the order of the file."""
    hidden, kv = size.hidden, size.hidden // size.heads * size.kv_heads
    text, tower = "language_model.model.", "vision_tower.vision_model."
    shapes: Shapes = {f"{text}embed_tokens.weight": (size.vocabulary, hidden)}
    for n in range(size.layers):
        layer = f"{text}layers.{n}."
        for name, shape in (
            ("self_attn.q_proj", (hidden, hidden)), ("self_attn.k_proj", (kv, hidden)),
            ("self_attn.v_proj", (kv, hidden)), ("self_attn.o_proj", (hidden, hidden)),
            ("mlp.gate_proj", (size.ffn, hidden)), ("mlp.up_proj", (size.ffn, hidden)),
            ("mlp.down_proj", (hidden, size.ffn)), ("input_layernorm", (hidden,)),
            ("post_attention_layernorm", (hidden,)),
        ):  # fmt: skip
            shapes[f"{layer}{name}.weight"] = shape
    shapes[f"{text}norm.weight"] = (hidden,)
    shapes["language_model.lm_head.weight"] = (size.vocabulary, hidden)
    wide, ffn, patch = TOWER["hidden_size"], TOWER["intermediate_size"], TOWER["patch_size"]
    shapes[f"{tower}embeddings.class_embedding"] = (wide,)
    shapes[f"{tower}embeddings.patch_embedding.weight"] = (wide, 3, patch, patch)
    shapes[f"{tower}embeddings.position_embedding.weight"] = (577, wide)
    norms = ["pre_layrnorm", "post_layernorm"]
    for n in range(TOWER["num_hidden_layers"]):
        layer = f"encoder.layers.{n}."
        norms += [f"{layer}layer_norm1", f"{layer}layer_norm2"]
        for name, rows, columns in (
            *((f"self_attn.{x}_proj", wide, wide) for x in ("q", "k", "v", "out")),
            ("mlp.fc1", ffn, wide), ("mlp.fc2", wide, ffn),
        ):  # fmt: skip
            shapes[f"{tower}{layer}{name}.weight"] = (rows, columns)
            shapes[f"{tower}{layer}{name}.bias"] = (rows,)
    for norm in norms:
        shapes[f"{tower}{norm}.weight"] = shapes[f"{tower}{norm}.bias"] = (wide,)
    for name, columns in (("linear_1", wide), ("linear_2", hidden)):
        shapes[f"multi_modal_projector.{name}.weight"] = (hidden, columns)
        shapes[f"multi_modal_projector.{name}.bias"] = (hidden,)
    return shapes


def _shards(shapes: Shapes) -> Iterator[Shapes]:
    shard: Shapes = {}
    filled = 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        if filled + size > SHARD_BYTES and shard:
            yield shard
            shard, filled = {}, 0
        shard[name] = shape
        filled += size
    yield shard


def _write_shard(path: Path, shapes: Shapes, noise: Any) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name, shape in shapes.items():
        end = place + 2 * int(np.prod(shape))
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [place, end]}
        place = end
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for number, shape in enumerate(shapes.values()):
            count = int(np.prod(shape))
            while count:
                start = (number * 7919) % (noise.size // 2)
                part = noise[start : start + min(count, noise.size - start)]
                file.write(part.data)
                count -= part.size


def _tokenizer(folder: Path) -> None:
    import sentencepiece

    words = "a small random vocabulary, for a benchmark that reads no text at all. 0123456789"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([words] * 8), model_prefix=str(folder / "tokenizer"),
        vocab_size=300, model_type="bpe", byte_fallback=True, hard_vocab_limit=False,
        normalization_rule_name="identity", minloglevel=2,
    )  # fmt: skip
    (folder / "tokenizer.vocab").unlink()
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False,
                "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def _measured(command: list[str], folder: Path) -> Measure:
    """Run once; what lies in `folder` is looked at all the time."""
    start, most, done = time.perf_counter(), 0.0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.2):
            most = max(most, _folder_mb(folder))

    watcher = threading.Thread(target=watch)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
    watcher.start()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    done.set()
    watcher.join()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"exit code {process.returncode}: {' '.join(command)}")
    unit = 1 if sys.platform == "darwin" else 1024
    most = max(most, _folder_mb(folder))
    cpu = usage.ru_utime + usage.ru_stime
    return Measure(wall, cpu, usage.ru_maxrss * unit / 1e6, most)


def _folder_mb(folder: Path) -> float:
    total = 0
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            with contextlib.suppress(OSError):
                total += path.stat().st_size
    return total / 1e6


def _warm(path: Path) -> None:
    """Into the page cache, so that neither side waits for a cold disk."""
    with path.open("rb") as file:
        while file.read(1 << 24):
            pass


def _quantise(source: str, target: str) -> None:
    """llama-quantize's work."""
    import llama_cpp

    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = 15  # MOSTLY_Q4_K_M
    code = llama_cpp.llama_model_quantize(
        source.encode(), target.encode(), ctypes.byref(parameters)
    )
    raise SystemExit(code)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the 1.1B shape")
    parser.add_argument("--work", type=Path, default=Path("benchmark-convert"))
    parser.add_argument("--llama-cpp", type=Path, help="llama.cpp's sources")
    parser.add_argument("--quantize", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--make", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make:
        make_checkpoint(Path(options.make[0]), SIZES[options.make[1]])
        raise SystemExit(0)
    if options.quantize:
        _quantise(*options.quantize)
    return options


if __name__ == "__main__":
    main()
