"""Which files make a model: the pair or the safetensors, the quantisation asked for, no pickle."""

from __future__ import annotations

import pytest

from llava_cli.errors import ModelInvalid, ModelNotFound
from llava_cli.models.choose import choose, quant_of

GGUFS = ["README.md", "llava-F16.gguf", "llava-Q4_K_M.gguf", "mmproj-llava-f16.gguf", "x-Q2_K.gguf"]
HF = ["config.json", "model.safetensors", "pytorch_model.bin", "tokenizer.json", "sub/old.json"]
WANTED = ("model.safetensors", "config.json", "tokenizer.json")


@pytest.mark.parametrize(
    ("names", "quant", "engine", "chosen"),
    [
        (GGUFS, None, "auto", ("llava-Q4_K_M.gguf", "mmproj-llava-f16.gguf", "README.md")),
        (GGUFS, "f16", "auto", ("llava-F16.gguf", "mmproj-llava-f16.gguf", "README.md")),
        (GGUFS, "Q2_K", "gguf", ("x-Q2_K.gguf", "mmproj-llava-f16.gguf", "README.md")),
        (HF, None, "auto", WANTED),
        (HF + GGUFS, None, "torch", (*WANTED, "README.md")),
        (["a-BF16.gguf", "a-F16.gguf", "mmproj-a-BF16.gguf", "mmproj-a-F16.gguf"], "F16", "auto",
         ("a-F16.gguf", "mmproj-a-F16.gguf")),
        (["a-BF16.gguf", "mmproj-a-BF16.gguf"], None, "gguf",
         ("a-BF16.gguf", "mmproj-a-BF16.gguf")),
        (["m-Q4_K_S.gguf", "m-q4_k.gguf", "mmproj.gguf"], "q4_K", "auto",
         ("m-q4_k.gguf", "mmproj.gguf")),
        (["Q8_0/m-Q8_0.gguf", "Q8_0/mmproj-m-Q8_0.gguf"], None, "auto",
         ("Q8_0/m-Q8_0.gguf", "Q8_0/mmproj-m-Q8_0.gguf")),
        (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
          "consolidated.safetensors", "model.safetensors.index.json"], None, "torch",
         ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
          "model.safetensors.index.json")),
    ],
)  # fmt: skip
def test_the_files_of_a_model_are_chosen_and_never_a_pickle(
    names: list[str], quant: str | None, engine: str, chosen: tuple[str, ...]
) -> None:
    assert choose("org/name", names, quant, engine) == chosen


@pytest.mark.parametrize(
    ("names", "quant", "said"),
    [
        (["a-Q8_0.gguf"], None, "no mmproj"),
        (GGUFS, "Q9_9", "no Q9_9 model"),
        (GGUFS, "Q2", "no Q2 model"),
        (HF, "Q4_K_M", "no GGUF files"),
        (["pytorch_model.bin", "config.json"], None, "pickle files only"),
        ([], None, "no model that can be used"),
        (["a-Q4_K_M-00001-of-00002.gguf", "mmproj.gguf"], None, "several pieces"),
    ],
)
def test_a_repository_without_a_usable_model_is_explained(
    names: list[str], quant: str | None, said: str
) -> None:
    with pytest.raises((ModelNotFound, ModelInvalid), match=said) as caught:
        choose("org/name", names, quant, "auto")
    assert caught.value.hint


def test_names_known_beforehand_win_unless_a_quantisation_is_asked_for() -> None:
    names = ["ggml-model-q4_k.gguf", "ggml-model-f16.gguf", "mmproj-old.gguf", "mmproj-f16.gguf"]
    known = {"text": "ggml-model-f16.gguf", "mmproj": "mmproj-old.gguf"}
    assert choose("o/n", names, None, "auto", **known) == ("ggml-model-f16.gguf", "mmproj-old.gguf")
    asked = choose("o/n", names, "q4_k", "auto", **known)
    assert asked == ("ggml-model-q4_k.gguf", "mmproj-old.gguf")
    gone = choose("o/n", names, None, "auto", text="gone.gguf", mmproj="gone.gguf")
    assert gone == ("ggml-model-q4_k.gguf", "mmproj-f16.gguf")


@pytest.mark.parametrize(
    ("name", "quant"),
    [
        ("llava-v1.5-7b-Q4_K_M.gguf", "Q4_K_M"),
        ("ggml-model-q5_k.gguf", "q5_k"),
        ("llava-llama-3-8b-v1_1-int4.gguf", "int4"),
        ("m-IQ3_XXS.gguf", "IQ3_XXS"),
        ("m.bf16.gguf", "bf16"),
        ("f16/model.gguf", None),
        ("Q4ever.gguf", None),
    ],
)
def test_the_quantisation_is_read_as_a_word_of_the_name(name: str, quant: str | None) -> None:
    assert quant_of(name) == quant
