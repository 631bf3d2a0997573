"""Words that are read as rows are what the model would have looked up itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("llama_cpp")

from gguf import GGMLQuantizationType as Kind
from gguf import GGUFWriter
from gguf.quants import dequantize

from llava_cli import models
from llava_cli.conversation import Conversation
from llava_cli.engines.base import Sampling
from llava_cli.engines.gguf.embeddings import embeddings_of
from llava_cli.engines.gguf.engine import GgufEngine
from llava_cli.images import Image
from llava_cli.models.gguf_header import BLOCKS, read_header
from tests import tiny

WIDTH, WORDS = 512, 40


def table(folder: Path, kind: Kind, architecture: str = "llama", scale: float = 0.0) -> Path:
    """A file with nothing but a table of random blocks."""
    values, size = BLOCKS[int(kind)]
    raw = np.random.default_rng(int(kind)).integers(0, 256, (WORDS, WIDTH // values * size))
    path = folder / f"{kind.name}.gguf"
    writer = GGUFWriter(path, architecture)
    if scale:
        writer.add_embedding_scale(scale)
    writer.add_tensor("token_embd.weight", raw.astype(np.uint8), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    "kind",
    [Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q6_K, Kind.Q5_K, Kind.Q4_K, Kind.Q3_K,
     Kind.Q2_K, Kind.Q4_0, Kind.Q5_0, Kind.Q5_1],
)  # fmt: skip
def test_rows_of_every_type_are_those_of_the_gguf_package(tmp_path: Path, kind: Kind) -> None:
    header = read_header(table(tmp_path, kind))
    info = header.tensors["token_embd.weight"]
    embed = embeddings_of(header)
    assert embed is not None
    values, size = BLOCKS[info.type]
    raw = np.fromfile(header.path, np.uint8, WORDS * WIDTH // values * size, offset=info.offset)
    with np.errstate(all="ignore"):  # random bytes are infinite here and there
        wanted = dequantize(raw.reshape(WORDS, -1), kind)
    ids = [3, 0, 39, 3]
    assert np.array_equal(embed(ids), wanted[ids], equal_nan=True)


def test_models_that_do_more_to_a_row_look_it_up_themselves(tmp_path: Path) -> None:
    assert embeddings_of(read_header(table(tmp_path, Kind.F32, "gemma3"))) is None
    assert embeddings_of(read_header(table(tmp_path, Kind.F16, "llama", scale=2.0))) is None


def test_words_beside_a_picture_are_read_with_it_and_change_no_logit(
    bpe_gguf_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversation = Conversation()
    for seed in range(2):
        conversation = conversation.add("user", Image.from_pil(tiny.picture(seed=seed)), "what?")
        conversation = conversation.add("assistant", "a red square")
    conversation = conversation.add("user", "and now?")
    engine = GgufEngine(models.resolve(str(bpe_gguf_folder)), threads=1)
    apart = GgufEngine(models.resolve(str(bpe_gguf_folder)), threads=1)
    apart._text.embeddings = None
    try:
        batches: list[int] = []
        compute = engine._context._compute

        def counted(batch: Any) -> None:
            batches.append(batch.n_tokens)
            compute(batch)

        monkeypatch.setattr(engine._context, "_compute", counted)
        assert (
            np.abs(engine.first_logits(conversation) - apart.first_logits(conversation)).max()
            < 1e-5
        )
        assert batches == [len(engine._context.cells[0])]
        answers = [
            [t.id for t in e.generate(conversation, Sampling(max_tokens=8))]
            for e in (engine, apart)
        ]
        assert answers[0] == answers[1]
    finally:
        engine.close()
        apart.close()
