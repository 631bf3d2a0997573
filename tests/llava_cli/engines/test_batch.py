"""Many conversations at once say what each says alone, and share what they can."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llama_cpp")

from llava_cli import models
from llava_cli.conversation import Conversation
from llava_cli.engines.base import Sampling, Stats
from llava_cli.engines.gguf import batch, engine, memory
from llava_cli.engines.gguf.context import Context
from llava_cli.engines.gguf.engine import GgufEngine
from llava_cli.errors import LlavaError
from llava_cli.images import Image
from tests import tiny
from tests.llava_cli.engines.guests import Guests

GREEDY = Sampling(max_tokens=8)
PICTURES = [Image.from_pil(tiny.picture(60 + seed, 70, seed=seed)) for seed in range(6)]


@pytest.fixture(scope="module")
def gguf(bpe_gguf_folder: Path) -> Iterator[GgufEngine]:
    loaded = GgufEngine(models.resolve(str(bpe_gguf_folder)), threads=1)
    yield loaded
    loaded.close()


class Counter:
    """What was read into contexts, and how wide they were."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.positions = self.calls = self.widest = 0
        self.open = 0
        self.wide: list[Context] = []
        """Contexts of batches, of which a single conversation needs none."""
        real, close, made = Context._decode, Context.close, Context._made

        def counting(context: Context, *arguments: Any) -> Any:
            self.calls += 1
            self.positions += len(arguments[1])
            self.widest = max(self.widest, len(context.cells))
            return real(context, *arguments)

        def closing(context: Context) -> None:
            self.open -= context.capacity > 0
            close(context)

        def making(context: Context, positions: int) -> Any:
            self.open += 1
            if len(context.cells) > 2:
                self.wide.append(context)
            return made(context, positions)

        monkeypatch.setattr(Context, "_decode", counting)
        monkeypatch.setattr(Context, "close", closing)
        monkeypatch.setattr(Context, "_made", making)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter:
    return Counter(monkeypatch)


def asking(*content: str | Image) -> Conversation:
    return Conversation().add("user", *content)


def mixed() -> list[Conversation]:
    """Pictures in front, between, several, none, the same again; turns, systems, prefills."""
    found = [asking(PICTURES[i % 6], "what is odd?" + " why?" * (i % 4)) for i in range(12)]
    found += [asking("in words alone"), asking("a", PICTURES[0], "b", PICTURES[1], "c")]
    found += [asking(PICTURES[2], "what?").add("assistant", "It is"), asking("?")]
    found.append(Conversation().add("system", "Be brief.").add("user", PICTURES[3], "what?"))
    found.append(asking(PICTURES[4], "q").add("assistant", "a").add("user", PICTURES[5], "why?"))
    return found


def alone(
    gguf: GgufEngine, asked: Sequence[Conversation], sampling: Sampling = GREEDY
) -> list[list[tuple[Any, ...]]]:
    return [
        [(t.id, t.text, t.finish_reason) for t in gguf.generate(conversation, sampling)]
        for conversation in asked
    ]


def together(
    gguf: GgufEngine, asked: Sequence[Conversation], sampling: Sampling = GREEDY
) -> list[list[tuple[Any, ...]]]:
    found: list[list[tuple[Any, ...]]] = [[] for _ in asked]
    for index, t in gguf.generate_batch(asked, sampling):
        found[index].append((t.id, t.text, t.finish_reason))
    return found


@pytest.mark.parametrize("slots", [1, 3, 16])
def test_together_they_say_what_each_says_alone(
    gguf: GgufEngine, counted: Counter, slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "MOST_SLOTS", slots)
    asked = mixed()
    found = together(gguf, asked)
    assert found == alone(gguf, asked)
    assert counted.widest == max(slots, 2)  # 2: the context that `alone` uses


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.0, seed=7, max_tokens=9),
        Sampling(max_tokens=20, stop=("a", "e")),
        Sampling(max_tokens=1, top_logprobs=3),
        Sampling(max_tokens=9, repeat_penalty=1.3),
    ],
    ids=["drawn", "stop", "one", "penalty"],
)
def test_however_tokens_are_chosen(gguf: GgufEngine, sampling: Sampling) -> None:
    asked = mixed()
    assert together(gguf, asked, sampling) == alone(gguf, asked, sampling)


def test_what_all_begin_with_is_read_once_and_tokens_are_read_together(
    gguf: GgufEngine, counted: Counter
) -> None:
    asked = [asking(picture, "what is odd?") for picture in PICTURES]
    prompt = gguf.prompt_ids(asked[0])
    head = prompt.index("image")
    tail = len(prompt) - head - 1
    found = together(gguf, asked)
    answers = sum(len(answer) - 2 for answer in found)  # the last token is never read
    assert counted.positions == head + 6 * (tiny.TOKENS + tail) + answers
    assert counted.calls == 1 + 6 + 1 + max(len(answer) - 2 for answer in found)


def test_questions_about_one_picture_read_it_once(gguf: GgufEngine, counted: Counter) -> None:
    asked = [asking(PICTURES[0], question) for question in ("what?", "why?", "how many?")]
    found = together(gguf, asked)
    texts = sum(len(gguf.prompt_ids(conversation)) - 1 for conversation in asked)
    assert counted.positions < tiny.TOKENS + texts
    assert found == alone(gguf, asked)


def test_a_longer_prompt_waits_for_a_wider_context(
    gguf: GgufEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "MOST_SLOTS", 2)
    asked = [asking("short"), asking("short, too"), asking("?"), asking("word " * 60), asking("x")]
    sampling = Sampling(max_tokens=3)
    assert together(gguf, asked, sampling) == alone(gguf, asked, sampling)


@pytest.mark.parametrize("bad", ["long", "damaged"])
def test_an_error_comes_when_those_before_it_are_answered(gguf: GgufEngine, bad: str) -> None:
    wrong = asking("word " * 300)
    if bad == "damaged":
        wrong = asking(Image.from_bytes(b"no picture", "bad.png", "data"), "what?")
    asked = [*mixed()[:3], wrong, asking("x")]
    found: list[list[Any]] = [[] for _ in asked]
    with pytest.raises(LlavaError):
        for index, token in gguf.generate_batch(asked, GREEDY):
            found[index].append((token.id, token.text, token.finish_reason))
    assert found[:3] == alone(gguf, asked[:3])
    assert found[3:] == [[], []]


def test_little_memory_means_few_slots(
    gguf: GgufEngine, counted: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, settings = gguf.files, gguf.setup.context
    each = 100 * memory.bytes_a_position(files.config, settings.kv_type)
    weights = sum(p.stat().st_size for p in (files.path, files.mmproj) if p is not None)
    for slots in (1, 3, 5):
        monkeypatch.setattr(memory, "available_bytes", lambda n=slots: weights + 2 * n * each)
        assert memory.slots_for(100, settings, files) == slots
    monkeypatch.setattr(memory, "available_bytes", lambda: 0)
    assert memory.slots_for(100, settings, files) == 1
    monkeypatch.setattr(engine, "slots_for", lambda *_: 2)
    together(gguf, mixed())
    assert counted.widest == 2


def test_a_position_takes_the_bytes_that_llama_cpp_takes(gguf: GgufEngine) -> None:
    context = gguf._context
    list(gguf.generate(asking("word " * 70), GREEDY))
    count = len(context.cells[0])
    each = memory.bytes_a_position(gguf.files.config, gguf.setup.context.kv_type)
    assert count * each <= context.state_bytes(0) <= count * each * 1.05 + 1000


def test_an_abandoned_batch_frees_its_context(gguf: GgufEngine, counted: Counter) -> None:
    stream = gguf.generate_batch(mixed(), GREEDY)
    next(stream)
    assert counted.open == 1
    stream.close()  # type: ignore[attr-defined]
    assert counted.open == 0


def test_every_answer_carries_its_own_stats(gguf: GgufEngine) -> None:
    asked = mixed()
    stats: dict[int, Stats] = {}
    for index, token in gguf.generate_batch(asked, GREEDY):
        if token.stats is not None:
            assert index not in stats
            stats[index] = token.stats
    assert sorted(stats) == list(range(len(asked)))
    for index, conversation in enumerate(asked):
        found = stats[index]
        assert found.image_tokens == tiny.TOKENS * len(conversation.images)
        ids = gguf.prompt_ids(conversation)
        assert found.prompt_tokens == len(ids) - len(conversation.images)
        assert [info.source for info in found.images] == ["memory"] * len(conversation.images)


def test_of_many_pictures_only_the_last_are_kept_in_memory(
    gguf: GgufEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llava_cli.engines.gguf.pictures._KEPT_PICTURES", 2)
    gguf._pictures._rows.clear()
    together(gguf, [asking(picture, "what?") for picture in PICTURES])
    assert len(gguf._pictures._rows) == 2


def test_no_conversations_no_answers(gguf: GgufEngine) -> None:
    assert list(gguf.generate_batch([], GREEDY)) == []


def test_who_comes_later_joins_with_settings_of_their_own(
    gguf: GgufEngine, counted: Counter
) -> None:
    drawn = Sampling(temperature=1.0, seed=3, max_tokens=5)
    asked = mixed()
    for first in (1, 3):  # one alone goes on from what was read before it
        guests = Guests([(asked[5], drawn), (asked[12], GREEDY), (asked[14], GREEDY)])
        found = guests.listen(gguf, asked[:first], GREEDY)
        assert found[:first] == alone(gguf, asked[:first])
        assert found[first:] == [
            *alone(gguf, [asked[5]], drawn),
            *alone(gguf, [asked[12], asked[14]]),
        ]
        assert guests.errors == {}
    assert counted.wide and all(context.capacity == 0 for context in counted.wide)


@pytest.mark.parametrize("count", [1, 4])
def test_who_leaves_frees_the_slot_and_ends_no_other(
    gguf: GgufEngine, counted: Counter, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "MOST_SLOTS", 3)
    asked = mixed()[:count]
    guests = Guests([(asking("in words alone"), GREEDY)], patience={0: 2})
    found = guests.listen(gguf, asked, GREEDY)
    assert found[0] == alone(gguf, asked)[0][:2]
    assert found[1:] == [*alone(gguf, asked[1:]), *alone(gguf, [asking("in words alone")])]
    assert counted.wide and all(context.capacity == 0 for context in counted.wide)


def test_what_one_cannot_have_ends_no_other(gguf: GgufEngine) -> None:
    damaged = asking(Image.from_bytes(b"no picture", "bad.png", "data"), "what?")
    asked = [*mixed()[:3], asking("word " * 300), damaged, asking("x")]
    guests = Guests([(asking("word " * 300), GREEDY), (asking("in words alone"), GREEDY)])
    found = guests.listen(gguf, asked, GREEDY)
    assert found == alone(gguf, [*asked[:3], asked[5], asking("in words alone")])
    assert sorted(guests.heard) == [0, 1, 2, 5, 7]
    assert sorted(guests.errors) == [3, 4, 6]


def test_a_context_that_more_ask_for_than_it_was_made_for_is_made_anew(
    gguf: GgufEngine, counted: Counter
) -> None:
    asked = mixed()
    guests = Guests([(conversation, GREEDY) for conversation in asked[2:]])
    found = guests.listen(gguf, asked[:2], GREEDY)
    assert found == alone(gguf, asked)
    assert counted.widest >= 4
