"""Other models of AutoModelForImageTextToText: tiles, pixel shuffle, M-RoPE, through one engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from llava_cli import engines, models
from llava_cli.conversation import Conversation
from llava_cli.engines import Engine
from llava_cli.engines.base import Sampling
from llava_cli.errors import LlavaError, UsageError
from llava_cli.images import Image
from tests import tiny, tiny_others
from tests.llava_cli.engines.guests import Guests

GREEDY = Sampling(max_tokens=8)
PICTURES = [Image.from_pil(tiny.picture(60 + 20 * n, 40 + 10 * n, seed=n)) for n in range(3)]
BUILDERS: dict[str, Callable[[Path], Path]] = {
    "llava_next": tiny_others.llava_next,
    "idefics3": tiny_others.smolvlm,
    "qwen2_vl": tiny_others.qwen2_vl,
}


def conversations() -> list[Conversation]:
    return [
        Conversation().add("user", PICTURES[0], "what is odd?"),
        Conversation().add("user", PICTURES[1], PICTURES[2], "compare these two pictures"),
        Conversation().add("user", "hello"),
    ]


@pytest.fixture(scope="module", params=list(BUILDERS))
def loaded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engine]:
    """One model of each family."""
    if request.param == "qwen2_vl":
        pytest.importorskip("torchvision")  # its processor prepares videos, too
    folder = BUILDERS[request.param](tmp_path_factory.mktemp("other") / request.param)
    engine = engines.load(models.resolve(str(folder)), threads=1)
    yield engine
    engine.close()


def test_the_answer_is_that_of_transformers_own_generate(loaded: Any) -> None:
    import transformers

    folder = loaded.files.path
    processor: Any = transformers.AutoProcessor.from_pretrained(folder)
    auto: Any = transformers.AutoModelForImageTextToText
    model = auto.from_pretrained(folder).eval()
    content = [{"type": "image", "image": PICTURES[0].open()}, {"type": "text", "text": "odd?"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True,
    )  # fmt: skip
    wanted = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    asked = Conversation().add("user", PICTURES[0], "odd?")
    tokens = list(loaded.generate(asked, GREEDY))
    found = [token.id for token in tokens[:-1]]
    assert found == wanted[0, inputs["input_ids"].shape[1] :].tolist()[: len(found)]
    assert found
    stats = tokens[-1].stats
    assert stats is not None and stats.image_tokens > 0
    assert stats.images[0].tokens == stats.image_tokens


def test_a_batch_says_what_each_says_alone(loaded: Engine) -> None:
    alone = [[t.id for t in loaded.generate(asked, GREEDY)] for asked in conversations()]
    together: dict[int, list[int | None]] = {}
    for index, token in loaded.generate_batch(conversations(), GREEDY):
        together.setdefault(index, []).append(token.id)
    assert [together[index] for index in range(3)] == alone


def test_who_leaves_ends_no_other(loaded: Engine) -> None:
    alone = [[t.id for t in loaded.generate(asked, GREEDY)] for asked in conversations()]
    guests = Guests(patience={1: 0})
    found = guests.listen(loaded, conversations(), GREEDY)
    assert sorted(guests.heard) == [0, 2]
    assert [[token[0] for token in tokens] for tokens in found] == [alone[0], alone[2]]


def test_an_answer_that_nobody_reads_on_stops_the_model(loaded: Engine) -> None:
    tokens = loaded.generate(conversations()[0], Sampling(max_tokens=500))
    assert next(tokens).id is not None
    tokens.close()  # type: ignore[attr-defined]
    assert len(list(loaded.generate(conversations()[2], Sampling(max_tokens=2)))) >= 2


def test_pictures_stand_in_the_prompt_where_they_were_put(loaded: Engine) -> None:
    ids = loaded.prompt_ids(conversations()[1])
    assert ids.count("image") >= 2


def test_special_tokens_in_a_question_are_plain_text(loaded: Engine) -> None:
    asked = Conversation().add("user", PICTURES[0], "is <image> or </s> special?")
    try:
        ids = loaded.prompt_ids(asked)
    except UsageError as error:  # a processor that cannot do it: refused, not misread
        assert "would not read as words" in error.message and error.hint
        return
    assert ids.count("image") == 1
    assert 1 not in ids  # </s>


def test_what_the_engine_cannot_do_is_said(loaded: Engine) -> None:
    with pytest.raises(UsageError, match="cannot bind"):
        list(loaded.generate(conversations()[0], Sampling(schema="{}")))
    with pytest.raises(LlavaError, match="reads at most"):
        list(loaded.generate(Conversation().add("user", "word " * 3000), GREEDY))
    if loaded.files.config["model_type"] == "llava_next":  # a LLaVA: its prompts can be ours
        engine = engines.load(loaded.files, prompt_format="vicuna_v1", threads=1)
        assert engine.prompt_format == "vicuna_v1"
        engine.close()
        return
    with pytest.raises(UsageError, match="own template"):
        engines.load(loaded.files, prompt_format="vicuna_v1")
