"""Answers that are held to a few choices or to a JSON schema."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

pytest.importorskip("llama_cpp")

from llava_cli import engines
from llava_cli.conversation import Conversation
from llava_cli.engines import Engine
from llava_cli.engines.base import Sampling, Token
from llava_cli.engines.gguf.engine import GgufEngine
from llava_cli.errors import LlavaError, UsageError
from llava_cli.images import Image
from tests import tiny

COLOURS = (("red",), ("blue",), ("yellow",))


def asking(seed: int = 0) -> Conversation:
    return Conversation().add("user", Image.from_pil(tiny.picture(seed=seed)), "what is odd?")


def chosen(
    engine: Engine, choices: tuple[tuple[str, ...], ...], seed: int = 0, **more: Any
) -> tuple[list[Token], dict[str, float]]:
    tokens = list(engine.generate(asking(seed), Sampling(choices=choices, **more)))
    return tokens, dict(tokens[-1].probabilities)


def chain(engine: Engine, text: str) -> float:
    """Log-probability of an answer's tokens, each from a prompt that ends right in front of it."""
    vocabulary = engine._text.vocabulary  # type: ignore[attr-defined]
    reader = engine._reader  # type: ignore[attr-defined]
    base = reader.prompt(asking()).cells
    cells = reader.prompt(asking().add("assistant", text)).cells
    assert cells[: len(base)] == base
    total = 0.0
    for place in range(len(base), len(cells)):
        engine._context.forget()  # type: ignore[attr-defined]
        engine.first_logits(asking())  # type: ignore[attr-defined]
        logits = np.asarray(engine._behind(cells[:place]), np.float64)  # type: ignore[attr-defined]
        total += float(logits[cells[place]] - np.logaddexp.reduce(logits))
    assert vocabulary.size > 0
    return total


def test_the_probabilities_are_those_of_the_tokens(bpe_gguf: Engine) -> None:
    tokens, found = chosen(bpe_gguf, COLOURS)
    joint = np.array([chain(bpe_gguf, forms[0]) for forms in COLOURS])
    wanted = np.exp(joint - np.logaddexp.reduce(joint))
    assert np.allclose(list(found.values()), wanted, atol=1e-5)
    assert tokens[0].text == max(found, key=lambda name: found[name])
    assert sum(found.values()) == pytest.approx(1.0)


def test_both_engines_choose_alike(bpe_gguf: Engine, bpe_torch: Engine) -> None:
    for choices in (COLOURS, (("yes", "Yes"), ("no", "No")), (("a",), ("ab",), ("abc",))):
        for seed in range(3):
            ours, shares = chosen(bpe_gguf, choices, seed)
            theirs, others = chosen(bpe_torch, choices, seed)
            assert ours[0].text == theirs[0].text
            assert np.allclose(list(shares.values()), list(others.values()), atol=5e-3)


def test_a_choice_that_begins_another_counts_without_it(bpe_gguf: Engine) -> None:
    """`red` and `red circle` are different answers: the longer one is no part of the shorter."""
    _, found = chosen(bpe_gguf, (("red",), ("red circle",), ("blue",)))
    red, circle, blue = (np.exp(chain(bpe_gguf, text)) for text in ("red", "red circle", "blue"))
    total = red + blue
    assert found["red circle"] == pytest.approx(circle / total, rel=1e-3)
    assert found["red"] == pytest.approx((red - circle) / total, rel=1e-3)


def test_other_writings_add_up(bpe_gguf: Engine) -> None:
    _, found = chosen(bpe_gguf, (("yes", "Yes"), ("no",)))
    yes, upper, no = (np.exp(chain(bpe_gguf, text)) for text in ("yes", "Yes", "no"))
    assert found["yes"] == pytest.approx((yes + upper) / (yes + upper + no), rel=1e-3)


def test_a_temperature_draws_among_the_choices(bpe_gguf: Engine) -> None:
    drawn = {
        chosen(bpe_gguf, COLOURS, temperature=30.0, seed=seed)[0][0].text for seed in range(20)
    }
    assert drawn == {"red", "blue", "yellow"}


def test_a_prefill_stands_in_front_of_the_choice(bpe_gguf: Engine) -> None:
    conversation = asking().add("assistant", "It is ")
    tokens = list(bpe_gguf.generate(conversation, Sampling(choices=COLOURS, top_logprobs=2)))
    assert tokens[0].text in ("red", "blue", "yellow") and len(tokens[0].candidates) == 2
    assert tokens[-1].stats is not None and tokens[-1].finish_reason == "stop"


def test_a_batch_chooses_for_each(bpe_gguf: Engine) -> None:
    asked = [asking(seed) for seed in range(3)]
    sampling = Sampling(choices=COLOURS)
    found: dict[int, dict[str, float]] = {}
    for index, token in bpe_gguf.generate_batch(asked, sampling):
        if token.probabilities:
            found[index] = dict(token.probabilities)
    for seed in range(3):
        assert found[seed] == pytest.approx(chosen(bpe_gguf, COLOURS, seed)[1], abs=1e-4)


def test_the_next_answer_is_unmoved(bpe_gguf: Engine) -> None:
    before = [token.id for token in bpe_gguf.generate(asking(5), Sampling(max_tokens=6))]
    chosen(bpe_gguf, COLOURS, 5)
    assert [t.id for t in bpe_gguf.generate(asking(5), Sampling(max_tokens=6))] == before


OBJECT = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "kind": {"enum": ["a", "b", None]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    },
    "required": ["name", "age", "kind", "tags"],
}


@pytest.mark.parametrize("temperature", [0.0, 1.0, 3.0])
def test_an_answer_follows_its_schema(bpe_gguf: Engine, temperature: float) -> None:
    schema = json.dumps(OBJECT)
    sampling = Sampling(schema=schema, max_tokens=300, temperature=temperature, seed=3)
    for seed in range(4):
        tokens = list(bpe_gguf.generate(asking(seed), sampling))
        assert tokens[-1].finish_reason == "stop"
        found = json.loads("".join(token.text for token in tokens))
        assert set(found) == {"name", "age", "kind", "tags"}
        assert isinstance(found["name"], str) and len(found["name"]) <= 8
        assert "\ufffd" not in found["name"]
        assert isinstance(found["age"], int) and 0 <= found["age"] <= 99
        assert found["kind"] in ("a", "b", None)
        assert len(found["tags"]) <= 3 and all(isinstance(tag, bool) for tag in found["tags"])


def test_a_schema_holds_in_a_batch(bpe_gguf: GgufEngine) -> None:
    sampling = Sampling(schema='{"enum": [1, "two", [3]]}', max_tokens=40)
    asked = [asking(seed) for seed in range(5)]
    texts = [""] * len(asked)
    for index, token in bpe_gguf.generate_batch(asked, sampling):
        texts[index] += token.text
    assert all(json.loads(text) in (1, "two", [3]) for text in texts)


@pytest.mark.parametrize(
    "schema",
    [
        '{"type": "foo"}',
        '{"anyOf": 3}',
        '{"$ref": "http://127.0.0.1/x"}',
        '{"$ref": "#/no"}',
        '{"type": "number", "minimum": 0}',
        '{"type": "integer", "minimum": 0}',
        '{"type": "string", "pattern": "^a+$", "maxLength": 3}',
        '{"type": "object", "required": ["a"]}',
        '{"type": "object", "minProperties": 1}',
        '{"anyOf": [{"type": "string"}], "maxLength": 3}',
        '{"type": "array", "uniqueItems": true, "items": {"type": "string"}}',
        '{"enum": []}',
        "[]",
        "3",
    ],
)
def test_schemas_that_cannot_be_followed_are_refused(schema: str) -> None:
    with pytest.raises(UsageError, match="schema cannot be followed"):
        engines.check_schema(schema)


@pytest.mark.parametrize(
    ("schema", "good"),
    [
        ({"type": ["string", "null"], "maxLength": 2}, lambda v: v is None or len(v) <= 2),
        ({"type": "integer", "exclusiveMinimum": 3, "maximum": 6}, lambda v: v in (4, 5, 6)),
        ({"allOf": [{"type": "boolean"}]}, lambda v: isinstance(v, bool)),
        ({"type": "array", "items": [{"const": 1}, {"type": "null"}]}, lambda v: v == [1, None]),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"const": "x"}}}, lambda v: v == "x"),
        ({"type": "string", "pattern": "^[a-c]{2}$"}, lambda v: set(v) <= set("abc")),
        ({"type": "string", "format": "date"}, lambda v: len(v.split("-")) == 3),
        ({"properties": {"root": {"const": 1}}, "required": ["root"]}, lambda v: v == {"root": 1}),
        ({"type": "object", "additionalProperties": False}, lambda v: v == {}),
    ],
    ids=lambda value: "so" if callable(value) else str(value),  # no address of a function
)
def test_what_the_schema_says_holds(bpe_gguf: Engine, schema: Any, good: Any) -> None:
    sampling = Sampling(schema=json.dumps(schema), max_tokens=60, temperature=2.0, seed=1)
    tokens = list(bpe_gguf.generate(asking(), sampling))
    assert good(json.loads("".join(token.text for token in tokens)))


def test_torch_says_that_it_follows_no_schema(bpe_torch: Engine) -> None:
    with pytest.raises(LlavaError, match="follows no schema"):
        list(bpe_torch.generate(asking(), Sampling(schema="{}")))


def test_choices_that_the_model_cannot_tell_apart_are_refused(bpe_gguf: Engine) -> None:
    with pytest.raises(UsageError, match="the same"):
        chosen(bpe_gguf, (("red",), ("blue", "red")))
