"""How a model is loaded and run: settings reach llama.cpp, nonsense is refused, needs are told."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("llama_cpp")

from llava_cli import engines, models
from llava_cli.conversation import Conversation
from llava_cli.engines.base import Sampling
from llava_cli.engines.gguf import context, language
from llava_cli.engines.gguf.engine import GgufEngine
from llava_cli.engines.gguf.setup import Setup
from llava_cli.engines.tuning import Tuning
from llava_cli.errors import LlavaError, OutOfMemory, UsageError
from llava_cli.images import Image
from tests import tiny


@pytest.fixture
def asked() -> Conversation:
    return Conversation().add("user", Image.from_pil(tiny.picture()), "what is odd?")


@pytest.fixture
def folder(bpe_gguf_folder: Path) -> Path:
    return bpe_gguf_folder


def load(folder: Path, **options: Any) -> GgufEngine:
    return GgufEngine(models.resolve(str(folder)), threads=1, **options)


@pytest.fixture
def plain(folder: Path, asked: Conversation) -> Iterator[Any]:
    engine = load(folder)
    yield engine.first_logits(asked)
    engine.close()


@pytest.mark.parametrize(
    "tuning",
    [
        Tuning(ubatch=7),
        Tuning(repack=True),
        Tuning(mmap=True),
        Tuning(mmap=False),
        Tuning(gpu_layers=0),
    ],
    ids=str,
)
def test_every_way_gives_the_same_answer(
    folder: Path, asked: Conversation, plain: Any, tuning: Tuning
) -> None:
    engine = load(folder, tuning=tuning)
    assert np.abs(engine.first_logits(asked) - plain).max() < 1e-3
    engine.close()


def test_settings_reach_llama_cpp(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def watch(module: Any, function: str, fields: tuple[str, ...]) -> None:
        real = getattr(module.lib, function)

        def spy(first: Any, parameters: Any) -> Any:
            seen.update({name: getattr(parameters, name) for name in fields})
            return real(first, parameters)

        monkeypatch.setattr(module.lib, function, spy)

    watch(language, "llama_model_load_from_file", ("use_extra_bufts", "load_mode", "n_gpu_layers"))
    watch(context, "llama_init_from_model", ("n_ubatch", "n_threads", "type_k", "flash_attn_type"))
    engine = load(
        folder, kv_type="q8_0", tuning=Tuning(ubatch=64, repack=True, mmap=False, mlock=True)
    )
    engine.first_logits(Conversation().add("user", "hi"))
    engine.close()
    assert seen == {
        "use_extra_bufts": True,
        "load_mode": 2,  # LLAMA_LOAD_MODE_MLOCK
        "n_gpu_layers": 0,
        "n_ubatch": 64,
        "n_threads": 1,
        "type_k": 8,  # GGML_TYPE_Q8_0
        "flash_attn_type": -1,
    }


def test_what_cannot_be_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="unknown KV type"):
        load(folder, kv_type="q3")
    with pytest.raises(UsageError, match="needs flash attention"):
        load(folder, kv_type="q8_0", flash_attention=False)


def test_defaults_are_exact_for_float32_models_and_fast_for_others(folder: Path) -> None:
    def chosen(reference: str | None) -> Setup:
        return Setup.choose(
            models.resolve(reference), device="cpu", threads=None, kv_type=None,
            flash_attention=None, tuning=Tuning(),
        )  # fmt: skip

    exact, fast = chosen(str(folder)).context, chosen(None).context
    assert (exact.kv_type, exact.flash_attention) == ("f32", context.FLASH_OFF)
    assert (fast.kv_type, fast.flash_attention) == ("f16", context.FLASH_AUTO)


def test_many_at_once_do_without_flash_attention_unless_heads_are_shared_or_it_was_asked_for(
    folder: Path,
) -> None:
    def chosen(flash: bool | None = None, kv_type: str | None = "f16", heads: int = 2) -> Setup:
        files = models.resolve(str(folder))
        config = {**files.config, "llama.attention.head_count_kv": heads}
        return Setup.choose(
            replace(files, config=config), device="cpu", threads=None, kv_type=kv_type,
            flash_attention=flash, tuning=Tuning(),
        )  # fmt: skip

    def flash(setup: Setup, slots: int) -> int:
        return setup.context_for(slots).flash_attention

    automatic = replace(chosen().context, flash_attention=context.FLASH_AUTO)
    own = replace(chosen(), context=automatic)
    shared = replace(chosen(heads=1), context=automatic)
    assert (flash(own, 8), flash(own, 9)) == (context.FLASH_AUTO, context.FLASH_OFF)
    assert flash(shared, 16) == context.FLASH_AUTO
    assert flash(chosen(flash=True), 16) == context.FLASH_ON
    assert flash(chosen(kv_type="q8_0"), 16) == context.FLASH_AUTO
    assert replace(own.context_for(16), flash_attention=context.FLASH_AUTO) == own.context


def test_a_context_that_does_not_fit_doubled_grows_as_far_as_needed(
    folder: Path, asked: Conversation, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load(folder)
    list(engine.generate(asked, Sampling(max_tokens=2)))
    real, sizes = context.Context._made, []

    def narrow(self: Any, positions: int) -> Any:
        sizes.append(positions)
        if positions > 300:
            raise OutOfMemory("a context does not fit")
        return real(self, positions)

    monkeypatch.setattr(context.Context, "_made", narrow)
    wanted = list(engine.generate(asked, Sampling(max_tokens=200)))
    assert sizes == [512, 288] and len(wanted) > 2
    engine.close()
    engine = load(folder)
    with pytest.raises(OutOfMemory) as caught:
        list(engine.generate(asked, Sampling(max_tokens=400)))
    engine.close()
    assert caught.value.exit_code == 6


def test_loading_tells_how_far_it_is_and_can_be_stopped(folder: Path) -> None:
    heard: list[float] = []
    load(folder, progress=heard.append).close()
    assert heard == sorted(heard) and heard[-1] == 1.0

    def stop(_: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load(folder, progress=stop)


def test_an_estimate_counts_the_tokens_that_are_read(folder: Path, asked: Conversation) -> None:
    files = models.resolve(str(folder))
    found = engines.estimate(files, asked, Sampling(max_tokens=20))
    engine = load(folder)
    stats = list(engine.generate(asked, Sampling(max_tokens=20)))[-1].stats
    engine.close()
    assert stats is not None
    assert (found.prompt_tokens, found.image_tokens) == (stats.prompt_tokens, stats.image_tokens)
    assert (found.limit, found.fits_context) == (512, True)
    assert found.weights == files.path.stat().st_size
    assert found.total > found.weights + found.mmproj
    assert not engines.estimate(files, asked, Sampling(), context=64).fits_context


def test_a_closed_load_leaves_nothing_half_open(folder: Path) -> None:
    engine = load(folder)
    engine.close()
    with pytest.raises(LlavaError, match="closed"):
        list(engine.generate_batch([Conversation().add("user", "hi")] * 2, Sampling()))
