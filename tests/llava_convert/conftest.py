"""Tiny checkpoints, made once; readers of the result that share no code with the converter."""

from __future__ import annotations

import importlib.util
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

Values = npt.NDArray[np.float32]
SCRIPTS = (
    (0, 31), (32, 126), (0x7F, 0xA0), (0xA0, 0x2FF), (0x300, 0x36F), (0x370, 0x4FF),
    (0x590, 0x6FF), (0x900, 0x97F), (0xE00, 0xE7F), (0x1100, 0x11FF), (0x1680, 0x1680),
    (0x2000, 0x209F), (0x2150, 0x218F), (0x2190, 0x22FF), (0x2460, 0x24FF), (0x2E80, 0x30FF),
    (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xE000, 0xE0FF), (0xFB00, 0xFB4F), (0xFE00, 0xFE0F),
    (0xFF00, 0xFFEF), (0x10000, 0x100FF), (0x10400, 0x1044F), (0x1D400, 0x1D7FF),
    (0x1F000, 0x1FAFF), (0x20000, 0x200FF), (0xE0020, 0xE007F),
)  # fmt: skip
"""Control characters, letters, digits, marks, spaces, symbols, emoji: first and last."""


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """tests/tiny.py, found by its path: the suite also runs outside of the checkout."""
    pytest.importorskip("transformers")
    path = Path(__file__).resolve().parents[1] / "tiny.py"
    spec = importlib.util.spec_from_file_location("convert_tiny", path)
    if spec is None or spec.loader is None:
        raise RuntimeError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def bpe_model(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with a byte-level tokenizer. Read only: copy before changing."""
    return Path(tiny.build(tmp_path_factory.mktemp("bpe") / "model"))


@pytest.fixture(scope="session")
def spm_model(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with a SentencePiece tokenizer, its tokenizer.model kept. Read only."""
    pytest.importorskip("sentencepiece")
    return Path(tiny.build(tmp_path_factory.mktemp("spm") / "model", tokenizer="spm"))


@pytest.fixture
def source(bpe_model: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint that a test may change."""
    return Path(shutil.copytree(bpe_model, tmp_path / "source"))


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Several hundred strings: scripts, emoji, whitespace runs, specials as plain text, noise."""
    return strings_of(480, 60)


@pytest.fixture(scope="session")
def many_texts() -> list[str]:
    """Ten thousand of them."""
    return strings_of(5_000, 5_000)


def strings_of(phrases: int, noises: int) -> list[str]:
    """The same every time."""
    words = (
        "the red circle USER: ASSISTANT: what is unusual here? I'm you're THEY'LL don't 123 3.14 "
        "1,000,000 foo_bar https://x.org/?a=b#c naïve Füße 東京の写真 привет мир שלום "
        "مرحبا नमस्ते 🙂 "
        "👩‍👩‍👧 "
        "é ﬁ \u200b \ufeff <s> </s> <image> <unk> <pad> <0x0A> <|im_end|> [INST] [PAD430] \t \n "
        "\r\n \n\n  ▁ ▁▁ Ġ Ċ  ١٢٣ Ⅷ ½ ² \x01 \x07 \x7f"
    ).split(" ")
    draw = random.Random(7)
    strings = [
        "",
        " ",
        "  ",
        "\n",
        "a",
        " a",
        "a ",
        "\u2581",
        "\u2581a",
        " \n ",
        "\t\t",
        "''s 'S 're",
    ]
    for _ in range(phrases):
        pairs = ((draw.choice(words), draw.choice(" ,, ,\n,,  ".split(","))) for _ in range(12))
        strings.append("".join(word + gap for word, gap in list(pairs)[: draw.randint(1, 12)]))
    for _ in range(noises):
        spans = [draw.choice(SCRIPTS) for _ in range(draw.randint(1, 3))]
        spans += [(32, 126), (32, 32), (10, 10), (48, 57)]
        letters = (chr(draw.randint(*draw.choice(spans))) for _ in range(draw.randint(1, 30)))
        strings.append("".join(letters))
    return strings


class Llama:
    """A text GGUF in llama.cpp, through its low-level API."""

    def __init__(self, path: Path, *, vocab_only: bool = False) -> None:
        import llama_cpp

        self.api: Any = llama_cpp
        params = llama_cpp.llama_model_default_params()
        params.vocab_only = vocab_only
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not self.model:
            raise RuntimeError(f"llama.cpp does not load {path}")
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)

    def ids(
        self, text: str, *, add_special: bool = False, parse_special: bool = False
    ) -> list[int]:
        """Special tokens in the text are words, unless they are to be parsed."""
        data = text.encode()
        buffer = (self.api.llama_token * (len(data) + 8))()
        count = self.api.llama_tokenize(
            self.vocab, data, len(data), buffer, len(buffer), add_special, parse_special
        )
        return list(buffer[:count])

    def logits(self, ids: list[int]) -> Values:
        """(len(ids), vocabulary), keys and values kept in float32."""
        api = self.api
        params = api.llama_context_default_params()
        params.type_k = params.type_v = 0
        params.flash_attn_type = 0
        params.n_threads = params.n_threads_batch = 1
        context = api.llama_init_from_model(self.model, params)
        batch = api.llama_batch_init(len(ids), 0, 1)
        for place, token in enumerate(ids):
            batch.token[place], batch.pos[place] = token, place
            batch.n_seq_id[place], batch.seq_id[place][0], batch.logits[place] = 1, 0, 1
        batch.n_tokens = len(ids)
        if api.llama_decode(context, batch) != 0:
            raise RuntimeError("llama_decode failed")
        size = api.llama_vocab_n_tokens(self.vocab)
        rows = [
            np.ctypeslib.as_array(api.llama_get_logits_ith(context, i), (size,)).copy()
            for i in range(len(ids))
        ]
        api.llama_batch_free(batch)
        api.llama_free(context)
        return np.stack(rows)

    def close(self) -> None:
        self.api.llama_model_free(self.model)


@pytest.fixture(scope="session")
def llama_cpp_api() -> Any:
    """llama_cpp, silent: with the engine's log callback, which outlives every context."""
    llama_cpp = pytest.importorskip("llama_cpp")
    from llava_cli.engines.gguf import binding

    binding.start()
    return SimpleNamespace(api=llama_cpp)


@pytest.fixture
def llama(llama_cpp_api: Any) -> Iterator[Callable[..., Llama]]:
    """Opens text GGUFs and frees them when the test ends."""
    opened: list[Llama] = []

    def load(path: Path, *, vocab_only: bool = False) -> Llama:
        opened.append(Llama(path, vocab_only=vocab_only))
        return opened[-1]

    yield load
    for one in opened:
        one.close()


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, Values], dict[str, str]]:
    """Metadata, values as float32 in torch's order, and types of a GGUF."""
    from gguf import GGUFReader
    from gguf.quants import dequantize

    reader = GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    values: dict[str, Values] = {}
    for tensor in reader.tensors:
        shape = tuple(int(n) for n in reversed(tensor.shape))
        values[tensor.name] = dequantize(tensor.data, tensor.tensor_type).reshape(shape).copy()
    return fields, values, {t.name: t.tensor_type.name for t in reader.tensors}


@pytest.fixture(scope="session")
def gguf() -> Callable[[Path], tuple[dict[str, Any], dict[str, Values], dict[str, str]]]:
    """Reads a whole GGUF."""
    return read_gguf


def run_mmproj(path: Path, pixels: Values) -> Values:
    """Image features of an mmproj file by the meaning of its keys, in numpy: (tokens, width).

    Written from the description of the graph, with CLS in front and an exact GELU.
    """
    keys, w, _ = read_gguf(path)
    heads, eps = (
        keys["clip.vision.attention.head_count"],
        keys["clip.vision.attention.layer_norm_epsilon"],
    )
    patch, width = keys["clip.vision.patch_size"], keys["clip.vision.embedding_length"]
    side = keys["clip.vision.image_size"] // patch

    def norm(x: Values, name: str) -> Values:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps)
        return np.asarray(scaled * w[f"{name}.weight"] + w[f"{name}.bias"])

    def linear(x: Values, name: str) -> Values:
        return np.asarray(x @ w[f"{name}.weight"].T + w[f"{name}.bias"])

    def gelu(x: Values) -> Values:
        return np.asarray(0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))))

    def activate(x: Values) -> Values:
        if keys.get("clip.use_gelu"):
            return gelu(x)
        gain = 1.0 if keys.get("clip.use_silu") else 1.702
        return np.asarray(x / (1 + np.exp(-gain * x)))

    squares = pixels.reshape(3, side, patch, side, patch).transpose(1, 3, 0, 2, 4)
    x = squares.reshape(side * side, -1) @ w["v.patch_embd.weight"].reshape(width, -1).T
    x = np.concatenate([w["v.class_embd"][None], x]) + w["v.position_embd.weight"]
    x = norm(x, "v.pre_ln")
    # llama.cpp: a file whose FFN is as wide as the tower has the two matrices swapped
    swapped = keys["clip.vision.feed_forward_length"] == width
    up, down = ("ffn_down", "ffn_up") if swapped else ("ffn_up", "ffn_down")
    (depth,) = keys["clip.vision.feature_layer"]
    for layer in range(depth):
        block = f"v.blk.{layer}"
        h = norm(x, f"{block}.ln1")
        q, k, v = (
            linear(h, f"{block}.attn_{n}").reshape(len(h), heads, -1).transpose(1, 0, 2)
            for n in "qkv"
        )
        scores = q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1])
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (scores / scores.sum(-1, keepdims=True)) @ v
        x = x + linear(mixed.transpose(1, 0, 2).reshape(len(h), -1), f"{block}.attn_out")
        x = x + linear(
            activate(linear(norm(x, f"{block}.ln2"), f"{block}.{up}")), f"{block}.{down}"
        )
    return linear(gelu(linear(x[1:], "mm.0")), "mm.2")


@pytest.fixture(scope="session")
def mmproj_features() -> Callable[[Path, Values], Values]:
    """Runs an mmproj file in numpy."""
    return run_mmproj


@pytest.fixture(scope="session")
def torch_features() -> Callable[[Path, Values], Values]:
    """Image features of a checkpoint in transformers: (tokens, width)."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")

    def features(folder: Path, pixels: Values) -> Values:
        model = transformers.LlavaForConditionalGeneration.from_pretrained(folder).float().eval()
        with torch.no_grad():
            out = model.model.get_image_features(pixel_values=torch.from_numpy(pixels)[None])
        pooled = getattr(out, "pooler_output", out)
        return np.asarray(pooled[0].reshape(-1, pooled[0].shape[-1]).numpy())

    return features


@pytest.fixture(scope="session")
def pixels(tiny: ModuleType) -> Values:
    """A prepared picture, (3, 56, 56)."""
    from llava_cli.pixels import PixelConfig, normalise, prepare

    config = PixelConfig(size=tiny.IMAGE_PX)
    return normalise(prepare(tiny.picture(), config), config)
