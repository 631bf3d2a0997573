"""The GGUF engine alone: the guard does its work, and bad files are refused, never crash."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("llama_cpp")

from llava_cli import engines, models
from llava_cli.conversation import Conversation
from llava_cli.engines import Engine
from llava_cli.engines.base import Sampling
from llava_cli.engines.gguf import binding
from llava_cli.engines.gguf.guard import GraphGuard
from llava_cli.engines.gguf.setup import default_threads
from llava_cli.engines.gguf.vision import PatchEmbedding
from llava_cli.errors import LlavaError, ModelInvalid, UsageError
from llava_cli.images import Image
from llava_cli.models.gguf_header import read_header
from tests import tiny


def load(folder: Path, **options: Any) -> Engine:
    return engines.load(models.resolve(str(folder)), threads=1, **options)


def features(engine: Engine, seed: int = 0) -> Any:
    image = Image.from_pil(tiny.picture(seed=seed))
    return engine.image_features(image)  # type: ignore[attr-defined]


def asking(seed: int = 0) -> Conversation:
    return Conversation().add("user", Image.from_pil(tiny.picture(seed=seed)), "what is odd?")


def test_features_are_torchs_and_stock_llama_cpps_are_not(
    bpe_gguf_folder: Path, bpe_gguf: Engine, bpe_torch: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = features(bpe_torch)
    assert np.abs(features(bpe_gguf) - right).max() < 3e-3
    monkeypatch.setattr(GraphGuard, "_on_node", lambda *_: False)
    monkeypatch.setattr(GraphGuard, "check", lambda _: None)
    stock = load(bpe_gguf_folder)
    wrong = features(stock)
    stock.close()
    assert np.abs(wrong - right).max() > 1.0


def test_repairing_only_the_rows_is_good_too(
    bpe_gguf_folder: Path, bpe_torch: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without our own patch embedding: ggml's float16 remains, and is near."""
    monkeypatch.setattr(PatchEmbedding, "__call__", lambda *_: None)
    engine = load(bpe_gguf_folder)
    difference = np.abs(features(engine) - features(bpe_torch)).max()
    engine.close()
    assert difference < 2e-2


def test_a_guard_that_could_not_write_refuses_the_model(
    bpe_gguf_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GraphGuard, "_write_rows", lambda *_: None)
    engine = load(bpe_gguf_folder)
    with pytest.raises(ModelInvalid, match="unexpected way"):
        features(engine)
    engine.close()


def test_a_failure_inside_the_callback_reaches_the_caller(
    bpe_gguf_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("struct ggml_tensor is laid out differently")

    monkeypatch.setattr(GraphGuard, "_prove_layout", fail)
    engine = load(bpe_gguf_folder)
    with pytest.raises(ModelInvalid, match="laid out differently"):
        features(engine)
    engine.close()


def test_patch_embedding_is_the_towers_convolution(bpe_gguf_folder: Path) -> None:
    torch = pytest.importorskip("torch")
    (mmproj,) = bpe_gguf_folder.glob("mmproj-*.gguf")
    embed = PatchEmbedding(read_header(mmproj))
    pixels = np.random.default_rng(0).normal(size=(3, 56, 56)).astype(np.float32)
    wanted = torch.nn.functional.conv2d(
        torch.from_numpy(pixels)[None], torch.from_numpy(embed.kernel), stride=14
    )
    rows = wanted[0].flatten(1).T.numpy()
    assert np.abs(embed(pixels) - rows).max() < 1e-5


@pytest.mark.parametrize(
    "options", [{"kv_type": "f16", "flash_attention": True}, {"kv_type": "f16"}]
)
def test_other_precisions_of_the_context_stay_near(
    bpe_gguf_folder: Path, bpe_gguf: Engine, options: dict[str, Any]
) -> None:
    engine = load(bpe_gguf_folder, **options)
    near = engine.first_logits(asking())  # type: ignore[attr-defined]
    exact = bpe_gguf.first_logits(asking())  # type: ignore[attr-defined]
    engine.close()
    assert 0 < np.abs(near - exact).max() < 0.2


def test_growing_contexts_keep_what_was_read(bpe_gguf_folder: Path) -> None:
    engine = load(bpe_gguf_folder)
    short = list(engine.generate(asking(), Sampling(max_tokens=5)))
    long = list(engine.generate(asking(), Sampling(max_tokens=300)))  # needs a larger context
    engine.close()
    stats = long[-1].stats
    assert stats is not None
    assert stats.prefix_tokens_reused == stats.prompt_tokens + stats.image_tokens - 1
    assert [token.id for token in long[:5]] == [token.id for token in short[:5]]


def test_a_bound_on_the_context_holds(bpe_gguf_folder: Path) -> None:
    engine = load(bpe_gguf_folder, context=100)
    tokens = list(engine.generate(asking(), Sampling(max_tokens=500)))
    with pytest.raises(LlavaError, match="reads at most 99"):
        list(engine.generate(Conversation().add("user", "word " * 60), Sampling()))
    engine.close()
    stats = tokens[-1].stats
    assert stats is not None
    used = stats.prompt_tokens + stats.image_tokens + stats.completion_tokens
    assert used <= 101 and tokens[-1].finish_reason in ("length", "stop")


def test_a_closed_engine_says_so_and_closes_twice(bpe_gguf_folder: Path) -> None:
    engine = load(bpe_gguf_folder)
    engine.close()
    engine.close()
    with pytest.raises(LlavaError, match="closed"):
        list(engine.generate(asking(), Sampling()))


def test_llama_cpp_prints_nothing_and_its_log_is_kept(
    bpe_gguf_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    engine = load(bpe_gguf_folder)
    list(engine.generate(asking(), Sampling(max_tokens=3)))
    engine.close()
    assert capfd.readouterr() == ("", "")
    assert "llama" in binding.log_text()


def test_the_prompt_format_is_named_never_guessed(bpe_gguf_folder: Path) -> None:
    files = models.resolve(str(bpe_gguf_folder))
    other = engines.load(files, threads=1, prompt_format="llava_v0")
    assert other.prompt_format == "llava_v0"
    other.close()
    with pytest.raises(UsageError, match="unknown prompt format"):
        engines.load(files, prompt_format="vicuna")
    with pytest.raises(ModelInvalid, match="no token '<|im_start|>'"):
        chatml = engines.load(files, threads=1, prompt_format="chatml_direct")
        list(chatml.generate(asking(), Sampling()))


def damaged(folder: Path, tmp_path: Path, which: str, cut: int) -> Path:
    """A copy whose text or mmproj file is garbled behind its first `cut` bytes, at full length."""
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (path,) = copy.glob("mmproj-*.gguf" if which == "mmproj" else "bpe-*.gguf")
    data = bytearray(path.read_bytes())
    data[cut:] = bytes(range(256)) * (len(data) // 256 + 1)
    path.write_bytes(data[: path.stat().st_size])
    return copy


@pytest.mark.parametrize("which", ["text", "mmproj"])
@pytest.mark.parametrize("cut", [8, 40, 300, 2000])
def test_garbled_files_are_refused(
    bpe_gguf_folder: Path, tmp_path: Path, which: str, cut: int
) -> None:
    with pytest.raises(LlavaError):
        load(damaged(bpe_gguf_folder, tmp_path, which, cut))


def test_a_device_that_is_not_there_is_explained(bpe_gguf_folder: Path) -> None:
    if binding.offload_device() != "cpu":
        pytest.skip("this llama-cpp-python has a device")
    with pytest.raises(LlavaError, match="not on cuda"):
        load(bpe_gguf_folder, device="cuda")


def test_small_models_run_on_one_thread_and_large_ones_on_more() -> None:
    assert default_threads(8_000_000) == 1
    assert default_threads(4_000_000_000) >= 1
    assert default_threads(4_000_000_000) >= default_threads(100_000_000)
