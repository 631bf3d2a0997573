"""GGUF models of other families: SmolVLM, Gemma 3, Qwen2-VL, Qwen2.5-VL, Pixtral.

Two references that know nothing of our loop: transformers with the same numbers, and mtmd's own
`mtmd_helper_eval_chunks`.
"""

from __future__ import annotations

import ctypes
import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("llama_cpp")

from llava_cli import engines, models
from llava_cli.cache import Costs, DiskCache
from llava_cli.conversation import Conversation
from llava_cli.engines.base import Sampling, Stats
from llava_cli.engines.gguf import binding
from llava_cli.engines.gguf.binding import lib, mtmd
from llava_cli.engines.gguf.engine import GgufEngine
from llava_cli.engines.tuning import Tuning
from llava_cli.errors import UsageError
from llava_cli.images import Image
from tests import tiny, tiny_families
from tests.tiny_families import FAMILIES

NAMES = tuple(FAMILIES)
Load = Callable[..., GgufEngine]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a family's tiny model."""
    base = tmp_path_factory.mktemp("families")

    def made(name: str) -> Path:
        return base / name if (base / name).exists() else tiny_families.build(base / name, name)

    return made


@pytest.fixture
def load(folder: Callable[[str], Path]) -> Iterator[Load]:
    """Engines, closed at the end."""
    made: list[GgufEngine] = []

    def go(name: str, **options: Any) -> GgufEngine:
        made.append(GgufEngine(models.resolve(str(folder(name))), threads=1, **options))
        return made[-1]

    yield go
    for engine in made:
        engine.close()


def native(name: str, seed: int = 0) -> Any:
    """A picture that the tower reads as it is."""
    return tiny.picture(*FAMILIES[name].picture, seed=seed)


def asking(*content: Any) -> Conversation:
    parts = [part if isinstance(part, str) else Image.from_pil(part) for part in content]
    return Conversation().add("user", *parts)


def answered(engine: GgufEngine, conversation: Conversation, n: int = 8) -> tuple[list[int], Stats]:
    tokens = list(engine.generate(conversation, Sampling(max_tokens=n)))
    stats = tokens[-1].stats
    assert stats is not None
    return [token.id for token in tokens if token.id is not None], stats


def begins(found: Sequence[int], wanted: Sequence[int]) -> bool:
    """An answer that its own end may have cut short."""
    ends = wanted[len(found)] if len(found) < len(wanted) else 0
    return list(found) == list(wanted[: len(found)]) and ends < len(tiny_families.CONTROLS)


# ---- against transformers


@pytest.mark.parametrize("name", NAMES)
def test_the_same_tokens_as_transformers(
    load: Load, folder: Callable[[str], Path], name: str
) -> None:
    pytest.importorskip("transformers")
    from tests.families_torch import Reference

    engine, pixels = load(name), native(name)
    conversation = asking(pixels, "what is this?")
    cells = engine._reader.prompt(conversation).cells
    ids = [cell if isinstance(cell, int) else None for cell in cells]
    reference = Reference(folder(name), name)
    wanted, logits = reference.answer(ids, np.asarray(pixels), 16)
    found, _ = answered(engine, conversation, 16)
    assert len(found) > 4 and begins(found, wanted)
    ours = engine.first_logits(conversation)
    assert np.abs(ours - logits).max() < 2e-2 < np.abs(logits).max() / 100
    other, far = reference.answer(ids, np.asarray(native(name, 1)), 1)
    assert np.abs(ours - far).max() > 0.5, other  # the picture matters


# ---- against mtmd's own loop


def mtmd_route(folder: Path, name: str, text: str, pictures: list[Any], n: int) -> list[int]:
    """Greedy ids by llama.cpp's helper; `<__media__>` stands for each picture in the text."""
    binding.start()
    model = lib.llama_model_load_from_file(
        str(folder / f"{name}.gguf").encode(), lib.llama_model_default_params()
    )
    parameters = lib.llama_context_default_params()
    parameters.n_ctx, parameters.type_k, parameters.type_v = 1024, 0, 0
    parameters.flash_attn_type = 0
    context = lib.llama_init_from_model(model, parameters)
    vision = mtmd.mtmd_context_params_default()
    vision.warmup, vision.flash_attn_type = False, 0
    eyes = mtmd.mtmd_init_from_file(str(folder / f"mmproj-{name}.gguf").encode(), model, vision)
    bitmaps = []
    for picture in pictures:
        raw = np.ascontiguousarray(np.asarray(picture, np.uint8))
        data = raw.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        bitmaps.append(mtmd.mtmd_bitmap_init(raw.shape[1], raw.shape[0], data))
    chunks = mtmd.mtmd_input_chunks_init()
    given = mtmd.mtmd_input_text(text.encode(), len(text.encode()), True, True)
    array = (ctypes.c_void_p * max(len(bitmaps), 1))(*bitmaps)
    assert mtmd.mtmd_tokenize(eyes, chunks, ctypes.byref(given), array, len(bitmaps)) == 0
    past = lib.llama_pos(0)
    code = mtmd.mtmd_helper_eval_chunks(eyes, context, chunks, 0, 0, 512, True, ctypes.byref(past))
    assert code == 0
    vocabulary = lib.llama_model_get_vocab(model)
    count = lib.llama_vocab_n_tokens(vocabulary)
    found: list[int] = []
    batch = lib.llama_batch_init(1, 0, 1)
    while len(found) < n:
        logits = np.ctypeslib.as_array(lib.llama_get_logits_ith(context, -1), (count,))
        token = int(logits.argmax())
        if lib.llama_vocab_is_eog(vocabulary, token):
            break
        found.append(token)
        batch.n_tokens, batch.token[0], batch.pos[0] = 1, token, past.value
        batch.n_seq_id[0], batch.seq_id[0][0], batch.logits[0] = 1, 0, True
        assert lib.llama_decode(context, batch) == 0
        past.value += 1
    lib.llama_batch_free(batch)
    mtmd.mtmd_input_chunks_free(chunks)
    for bitmap in bitmaps:
        mtmd.mtmd_bitmap_free(bitmap)
    mtmd.mtmd_free(eyes)
    lib.llama_free(context)
    lib.llama_model_free(model)
    return found


def written(name: str, turns: Sequence[tuple[str, str]]) -> str:
    """What a family's template writes, ending where the assistant is to speak."""
    if name == "pixtral":
        return "".join(
            f"[INST]{text}[/INST]" if who == "user" else f"{text}</s>" for who, text in turns
        )
    start, end = OPEN[name], CLOSE[name] + "\n"
    return "".join(f"{start}{who}\n{text}{end}" for who, text in turns) + f"{start}assistant\n"


OPEN = {"smolvlm": "<|im_start|>", "gemma3": "<start_of_turn>", "qwen2vl": "<|im_start|>",
        "qwen2.5vl": "<|im_start|>"}  # fmt: skip
CLOSE = {"smolvlm": "<end_of_utterance>", "gemma3": "<end_of_turn>", "qwen2vl": "<|im_end|>",
         "qwen2.5vl": "<|im_end|>", "pixtral": "[/INST]"}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_the_same_tokens_as_mtmds_own_loop(
    load: Load, folder: Callable[[str], Path], name: str
) -> None:
    """Two turns, three pictures of sizes that mtmd must change, text on both sides."""
    wide, tall, small = (
        tiny.picture(*size, seed=size[0]) for size in ((150, 70), (60, 130), (40, 40))
    )
    conversation = asking("first", wide, tall, "what?").add("assistant", "two things")
    conversation = conversation.add("user", Image.from_pil(small), "and the third?")
    turns = [
        ("user", "first<__media__><__media__>what?"),
        ("assistant", "two things"),
        ("user", "<__media__>and the third?"),
    ]
    text = written(name, turns)
    wanted = mtmd_route(folder(name), name, text, [wide, tall, small], 24)
    found, stats = answered(load(name), conversation, 24)
    assert found == wanted and len(found) > 2
    assert sum(image.tokens for image in stats.images) == stats.image_tokens


# ---- reading nothing twice


def talk(rng: random.Random, pictures: list[Image]) -> Iterator[Conversation]:
    """A conversation that grows, is edited, and branches."""
    words = "what is the red circle and why 3 no yes".split()

    def turn() -> list[str | Image]:
        parts: list[str | Image] = [" ".join(rng.choices(words, k=rng.randint(1, 4)))]
        for _ in range(rng.choice([0, 1, 1, 2])):
            parts.insert(rng.randint(0, len(parts)), rng.choice(pictures))
        return parts

    branches = [Conversation().add("user", *turn())]
    while True:
        yield branches[-1]
        one = rng.choice(branches[-3:])
        if len(one.messages) < 6 and rng.random() < 0.7:
            branches.append(one.add("assistant", "so it is").add("user", *turn()))
        else:  # the last question is asked differently
            branches.append(Conversation(one.messages[:-1]).add("user", *turn()))


def kept(folder: Path) -> DiskCache:
    """A cache that keeps whatever it is offered."""
    free = Costs(bytes_per_s=1e18, seconds=0.0, margin=0.0)
    return DiskCache(folder / "cache", 1 << 30, report=lambda _: None, costs=free)


@pytest.mark.parametrize("name", NAMES)
def test_random_conversations_are_answered_as_by_a_fresh_engine(
    load: Load, tmp_path: Path, name: str
) -> None:
    used, restarted, fresh = (
        load(name, cache=kept(tmp_path)),
        load(name, cache=kept(tmp_path)),
        load(name),
    )
    sizes = ((150, 70), (60, 130), (40, 40), FAMILIES[name].picture)
    pictures = [Image.from_pil(tiny.picture(*size, seed=size[0])) for size in sizes]
    reused = from_disk = 0
    for number, conversation in zip(range(40), talk(random.Random(3), pictures), strict=False):
        fresh._context.forget()
        wanted, _ = answered(fresh, conversation, 4)
        found, stats = answered(used, conversation, 4)
        assert found == wanted, number
        reused += stats.prefix_tokens_reused > 10
        restarted._context.forget()  # another run, which knows only what is on the disk
        restarted._pictures._rows.clear()
        found, stats = answered(restarted, conversation, 4)
        assert found == wanted, number
        from_disk += stats.prefix_tokens_reused > 10
    assert reused > 15 and from_disk > 15
    assert restarted._pictures.encoded == 0


@pytest.mark.parametrize("name", NAMES)
def test_a_later_turn_reads_only_what_is_new(load: Load, name: str) -> None:
    engine = load(name)
    first = asking(native(name), "what is this?")
    text = "".join(token.text for token in engine.generate(first, Sampling(max_tokens=4)))
    before = len(engine._reader.prompt(first).cells)
    _, stats = answered(engine, first.add("assistant", text).add("user", "why?"))
    assert stats.prefix_tokens_reused >= before - 1
    assert stats.cache_image == "hit" and engine._pictures.encoded == 1


@pytest.mark.parametrize("name", NAMES)
def test_many_at_once_are_answered_as_alone(load: Load, name: str) -> None:
    engine = load(name)
    questions = ["what is this?", "why?", "and how many are there?"]
    conversations = [
        asking(tiny.picture(60 + 30 * seed, 90, seed=seed), questions[seed % 3])
        for seed in range(5)
    ]
    found: dict[int, list[int]] = {place: [] for place in range(5)}
    for place, token in engine.generate_batch(conversations, Sampling(max_tokens=6)):
        found[place] += [] if token.id is None else [token.id]
    for place, conversation in enumerate(conversations):
        engine._context.forget()
        assert found[place] == answered(engine, conversation, 6)[0]


@pytest.mark.parametrize("name", ["gemma3", "qwen2vl"])
def test_a_picture_larger_than_a_batch_is_read_whole(load: Load, name: str) -> None:
    conversation = asking("look:", native(name), "what is this?")
    narrow = load(name, tuning=Tuning(ubatch=4))
    assert answered(narrow, conversation)[0] == answered(load(name), conversation)[0]


@pytest.mark.parametrize("name", ["gemma3", "qwen2vl"])
def test_a_stopped_picture_is_read_again(
    load: Load, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load(name)
    wanted, _ = answered(engine, asking("see", native(name), "what?"))
    engine._context.forget()
    read, stopped = engine._context.read_tile, []

    def stop_first(*arguments: Any) -> Any:
        engine._interrupt.stop()  # nobody raises, as where a signal was for something else
        stopped.append(arguments)
        return read(*arguments)

    monkeypatch.setattr(engine._context, "read_tile", stop_first)
    assert answered(engine, asking("see", native(name), "what?"))[0] == wanted
    assert stopped


# ---- what is said


@pytest.mark.parametrize("name", NAMES)
def test_marks_of_the_model_in_a_question_are_words(load: Load, name: str) -> None:
    engine = load(name)
    ids = engine.prompt_ids(asking(native(name), f"a{CLOSE[name]}<image></s>b<__media__>"))
    written = [token for token in ids if isinstance(token, int)]
    marks = [w for w in written if w < len(tiny_families.CONTROLS)]
    plain = engine.prompt_ids(asking(native(name), "ab"))
    assert ids.count("image") == 1
    assert marks == [w for w in plain if isinstance(w, int) and w < len(tiny_families.CONTROLS)]


@pytest.mark.parametrize("name", NAMES)
def test_a_prefill_is_continued_and_choices_have_probabilities(load: Load, name: str) -> None:
    engine = load(name)
    question = asking(native(name), "what is this?")
    whole = engine.prompt_ids(question)
    assert engine.prompt_ids(question.add("assistant", "It is"))[: len(whole)] == whole
    last = list(engine.generate(question, Sampling(choices=(("yes",), ("no",)))))[-1]
    shares = dict(last.probabilities)
    assert set(shares) == {"yes", "no"} and abs(sum(shares.values()) - 1) < 1e-6


def test_what_a_template_refuses_is_said(load: Load) -> None:
    conversation = Conversation().add("system", "be short").add("user", "what?")
    with pytest.raises(UsageError, match="there is no system role"):
        load("gemma3").prompt_ids(conversation)
    assert load("qwen2vl").prompt_ids(conversation)


@pytest.mark.parametrize("name", NAMES)
def test_an_estimate_knows_the_tokens(load: Load, folder: Callable[[str], Path], name: str) -> None:
    conversation = asking("see", tiny.picture(150, 70), "what is this?")
    found = engines.estimate(models.resolve(str(folder(name))), conversation, Sampling())
    _, stats = answered(load(name), conversation, 1)
    counts = (found.prompt_tokens, found.image_tokens)
    assert counts == (stats.prompt_tokens, stats.image_tokens)


def test_fewer_image_tokens_are_a_smaller_picture(load: Load) -> None:
    picture = tiny.picture(280, 224)
    whole, few = load("qwen2vl"), load("qwen2vl", image_tokens=30)
    _, stats = answered(whole, asking(picture, "what?"))
    assert stats.image_tokens == 80
    found, stats = answered(few, asking(picture, "what?"))
    assert 20 <= stats.image_tokens <= 30
    size = few._pictures.encoder._fitted(280, 224)  # type: ignore[attr-defined]
    assert found == answered(whole, asking(picture.resize(size), "what?"))[0]
    small = tiny.picture(112, 84)
    assert answered(few, asking(small, "?"))[0] == answered(whole, asking(small, "?"))[0]
    with pytest.raises(UsageError, match="reads no picture in 3 tokens"):
        answered(load("smolvlm", image_tokens=3), asking(small, "?"))


# ---- the commands


def llava(*arguments: str | Path, stdin: str = "") -> str:
    done = subprocess.run(
        [sys.executable, "-m", "llava_cli", *map(str, arguments), "--max-tokens", "6"],
        input=stdin.encode(),
        capture_output=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def test_ask_chat_and_caption_take_other_families(
    folder: Callable[[str], Path], load: Load, tmp_path: Path
) -> None:
    pictures = [tmp_path / "a.png", tmp_path / "b.png"]
    for seed, path in enumerate(pictures):
        tiny.picture(90 + 30 * seed, 60, seed=seed).save(path)
    model = folder("qwen2vl")
    told = json.loads(llava("ask", "-m", model, pictures[0], "what?", "--json"))
    tokens, stats = answered(load("qwen2vl"), asking(tiny.picture(90, 60), "what?"), 6)
    assert told["prompt_format"] == "chat_template" and told["images"][0]["tokens"] > 0
    assert told["usage"]["completion_tokens"] == len(tokens)
    assert told["usage"]["image_tokens"] == stats.image_tokens
    said = llava("chat", "-m", folder("gemma3"), pictures[0], stdin="what is it?\nwhy?\n")
    assert said.strip()
    llava("caption", "-m", folder("smolvlm"), *pictures)
    assert all(path.with_suffix(".txt").exists() for path in pictures)
