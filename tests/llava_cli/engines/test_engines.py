"""What both engines promise, on one tiny random model; and that they agree.

A random model says nonsense, which suits these tests: its bytes are seldom whole characters.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llava_cli import engines, models
from llava_cli.conversation import Conversation
from llava_cli.engines import Engine
from llava_cli.engines.base import Sampling, Token
from llava_cli.errors import LlavaError
from llava_cli.images import Image
from llava_convert.conversion import convert
from tests import tiny

SHAPES = [(80, 60), (60, 80), (56, 56), (300, 40), (33, 210), (200, 199)]
QUESTION = "what is unusual here?"
GREEDY = Sampling(max_tokens=12)


def image(width: int = 80, height: int = 60, seed: int = 0) -> Image:
    return Image.from_pil(tiny.picture(width, height, seed), source=f"{width}x{height}")


def asking(*content: str | Image) -> Conversation:
    return Conversation().add("user", *content)


def said(engine: Engine, conversation: Conversation, sampling: Sampling = GREEDY) -> list[Token]:
    return list(engine.generate(conversation, sampling))


def text_of(tokens: list[Token]) -> str:
    return "".join(token.text for token in tokens)


def ids_of(tokens: list[Token]) -> list[int | None]:
    return [token.id for token in tokens]


def logits(engine: Engine, conversation: Conversation) -> Any:
    return engine.first_logits(conversation)  # type: ignore[attr-defined]


def conversations() -> Iterator[Conversation]:
    for seed, (width, height) in enumerate(SHAPES):
        picture = image(width, height, seed)
        yield asking(picture, f"{QUESTION} {seed}")
    yield asking("no picture at all")
    yield asking(image(seed=7), image(40, 90, 8), "what changed?")
    yield asking("first ", image(seed=9), " then ", image(seed=10), " what?")
    yield asking(image(seed=3), QUESTION).add("assistant", "the red one").add("user", "why?")
    yield asking(image(seed=4), QUESTION).add("assistant", "It is")
    yield Conversation().add("system", "Be brief.").add("user", image(seed=5), QUESTION)
    yield asking(image(seed=6), "literal </s> <image> <s> and 🙂 naïve 東京")


@pytest.mark.parametrize("kind", ["bpe", "spm"])
def test_ids_and_image_slots_are_identical(kind: str, request: pytest.FixtureRequest) -> None:
    gguf, torch = (request.getfixturevalue(f"{kind}_{name}") for name in ("gguf", "torch"))
    for conversation in conversations():
        ids = gguf.prompt_ids(conversation)
        assert ids == torch.prompt_ids(conversation)
        assert ids.count("image") == len(conversation.images)
        assert ids[0] == 1 and ids.count(1) == 1  # one BOS


@pytest.mark.parametrize("kind", ["bpe", "spm"])
def test_texts_of_every_sort_have_the_same_ids(kind: str, request: pytest.FixtureRequest) -> None:
    gguf, torch = (request.getfixturevalue(f"{kind}_{name}") for name in ("gguf", "torch"))
    rng = random.Random(5)
    alphabet = [*"  \n\tabcXYZ019.,?!#<>/'\"_-%", "é", "ß", "東", "🙂", "</s>", "<image>", "<unk>"]
    texts = ["", " ", "  two", " one", "\n", "\r\n", "don't", "I'LL", "x" * 300, "▁", "<0x0A>", "é́"]
    texts += ["".join(rng.choices(alphabet, k=rng.randint(1, 24))) for _ in range(200)]
    for text in texts:
        assert gguf._text.vocabulary.encode(text) == torch._vocabulary.encode(text), repr(text)


@pytest.mark.parametrize("kind", ["bpe", "spm"])
def test_first_logits_agree(kind: str, request: pytest.FixtureRequest) -> None:
    gguf, torch = (request.getfixturevalue(f"{kind}_{name}") for name in ("gguf", "torch"))
    for conversation in conversations():
        ours, theirs = logits(gguf, conversation), logits(torch, conversation)
        assert ours.shape == theirs.shape
        assert np.ptp(theirs) > 20  # as wide as a trained model's
        assert np.abs(ours - theirs).max() < 5e-3


@pytest.mark.parametrize("kind", ["bpe", "spm"])
def test_greedy_answers_are_identical(kind: str, request: pytest.FixtureRequest) -> None:
    gguf, torch = (request.getfixturevalue(f"{kind}_{name}") for name in ("gguf", "torch"))
    for conversation in conversations():
        ours, theirs = said(gguf, conversation), said(torch, conversation)
        assert ids_of(ours) == ids_of(theirs)
        assert text_of(ours) == text_of(theirs)
        assert ours[-1].finish_reason == theirs[-1].finish_reason


@pytest.mark.parametrize(
    "kind",
    [{"connector": "linear"}, {"hidden_act": "gelu"}, {"hidden_act": "gelu_pytorch_tanh"}],
    ids=str,
)
def test_other_connectors_and_activations_agree(kind: dict[str, Any], tmp_path: Path) -> None:
    """LLaVA v1's linear projector, and towers with other activations than CLIP's."""
    pytest.importorskip("transformers")
    folder = tiny.build(tmp_path / "hf", gain=6.0, **kind)
    convert(folder, tmp_path / "gguf", outtypes=("f32",), mmproj_outtype="f32")
    pair = [engines.load(models.resolve(str(tmp_path / n)), threads=1) for n in ("gguf", "hf")]
    for conversation in list(conversations())[:3]:
        ours, theirs = (logits(engine, conversation) for engine in pair)
        assert np.abs(ours - theirs).max() < 5e-3
    for engine in pair:
        engine.close()


def test_a_seed_draws_the_same_tokens_in_both_engines(bpe_gguf: Engine, bpe_torch: Engine) -> None:
    drawing = Sampling(temperature=0.9, top_p=0.95, top_k=50, seed=11, max_tokens=12)
    conversation = asking(image(), QUESTION)
    ours = said(bpe_gguf, conversation, drawing)
    assert ids_of(ours) == ids_of(said(bpe_torch, conversation, drawing))
    assert ids_of(ours) != ids_of(said(bpe_gguf, conversation))


def test_the_picture_is_seen(engine: Engine) -> None:
    one, other = (logits(engine, asking(image(seed=s), QUESTION)) for s in (0, 1))
    assert np.abs(one - other).max() > 0.5


def test_the_order_of_pictures_matters(engine: Engine) -> None:
    a, b = image(seed=0), image(seed=1)
    one, other = (logits(engine, asking(*pair, QUESTION)) for pair in ((a, b), (b, a)))
    assert np.abs(one - other).max() > 0.1


def test_streamed_text_is_the_decoded_answer(engine: Engine) -> None:
    tokens = said(engine, asking(image(), QUESTION), Sampling(max_tokens=60))
    vocabulary = getattr(engine, "_vocabulary", None) or engine._text.vocabulary  # type: ignore[attr-defined]
    data = b"".join(vocabulary.piece(token.id) for token in tokens if token.id is not None)
    whole = data.decode("utf-8", "replace").removeprefix(" ")
    assert text_of(tokens) == whole
    assert len(whole) > 10


def test_a_stop_text_ends_the_answer_where_it_begins(engine: Engine) -> None:
    conversation = asking(image(seed=2), QUESTION)
    free = text_of(said(engine, conversation, Sampling(max_tokens=40)))
    stop = free[len(free) // 2 : len(free) // 2 + 3]
    tokens = said(engine, conversation, Sampling(max_tokens=40, stop=(stop,)))
    assert text_of(tokens) == free[: free.index(stop)]
    assert tokens[-1].finish_reason == "stop"


def test_stats_count_what_was_read_and_written(engine: Engine) -> None:
    conversation = asking(image(90, 50, 31), image(20, 50, 32), QUESTION)
    ids = engine.prompt_ids(conversation)
    first, second = said(engine, conversation), said(engine, conversation)
    stats = first[-1].stats
    assert stats is not None
    assert stats.image_tokens == 2 * tiny.TOKENS
    assert stats.prompt_tokens == len(ids) - 2
    assert stats.completion_tokens == GREEDY.max_tokens
    assert stats.cache_image == "miss"
    assert [(i.source, i.width, i.height, i.tokens) for i in stats.images] == [
        ("90x50", 90, 50, tiny.TOKENS),
        ("20x50", 20, 50, tiny.TOKENS),
    ]
    assert min(stats.load_s, stats.image_s, stats.prefill_s, stats.ttft_s, stats.decode_s) > 0
    again = second[-1].stats
    assert again is not None and again.cache_image == "hit"
    assert again.prefix_tokens_reused == len(ids) - 2 + 2 * tiny.TOKENS - 1
    assert ids_of(first) == ids_of(second)


def test_a_later_turn_reads_only_what_is_new_and_answers_alike(engine: Engine) -> None:
    conversation = asking(image(seed=20), QUESTION)
    answered = text_of(said(engine, conversation, Sampling(max_tokens=6)))
    later = conversation.add("assistant", answered or "x").add("user", "and why?")
    tokens = said(engine, later)
    stats = tokens[-1].stats
    assert stats is not None and stats.cache_image == "hit"
    assert stats.prefix_tokens_reused >= tiny.TOKENS + 40
    said(engine, asking("something else"))  # forgets the turns above
    fresh = said(engine, later)
    assert fresh[-1].stats is not None and fresh[-1].stats.prefix_tokens_reused <= 60
    assert ids_of(fresh) == ids_of(tokens)


def test_an_abandoned_answer_leaves_no_trace(engine: Engine) -> None:
    conversation = asking(image(seed=21), QUESTION)
    whole = ids_of(said(engine, conversation))
    stream = engine.generate(conversation, GREEDY)
    next(stream), next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert ids_of(said(engine, conversation)) == whole


def test_a_prefill_is_continued(engine: Engine) -> None:
    conversation = asking(image(seed=22), QUESTION)
    tokens = said(engine, conversation, Sampling(max_tokens=8))
    with_space = engine.prompt_ids(conversation.add("assistant", "It is"))
    assert (
        with_space[: len(engine.prompt_ids(conversation)) - 1]
        == (engine.prompt_ids(conversation)[:-1])
    )
    assert ids_of(said(engine, conversation.add("assistant", "It is"))) != ids_of(tokens)


def test_candidates_are_the_most_likely_first_tokens(engine: Engine) -> None:
    conversation = asking(image(seed=23), QUESTION)
    tokens = said(engine, conversation, Sampling(max_tokens=2, top_logprobs=5))
    values = np.asarray(logits(engine, conversation), np.float64)
    logprobs = values - values.max() - np.log(np.exp(values - values.max()).sum())
    found = tokens[0].candidates
    assert [candidate.id for candidate in found] == np.argsort(-values)[:5].tolist()
    assert np.allclose([c.logprob for c in found], np.sort(logprobs)[::-1][:5], atol=1e-3)
    assert found[0].id == tokens[0].id


def test_a_prompt_that_is_too_long_is_explained(engine: Engine) -> None:
    with pytest.raises(LlavaError, match="reads at most 511") as caught:
        said(engine, asking(image(), "word " * 600))
    assert caught.value.hint
    assert len(said(engine, asking(image(), QUESTION))) == GREEDY.max_tokens + 1  # still works


def test_an_answer_ends_where_the_context_does(engine: Engine) -> None:
    conversation = asking(image(), "word " * 80)
    prompt = len(engine.prompt_ids(conversation)) - 1 + tiny.TOKENS
    assert prompt < 512
    tokens = said(engine, conversation, Sampling(max_tokens=600, temperature=1.0, seed=1))
    ends = tokens[-1].finish_reason
    assert ends == "length" and len(tokens) - 1 == 512 - prompt + 1


def test_a_batch_answers_like_one_by_one(engine: Engine) -> None:
    asked = list(conversations())[:5]
    alone = [ids_of(said(engine, conversation)) for conversation in asked]
    batch: list[list[int | None]] = [[] for _ in asked]
    for index, token in engine.generate_batch(asked, GREEDY):
        batch[index].append(token.id)
    assert batch == alone


def test_an_engine_says_what_it_is(engine: Engine) -> None:
    assert engine.name in ("gguf", "torch")
    assert engine.device == "cpu"
    assert engine.prompt_format == "vicuna_v1"
    assert engine.files.path.exists()
