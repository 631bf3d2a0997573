"""Are our text files llama.cpp's own? Tiny checkpoints through both converters, compared.

Example: python benchmarks/convert_equal.py --work /tmp/equal

llama.cpp's converter is taken from the sources of the installed llama-cpp-python (or --llama-cpp).
For every layout that it supports and every type that it writes: the same tensors, in type and
bytes, and the same metadata but for the keys in `EXPECTED`, which docs/convert.md justifies. Prints
what differs and ends with exit code 1 where anything does that is not expected.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

# Or gguf.py beside this script would stand in for the package `gguf`.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.convert import compare
from benchmarks.llama import programs
from llava_convert.bpe import LLAMA3, QWEN2

TYPES = ("f32", "f16", "bf16", "q8_0")
EXPECTED = {
    "GGUF.kv_count": "the number of keys",
    "general.name": "ours is the folder's or --name, theirs is guessed from it",
    "llava.prompt_format": "so that no reader guesses the prompt",
    "llava.converter": "what made the file",
    "tokenizer.chat_template": "written for the prompt format where the source has none",
    "tokenizer.ggml.add_sep_token": "theirs; no LLaVA has a separator",
}
"""Keys that may differ in every layout, and why."""
SAID_ALOUD = (
    "*.attention.key_length", "*.attention.value_length", "*.rope.dimension_count", "*.vocab_size",
    "tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token",
    "tokenizer.ggml.add_space_prefix", "tokenizer.ggml.bos_token_id",
)  # fmt: skip
"""Keys that llama.cpp does without, because it assumes what they say."""
VOCABULARY = ("tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.ggml.scores")
DRIVER = """
import sys
llama_cpp, rule, source, target, *kinds = sys.argv[1:]
sys.path.insert(0, llama_cpp)
sys.argv[0] = llama_cpp + "/convert_hf_to_gguf.py"
import convert_hf_to_gguf
from conversion.base import TextModel
if rule:
    TextModel.get_vocab_base_pre = lambda self, tokenizer: rule
for kind in kinds:
    sys.argv[1:] = [source, "--outfile", target.format(kind), "--outtype", kind]
    convert_hf_to_gguf.main()
"""


def main() -> None:
    """Every layout and type; a line each."""
    options = _options()
    work: Path = options.work.resolve()
    sources = options.llama_cpp or programs.sources(work / "llama.cpp")
    wrong = 0
    for name, (build, rule) in LAYOUTS.items():
        folder = work / name.replace(" ", "-").lower()
        build(folder / "source")
        convert_all(folder, sources.resolve(), rule)
        for kind in TYPES:
            found = compared(folder, kind)
            keys = {k: v for k, v in found["differing keys"].items() if not expected(k, *v)}
            bad = len(found["differing tensors"]) + len(keys)
            wrong += bad
            told = sorted(found["differing keys"].keys() - keys.keys())
            sys.stdout.write(
                f"{'ok   ' if not bad else 'WRONG'} {name}, {kind}: {found['tensors']} tensors, "
                f"{len(found['differing tensors'])} differ; keys that differ as expected: "
                f"{', '.join(told)}\n"
            )
            for tensor in found["differing tensors"]:
                sys.stdout.write(f"      tensor {tensor}\n")
            for key, (ours, theirs) in keys.items():
                sys.stdout.write(f"      {key}: ours {ours}, theirs {theirs}\n")
    raise SystemExit(1 if wrong else 0)


def convert_all(folder: Path, sources: Path, rule: str) -> None:
    """One checkpoint in every type, by us and by llama.cpp's converter."""
    source = str(folder / "source")
    command = [sys.executable, "-m", "llava_cli", "convert", source, "-o", str(folder), "--quant",
               ",".join(TYPES), "--name", "ours", "--no-card", "--quiet"]  # fmt: skip
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    target = str(folder / "theirs-{}.gguf")
    command = [sys.executable, "-c", DRIVER, str(sources), rule, source, target, *TYPES]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"convert_hf_to_gguf.py {source}: {done.stderr[-1500:]}")


def expected(key: str, ours: str, theirs: str) -> bool:
    """Whether a difference is one of those that the guide lists."""
    absent = theirs == repr(None)
    return key in EXPECTED or (absent and any(fnmatch(key, name) for name in SAID_ALOUD))


def compared(folder: Path, kind: str) -> dict[str, Any]:
    """What differs between the two files of one type."""
    theirs = folder / f"theirs-{kind}.gguf"
    mine = folder / f"ours-{kind.upper()}.gguf"
    found = compare(mine, theirs)
    if named_by_us(mine, theirs):
        for key in VOCABULARY:
            found["differing keys"].pop(key, None)
    return found


def named_by_us(ours: Path, theirs: Path) -> bool:
    """Whether the vocabularies differ only in added tokens that the other side calls [PAD...].

    transformers 5 no longer lists added tokens where llama.cpp's converter looks for them.
    """
    from gguf import GGUFReader

    columns = []
    for path in (ours, theirs):
        fields = GGUFReader(path).fields
        columns.append([fields[key].contents() for key in VOCABULARY if key in fields])
    rows = [list(zip(*side, strict=True)) for side in columns]
    return len(rows[0]) == len(rows[1]) and all(
        mine == other or other[0].startswith("[PAD") for mine, other in zip(*rows, strict=True)
    )


def vicuna(folder: Path) -> None:
    """Llama with a SentencePiece vocabulary, its tokenizer.model kept."""
    _llava(folder, "LlamaConfig", _spm(folder))


def mistral(folder: Path) -> None:
    """Mistral: shared key heads."""
    sizes = {"num_key_value_heads": 2, "sliding_window": None}
    _llava(folder, "MistralConfig", _spm(folder), **sizes)


def llama_3(folder: Path) -> None:
    """Llama 3.1: byte-level BPE that skips merges for whole words, scaled rope."""
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64}  # fmt: skip
    tokens = _bpe(LLAMA3, whole_words=True)
    _llava(folder, "LlamaConfig", tokens, num_key_value_heads=2, rope_parameters=rope)


def qwen2(folder: Path) -> None:
    """Qwen2: byte-level BPE, biases of q, k and v, no BOS."""
    _llava(folder, "Qwen2Config", _bpe(QWEN2, bos=False), num_key_value_heads=2)


LAYOUTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "Vicuna SentencePiece": (vicuna, ""),
    "Mistral SentencePiece": (mistral, ""),
    "Llama 3 BPE": (llama_3, "llama-bpe"),
    "Qwen2 BPE": (qwen2, "qwen2"),
}
"""What llama.cpp's converter can read of a LLaVA. It knows published vocabularies by hash only, and
is told the name of the word rule for ours."""


def _llava(folder: Path, kind: str, tokens: Any, **text: Any) -> None:
    """A tiny random LLaVA-1.5 in llava-hf's layout, written by transformers."""
    import torch
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3,
             "num_attention_heads": 8, "num_key_value_heads": 8,
             "max_position_embeddings": 512}  # fmt: skip
    inner = getattr(transformers, kind)(
        vocab_size=-(-len(tokens) // 32) * 32, bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id, **{**sizes, **text},
    )  # fmt: skip
    inner.architectures = [kind.replace("Config", "ForCausalLM")]
    vision = transformers.CLIPVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=2,
        image_size=56, patch_size=14,
    )  # fmt: skip
    config = transformers.LlavaConfig(
        vision_config=vision, text_config=inner,
        image_token_index=tokens.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    model: Any = transformers.LlavaForConditionalGeneration(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokens.save_pretrained(folder)
    square = {"height": 56, "width": 56}
    settings = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 56},
                "crop_size": square, "do_center_crop": True, "resample": 3}  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    saved = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**saved, "llava_prompt_format": "vicuna_v1"}))


def _spm(folder: Path) -> Any:
    from tests import tiny

    return tiny.spm_tokenizer(folder)


def _bpe(expression: str, *, bos: bool = True, whole_words: bool = False) -> Any:
    """A byte-level BPE with a family's rule for words."""
    from transformers import PreTrainedTokenizerFast

    from tests import tiny

    settings = json.loads(tiny.bpe_tokenizer().backend_tokenizer.to_str())
    settings["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated",
             "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
             "use_regex": False},
        ],
    }  # fmt: skip
    settings["model"]["ignore_merges"] = whole_words
    names = {"eos_token": "</s>", "pad_token": "<pad>"}
    if bos:
        names["bos_token"] = "<s>"
    else:
        settings["post_processor"] = None
    from tokenizers import Tokenizer

    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(settings)),
        additional_special_tokens=["<image>"],
        **names,
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("benchmark-equal"))
    parser.add_argument("--llama-cpp", type=Path, help="llama.cpp's sources")
    return parser.parse_args()


if __name__ == "__main__":
    main()
