"""`q4_k.py` writes the bytes of ggml's own function."""

from __future__ import annotations

import numpy as np
import pytest

from llava_convert import ggml, q4_k
from llava_convert.q4_k import Array, Bytes


def by_ggml(values: Array) -> Bytes:
    return ggml._ggml_encode(values.reshape(-1, 256), ggml.Kind.Q4_K, "test")


def normal(count: int, seed: int = 1) -> Array:
    return np.random.default_rng(seed).standard_normal(count, np.float32)


def blocks_of_many_sizes() -> Array:
    powers = np.random.default_rng(2).integers(-9, 5, (512, 1))
    return (normal(512 * 32).reshape(512, 32) * 10.0**powers).astype(np.float32).ravel()


ONE = np.float32(1)
SAMPLES = {
    "weights": normal(1 << 16) * np.float32(0.02),
    "float16 weights": (normal(1 << 15) * np.float32(0.02)).astype(np.float16).astype(np.float32),
    "positive": np.abs(normal(1 << 15)),
    "negative": -np.abs(normal(1 << 15)) - ONE,
    "few levels": np.rint(normal(1 << 15) * 2),
    "outliers": normal(1 << 15) ** 5,
    "mostly zero": normal(1 << 15) * (normal(1 << 15, seed=3) > 2),
    "zeros": np.zeros(1 << 10, np.float32),
    "one value": np.full(1 << 10, 0.3, np.float32),
    "one negative value": np.full(1 << 10, -0.3, np.float32),
    "blocks of many sizes": blocks_of_many_sizes(),
    "nearly nothing": normal(1 << 12) * np.float32(1e-30),
    "denormal": normal(1 << 12) * np.float32(1e-41),
    "large": normal(1 << 12) * np.float32(3e5),
    "three superblocks": normal(3 * 256),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_every_superblock_has_the_bytes_of_ggml(name: str) -> None:
    values = SAMPLES[name]
    assert np.array_equal(q4_k.quantize(by_ggml, values), by_ggml(values))


def test_ordinary_weights_are_not_left_to_ggml() -> None:
    def never(values: Array) -> Bytes:
        raise AssertionError(f"{values.size} values were left to ggml")

    for name in ("weights", "float16 weights", "positive"):
        values = SAMPLES[name]
        assert q4_k.quantize(never, values).size == values.size // 256 * 144


def test_a_ggml_that_rounds_otherwise_does_the_work_itself() -> None:
    def rounded_otherwise(values: Array) -> Bytes:
        out = by_ggml(values)
        out[5] ^= 1
        return out

    assert q4_k.encoder(rounded_otherwise) is rounded_otherwise
    assert q4_k.encoder(by_ggml) is not by_ggml
