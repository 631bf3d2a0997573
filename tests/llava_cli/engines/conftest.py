"""Tiny random models, built and converted once, and the engines that read them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llava_cli import engines, models
from llava_cli.engines import Engine
from tests import tiny


def _converted(folder: Path, outtype: str = "f32") -> Path:
    from llava_convert.conversion import convert

    out = folder.with_name(f"{folder.name}-{outtype}")
    convert(folder, out, outtypes=(outtype,), mmproj_outtype="f32" if outtype == "f32" else "f16")
    return out


def _loaded(path: Path) -> Iterator[Engine]:
    engine = engines.load(models.resolve(str(path)), threads=1)
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def bpe_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llava-hf folder with a byte-level BPE; pictures are padded."""
    pytest.importorskip("transformers")
    return tiny.build(tmp_path_factory.mktemp("bpe") / "bpe", gain=6.0)


@pytest.fixture(scope="session")
def spm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llava-hf folder with a SentencePiece tokenizer; pictures are cropped."""
    pytest.importorskip("transformers")
    pytest.importorskip("sentencepiece")
    folder = tmp_path_factory.mktemp("spm") / "spm"
    return tiny.build(folder, tokenizer="spm", aspect="crop", seed=1, gain=6.0)


@pytest.fixture(scope="session")
def bpe_gguf_folder(bpe_folder: Path) -> Path:
    """The same as float32 GGUF pair."""
    return _converted(bpe_folder)


@pytest.fixture(scope="session")
def spm_gguf_folder(spm_folder: Path) -> Path:
    """The same as float32 GGUF pair."""
    return _converted(spm_folder)


@pytest.fixture(scope="session")
def bpe_torch(bpe_folder: Path) -> Iterator[Engine]:
    yield from _loaded(bpe_folder)


@pytest.fixture(scope="session")
def bpe_gguf(bpe_gguf_folder: Path) -> Iterator[Engine]:
    yield from _loaded(bpe_gguf_folder)


@pytest.fixture(scope="session")
def spm_torch(spm_folder: Path) -> Iterator[Engine]:
    yield from _loaded(spm_folder)


@pytest.fixture(scope="session")
def spm_gguf(spm_gguf_folder: Path) -> Iterator[Engine]:
    yield from _loaded(spm_gguf_folder)


@pytest.fixture(params=["gguf", "torch"])
def engine(request: pytest.FixtureRequest) -> Engine:
    """Both engines, in turn, with the byte-level model."""
    loaded: Engine = request.getfixturevalue(f"bpe_{request.param}")
    return loaded


@pytest.fixture(scope="session")
def lora_of() -> Callable[..., Path]:
    """Writes a LoRA adapter for a model, made by peft and not at its neutral beginning."""
    pytest.importorskip("peft")
    from tests.llava_cli.engines.adapters import write_lora

    return write_lora
