"""Nothing is read twice, and nothing that is reused changes an answer."""

from __future__ import annotations

import ctypes
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llama_cpp")

from llava_cli import models
from llava_cli.cache import Costs, DiskCache, Draft
from llava_cli.conversation import Conversation, Message
from llava_cli.engines.base import Sampling, Stats
from llava_cli.engines.gguf.engine import GgufEngine
from llava_cli.engines.gguf.guard import GraphGuard
from llava_cli.engines.gguf.interrupt import Interrupt
from llava_cli.images import Image
from tests import tiny

QUESTION = "what is unusual here?"
WORDS = [*"what is the red circle and blue square how many why no yes 3 🙂 naïve".split(), "\n"]


def picture(seed: int) -> Image:
    return Image.from_pil(tiny.picture(60 + seed, 70, seed=seed))


PICTURES = [picture(seed) for seed in range(4)]


def asking(*content: str | Image) -> Conversation:
    return Conversation().add("user", *content)


def answer(engine: GgufEngine, conversation: Conversation, n: int = 6) -> tuple[list[Any], Stats]:
    tokens = list(engine.generate(conversation, Sampling(max_tokens=n)))
    stats = tokens[-1].stats
    assert stats is not None
    return [token.id for token in tokens], stats


def cache(folder: Path, notes: list[str] | None = None) -> DiskCache:
    """One that keeps whatever it is offered."""
    report = notes.append if notes is not None else lambda _: None
    free = Costs(bytes_per_s=1e18, seconds=0.0, margin=0.0)
    return DiskCache(folder / "cache", 1 << 30, report=report, costs=free)


@pytest.fixture(scope="module")
def load(bpe_gguf_folder: Path) -> Iterator[Callable[..., GgufEngine]]:
    """Engines of the tiny float32 model, closed at the end."""
    made: list[GgufEngine] = []

    def go(store: DiskCache | None = None, **options: Any) -> GgufEngine:
        made.append(
            GgufEngine(models.resolve(str(bpe_gguf_folder)), threads=1, cache=store, **options)
        )
        return made[-1]

    yield go
    for engine in made:
        engine.close()


Load = Callable[..., GgufEngine]


class Talk:
    """Random conversations: turns are added, edited, regenerated, taken back; branches return."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.branches: list[Conversation] = [self.opening()]

    def text(self) -> str:
        return " ".join(self.rng.choices(WORDS, k=self.rng.randint(1, 5)))

    def content(self) -> list[str | Image]:
        parts: list[str | Image] = [self.text()]
        for _ in range(self.rng.choice([0, 0, 1, 1, 2])):
            parts.insert(self.rng.randint(0, len(parts)), self.rng.choice(PICTURES))
        return parts

    def opening(self) -> Conversation:
        start = Conversation()
        if self.rng.random() < 0.3:
            start = start.add("system", self.text())
        return start.add("user", *self.content())

    def next(self) -> Conversation:
        """The next conversation to be answered; its last turn is the user's."""
        rng = self.rng
        conversation = rng.choice(self.branches[-3:])
        messages = list(conversation.messages)
        act = rng.random()
        if act < 0.5 and len(messages) < 7:
            conversation = conversation.add("assistant", self.text()).add("user", *self.content())
        elif act < 0.7:  # an earlier turn of the user is edited
            turns = [i for i, message in enumerate(messages) if message.role == "user"]
            place = rng.choice(turns)
            messages[place] = Message("user", tuple(self.content()))
            conversation = Conversation(tuple(messages[: place + 1]))
        elif act < 0.8 and len(messages) > 2:  # two turns are taken back
            conversation = Conversation(tuple(messages[:-2]))
        elif act > 0.95:
            conversation = self.opening()
        self.branches.append(conversation)
        return conversation


def test_200_random_conversations_are_answered_as_by_a_fresh_engine(
    load: Load, tmp_path: Path
) -> None:
    used, restarted, fresh = load(cache(tmp_path)), load(cache(tmp_path)), load()
    reused = 0
    talk = Talk(1)
    for number in range(200):
        if number % 25 == 24:
            talk = Talk(number)
        conversation = talk.next()
        fresh._context.forget()
        wanted, _ = answer(fresh, conversation)
        found, stats = answer(used, conversation)
        assert found == wanted, number
        reused += stats.prefix_tokens_reused > 60
        if number % 4 == 0:  # another run, which knows only what is on the disk
            restarted._context.forget()
            restarted._pictures._rows.clear()
            assert answer(restarted, conversation)[0] == wanted, number
    assert reused > 100
    assert restarted._pictures.encoded == 0


def test_an_abandoned_answer_does_not_spoil_the_next(load: Load) -> None:
    engine, fresh = load(), load()
    for seed in range(4):
        conversation = asking(PICTURES[seed], QUESTION)
        stream = engine.generate(conversation, Sampling(max_tokens=20))
        for _ in range(seed + 1):
            next(stream)
        stream.close()
        fresh._context.forget()
        assert answer(engine, conversation)[0] == answer(fresh, conversation)[0]


def test_a_later_run_reads_only_what_stands_behind_the_picture(load: Load, tmp_path: Path) -> None:
    first, stats = answer(load(cache(tmp_path)), asking(PICTURES[0], QUESTION))
    assert (stats.cache_image, stats.prefix_tokens_reused) == ("miss", 0)
    later = load(cache(tmp_path))
    again, stats = answer(later, asking(PICTURES[0], QUESTION))
    assert again == first
    assert stats.cache_image == "hit" and later._pictures._encoder is None
    assert stats.prefix_tokens_reused > tiny.TOKENS + 30
    other, stats = answer(later, asking(PICTURES[0], "something else"))
    assert stats.prefix_tokens_reused > tiny.TOKENS + 30
    assert other == answer(load(), asking(PICTURES[0], "something else"))[0]


def test_what_was_read_is_on_the_disk_with_the_answers_last_token_but_not_of_a_broken_off_one(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = cache(tmp_path)
    keep, held = Draft.keep, threading.Event()

    def slow(draft: Draft, *rest: Any) -> bool:
        if threading.current_thread().name == "llava-state":
            held.wait()
        return keep(draft, *rest)

    engine = load(store)
    monkeypatch.setattr(Draft, "keep", slow)
    broken_off = engine.generate(asking(PICTURES[0], QUESTION), Sampling(max_tokens=20))
    next(broken_off)
    next(broken_off)  # the state is being written
    threading.Timer(0.2, held.set).start()
    broken_off.close()
    assert {entry.kind for entry in store.entries()} == {"picture"}

    engine._context.forget()
    answer(engine, asking(PICTURES[0], QUESTION), n=1)
    assert {entry.kind for entry in store.entries()} == {"picture", "state"}


def test_another_prompt_in_front_of_a_known_picture_reuses_only_its_features(
    load: Load, tmp_path: Path
) -> None:
    answer(load(cache(tmp_path)), asking(PICTURES[0], QUESTION))
    later = load(cache(tmp_path))
    conversation = Conversation().add("system", "Be brief.").add("user", PICTURES[0], QUESTION)
    found, stats = answer(later, conversation)
    assert (stats.cache_image, stats.prefix_tokens_reused) == ("hit", 0)
    assert found == answer(load(), conversation)[0]


def test_other_settings_do_not_share_states(load: Load, tmp_path: Path) -> None:
    answer(load(cache(tmp_path)), asking(PICTURES[0], QUESTION))
    _, stats = answer(load(cache(tmp_path), kv_type="f16"), asking(PICTURES[0], QUESTION))
    assert stats.prefix_tokens_reused == 0 and stats.cache_image == "hit"


def test_what_is_cheap_to_compute_is_not_kept(load: Load, tmp_path: Path) -> None:
    store = DiskCache(tmp_path / "cache", 1 << 30, costs=Costs(seconds=1e6))
    answer(load(store), asking(PICTURES[0], QUESTION))
    assert store.entries() == []


def spoiled(whole: bytes) -> Iterator[bytes]:
    """A file cut short, at every byte of its head and at many of its body; and one changed."""
    for length in (*range(0, 300, 7), *range(300, len(whole), len(whole) // 40)):
        yield whole[:length]
    changed = bytearray(whole)
    changed[-1] ^= 1
    yield bytes(changed)


@pytest.mark.parametrize("kind", ["state", "picture"])
def test_a_spoiled_file_never_changes_an_answer(load: Load, tmp_path: Path, kind: str) -> None:
    conversation = asking(PICTURES[0], QUESTION)
    notes: list[str] = []
    store = cache(tmp_path, notes)
    wanted, _ = answer(load(store), conversation)
    paths = {entry.kind: entry.path for entry in store.entries()}
    whole = paths[kind].read_bytes()
    if kind == "picture":
        paths["state"].unlink()
    later = load(store)
    later._states._cache.draft = lambda *_: None  # type: ignore[union-attr,method-assign]
    count = 0
    for data in spoiled(whole):
        paths[kind].write_bytes(data)
        later._context.forget()
        later._pictures._rows.clear()
        assert answer(later, conversation)[0] == wanted
        count += 1
    assert len(notes) == count


def test_swapped_files_never_change_an_answer(load: Load, tmp_path: Path) -> None:
    asked = [asking(picture, QUESTION) for picture in PICTURES[:2]]
    store = cache(tmp_path)
    engine = load(store)
    wanted = [answer(engine, conversation)[0] for conversation in asked]
    assert wanted[0] != wanted[1]
    for kind in ("state", "picture"):
        one, two = (entry.path for entry in store.entries() if entry.kind == kind)
        first, second = one.read_bytes(), two.read_bytes()
        one.write_bytes(second)
        two.write_bytes(first)
        later = load(cache(tmp_path))
        assert [answer(later, conversation)[0] for conversation in asked] == wanted


# ---- Ctrl-C


def test_a_raised_flag_stops_llama_cpp_and_leaves_what_was_read(load: Load) -> None:
    engine = load()
    wanted, _ = answer(engine, asking(PICTURES[0], QUESTION))
    read = list(engine._context.cells[0])

    class Stopped(Exception):
        pass

    def stopped() -> None:
        raise Stopped

    engine._interrupt.clear = stopped  # type: ignore[method-assign]
    engine._interrupt.stop()
    with pytest.raises(Stopped):
        engine._context.read_tokens([5, 6, 7])
    assert engine._context.cells[0] == read
    del engine._interrupt.clear
    engine._interrupt.stop()  # nobody raises: the computation is done again
    assert answer(engine, asking(PICTURES[0], QUESTION))[0] == wanted


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_signal_is_heard_while_c_code_runs() -> None:
    interrupt = Interrupt()
    usleep = ctypes.CDLL(None).usleep
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        with interrupt.watch():
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
            usleep(200_000)
            deadline = time.monotonic() + 20
            while not interrupt.raised and time.monotonic() < deadline:
                usleep(1000)
        assert interrupt.raised
    finally:
        signal.signal(signal.SIGINT, before)
        interrupt.close()


def test_ctrl_c_while_a_picture_is_encoded_ends_it_and_nothing_else(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load()
    conversation = asking(PICTURES[0], QUESTION)
    real = GraphGuard._before
    nodes = 0

    def interrupted(guard: GraphGuard, tensor: int) -> bool:
        nonlocal nodes
        nodes += 1
        if nodes == 10:
            signal.raise_signal(signal.SIGINT)
        return real(guard, tensor)

    with monkeypatch.context() as patch:
        patch.setattr(GraphGuard, "_before", interrupted)
        with pytest.raises(KeyboardInterrupt):
            answer(engine, conversation)
    assert nodes < 40
    assert answer(engine, conversation)[0] == answer(load(), conversation)[0]
