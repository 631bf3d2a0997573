"""Which of llama.cpp's word rules splits texts like a tokenizer does, found by trying them all.

llama.cpp knows the rule that cuts a text into words before merging only by a name. A rule whose
expression is known needs no trial (`bpe.py`); for the rest each name is put into a vocabulary of
its own, loaded, and compared with the source's tokenizer on texts of many scripts. One that differs
anywhere is not taken.
"""

from __future__ import annotations

import ctypes
import json
import random
import tempfile
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gguf import GGUFWriter, TokenType

from llava_cli.errors import MissingDependency

CANDIDATES = (
    "gpt-2", "llama-bpe", "smaug-bpe", "qwen2", "qwen35", "smollm", "gpt-4o", "tekken",
    "deepseek-llm",
    "deepseek-coder", "deepseek-v3", "falcon", "starcoder", "refact", "command-r", "stablelm2",
    "olmo", "dbrx", "mpt", "phi-2", "poro-chat", "viking", "jais", "codeshell", "bloom",
    "chatglm-bpe", "gpt3-finnish", "exaone", "exaone4", "chameleon", "minerva-7b", "megrez",
    "superbpe", "trillion", "granite-docling", "bailingmoe", "seed-coder", "hunyuan",
    "hunyuan-dense", "kimi-k2", "grok-2",
    "afmoe", "jina-v2-es", "jina-v2-code", "llama4", "glm4", "falcon3", "pixtral", "default",
)  # fmt: skip
"""llama.cpp's names, the likely ones first; one that this build does not have is passed over."""

_WORDS = (
    "the red circle I'm you're THEY'LL don't it's 'tis 123 3.14 1,000,000 20260 foo_bar naïve "
    "https://x.org/?a=b#c Füße 東京の写真 привет мир שלום مرحبا नमस्ते ไทย 한국어 🙂 👩‍👩‍👧"
    " ½ ² Ⅷ ١٢٣ ... !? "
    '(a) [b] {c} <d> "e" `f` $5 50% @x #y ~z ^ & * + = | \\ / ; : — – … « »'
).split(" ")
_GAPS = (" ", "  ", "\n", "\n\n", "\r\n", "\t", " \n ", "", "   ")


def find_rule(
    tokenizer: Mapping[str, Any], tokens: Sequence[str], merges: Sequence[str]
) -> str | None:
    """The name of a rule that gives the tokenizer's ids on every probe; None where none does."""
    expected = _reference(tokenizer)
    texts = list(probes())
    wanted = [expected(text) for text in texts]
    added = {str(t["content"]) for t in tokenizer.get("added_tokens") or []}
    types = [TokenType.CONTROL if text in added else TokenType.NORMAL for text in tokens]
    for name in CANDIDATES:
        with _vocabulary(name, tokens, types, merges) as ids:
            if ids is not None and all(
                ids(text) == want for text, want in zip(texts, wanted, strict=True)
            ):
                return name
    return None


def probes() -> Iterator[str]:
    """Some hundred texts that tell rules apart; composed, as tokenizers' normalisers leave them."""
    draw = random.Random(11)
    yield from (" ", "  a", "a  b", "\n \n", "a\n\n\nb", "1234567", "12 34", "don't DON'T", "\t\tx")
    for _ in range(300):
        count = draw.randint(1, 9)
        text = "".join(draw.choice(_WORDS) + draw.choice(_GAPS) for _ in range(count))
        yield unicodedata.normalize("NFC", text)


def _reference(tokenizer: Mapping[str, Any]) -> Callable[[str], list[int]]:
    """The source's tokenizer, without looking for special tokens."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingDependency(
            "this tokenizer's word rule must be tried out, which needs the package tokenizers",
            "pip install 'llava-cli[torch]'",
        ) from error
    loaded = Tokenizer.from_str(json.dumps(tokenizer))
    loaded.encode_special_tokens = True
    return lambda text: list(loaded.encode(text, add_special_tokens=False).ids)


@contextmanager
def _vocabulary(
    name: str, tokens: Sequence[str], types: Sequence[TokenType], merges: Sequence[str]
) -> Iterator[Callable[[str], list[int]] | None]:
    """llama.cpp's tokenizer with this rule; None where the build does not know it."""
    from llava_cli.engines.gguf import binding

    binding.start()
    lib = binding.lib
    with tempfile.TemporaryDirectory(prefix="llava-rule-") as folder:
        path = Path(folder) / "vocabulary.gguf"
        _write(path, name, tokens, types, merges)
        parameters = lib.llama_model_default_params()
        parameters.vocab_only = True
        model = lib.llama_model_load_from_file(str(path).encode(), parameters)
    if not model:
        yield None
        return
    vocabulary = lib.llama_model_get_vocab(model)

    def ids(text: str) -> list[int]:
        data = text.encode()
        buffer = (ctypes.c_int32 * (len(data) + 8))()
        count = lib.llama_tokenize(vocabulary, data, len(data), buffer, len(buffer), False, False)
        return list(buffer[: max(count, 0)])

    try:
        yield ids
    finally:
        lib.llama_model_free(model)


def _write(
    path: Path, name: str, tokens: Sequence[str], types: Sequence[TokenType], merges: Sequence[str]
) -> None:
    """A GGUF that holds a vocabulary and nothing else."""
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(8)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(32)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(name)
    writer.add_token_list(list(tokens))
    writer.add_token_types([int(kind) for kind in types])
    writer.add_token_merges(list(merges) or ["[none] [none]"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
