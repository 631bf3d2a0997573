"""LLaVA's JSON as samples, batches and an order that depends on nothing but its inputs."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from llava_cli.errors import DataError
from llava_cli.pixels import PixelConfig, normalise, prepare
from llava_cli.prompts import FORMATS, prompt_text, render
from llava_train.dataset import PLACE, EncodedData, Plan, encode, read
from llava_train.labels import IGNORE_INDEX, Encoder
from llava_train.loader import Loader
from llava_train.recipe import Recipe

RECIPE = Recipe(batch=4, micro_batch=3, workers=2, prefetch=2, group_batches=2)
PIXELS = PixelConfig(size=28)
Turns = list[tuple[str, str]]


def write(folder: Path, *samples: dict[str, Any], lines: bool = False) -> Path:
    path = folder / ("data.jsonl" if lines else "data.json")
    text = "\n".join(map(json.dumps, samples)) if lines else json.dumps(samples)
    path.write_text(text)
    return path


def sample(turns: Turns, **more: Any) -> dict[str, Any]:
    return {"id": "s1", "conversations": [{"from": f, "value": v} for f, v in turns], **more}


def encoded_of(path: Path, pictures: Path, tokenizer: Any, **changes: Any) -> EncodedData:
    encoder = Encoder(tokenizer, image_tokens=4, **changes)
    return encode(read([path]), pictures, encoder, FORMATS["vicuna_v1"], tokenizer.pad_token_id)


@pytest.mark.parametrize("lines", [False, True])
def test_json_and_json_lines_read_alike(tmp_path: Path, lines: bool) -> None:
    data = sample([("human", "Q <image>"), ("gpt", "A")], image="0.png")
    (got,) = read([write(tmp_path, data, lines=lines)])
    assert (got.images, got.turns, got.image_turns) == (
        ("0.png",), (("user", "Q <image>"), ("assistant", "A")), (0,)
    )  # fmt: skip


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("<image>\nQ", "<image>\nQ"),
        ("Q\n<image>", "<image>\nQ"),
        ("a <image> b", "<image>\na  b"),
        ("<image>\n<image>\nQ", "<image>\nQ"),
    ],
)
def test_the_placeholder_moves_to_the_front_once(tmp_path: Path, value: str, written: str) -> None:
    data = sample([("human", value), ("gpt", "A")], image="0.png")
    (got,) = read([write(tmp_path, data)])
    text = prompt_text(render(got.conversation(PLACE), FORMATS["vicuna_v1"]))
    assert f"USER: {written} ASSISTANT: A" in text


def test_a_picture_may_come_in_a_later_turn(tmp_path: Path) -> None:
    turns = [("human", "hi"), ("gpt", "A1"), ("human", "<image>\nQ2"), ("gpt", "A2")]
    (got,) = read([write(tmp_path, sample(turns, image="0.png"))])
    assert got.image_turns == (2,)


def test_a_leading_answer_and_an_unanswered_end_are_dropped(tmp_path: Path) -> None:
    turns = [("gpt", "hello"), ("human", "Q"), ("gpt", "A"), ("human", "Q2")]
    (got,) = read([write(tmp_path, sample(turns))])
    assert got.turns == (("user", "Q"), ("assistant", "A"))


def test_text_only_samples_keep_a_literal_placeholder_as_text(tmp_path: Path, bpe: Any) -> None:
    path = write(tmp_path, sample([("human", "the <image> tag?"), ("gpt", "an HTML tag")]))
    data = encoded_of(path, tmp_path, bpe)
    assert data.images == [()]
    assert bpe.convert_tokens_to_ids("<image>") not in data.row(0)[0]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (sample([("human", "Q"), ("human", "Q"), ("gpt", "A")]), "s1.*turn 2 does not alternate"),
        (sample([("human", "Q"), ("gpt", "A"), ("gpt", "A")]), "s1.*turn 3 does not alternate"),
        (sample([("alien", "Q"), ("gpt", "A")]), "s1.*'from'"),
        (sample([]), "s1.*no question"),
        (sample([("gpt", "A")]), "s1.*no question"),
        ({"id": "s1"}, "s1.*no question"),
        (sample([("human", "Q"), ("gpt", "A")], image="0.png"), "s1.*0 turns hold <image>"),
        (
            sample([("human", "<image>"), ("gpt", "A")] * 2, image="0.png"),
            "s1.*2 turns hold <image>",
        ),
        (sample([("human", "<image>"), ("gpt", "A")], image=["a", "b"]), "s1.*there are 1"),
        ("text", r"data.json\[0\] is not an object"),
    ],
)
def test_a_sample_that_cannot_be_used_is_named(
    tmp_path: Path, record: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read([write(tmp_path, record)])


@pytest.mark.parametrize("text", ["{]", "[1, ", '{"a": 1}\nnot json', "[]"])
def test_a_file_that_cannot_be_used_is_an_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(DataError):
        read([path])


@pytest.mark.parametrize(
    "path", ["../x.png", "a/../../x.png", "/etc/passwd", "..", "C:\\x.png", "a\0b"]
)
def test_a_picture_outside_of_its_folder_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(DataError, match="s1.*leaves the folder"):
        read([write(tmp_path, sample([("human", "<image>"), ("gpt", "A")], image=path))])


def test_a_missing_picture_is_found_before_training(tmp_path: Path, bpe: Any) -> None:
    path = write(tmp_path, sample([("human", "<image>"), ("gpt", "A")], image="no.png"))
    with pytest.raises(DataError, match=r"s1.*no\.png is missing"):
        encoded_of(path, tmp_path, bpe)


def test_a_broken_picture_is_an_error_that_names_the_sample(tmp_path: Path, bpe: Any) -> None:
    (tmp_path / "0.png").write_bytes(b"not a picture")
    path = write(tmp_path, sample([("human", "<image>"), ("gpt", "A")], image="0.png"))
    loader = Loader(encoded_of(path, tmp_path, bpe), PIXELS, RECIPE)
    with pytest.raises(DataError, match="s1"):
        list(loader.steps(lambda step: [np.array([0])], 0, 1))


def test_an_answer_of_nothing_is_an_error_that_names_the_sample(tmp_path: Path, bpe: Any) -> None:
    path = write(tmp_path, sample([("human", "Q"), ("gpt", "")]))
    with pytest.raises(DataError, match="s1.*no token bears loss"):
        encoded_of(path, tmp_path, bpe)


def test_plain_takes_pairs_only(talks: Path, pictures: Path, bpe: Any) -> None:
    with pytest.raises(DataError, match="talk-1.*one picture, one question and one answer"):
        encode(read([talks]), pictures, Encoder(bpe), FORMATS["plain"], 0)


def test_stored_rows_are_what_the_encoder_gave(talks: Path, pictures: Path, bpe: Any) -> None:
    data = encoded_of(talks, pictures, bpe)
    encoder = Encoder(bpe, image_tokens=4)
    for index, got in enumerate(read([talks])):
        want = encoder.encode(render(got.conversation(PLACE), FORMATS["vicuna_v1"], complete=True))
        ids, labels = data.row(index)
        assert (ids.tolist(), labels.tolist()) == (want.ids, want.labels)
        assert data.lengths[index] == len(want.ids)


def test_cut_samples_are_counted(talks: Path, pictures: Path, bpe: Any) -> None:
    whole = encoded_of(talks, pictures, bpe)
    limit = int(whole.lengths.max()) - 1
    cut = encoded_of(talks, pictures, bpe, max_length=limit)
    assert cut.cut == (whole.lengths > limit).sum() > 0
    assert cut.lengths.max() == limit


def test_batches_are_padded_on_the_right_without_loss(
    talks: Path, pictures: Path, bpe: Any
) -> None:
    data = encoded_of(talks, pictures, bpe)
    batch = Loader(data, PIXELS, RECIPE).batch(np.array([0, 3, 2]))
    assert batch.ids.shape[1] % 8 == 0 and batch.tokens == data.lengths[[0, 3, 2]].sum()
    for place, index in enumerate((0, 3, 2)):
        ids, labels = data.row(index)
        assert batch.ids[place, : len(ids)].tolist() == ids.tolist()
        assert set(batch.ids[place, len(ids) :].tolist()) <= {bpe.pad_token_id}
        assert batch.labels[place, : len(ids)].tolist() == labels.tolist()
        assert set(batch.labels[place, len(ids) :].tolist()) <= {IGNORE_INDEX}


@pytest.mark.parametrize("cache", [0, 1])
def test_pictures_are_prepared_as_everywhere(
    talks: Path, pictures: Path, bpe: Any, tiny: ModuleType, cache: int
) -> None:
    loader = Loader(encoded_of(talks, pictures, bpe), PIXELS, replace(RECIPE, pixel_cache_mb=cache))
    for _ in range(2):  # the second time from the cache
        batch = loader.batch(np.array([1, 3, 4]))
        assert batch.pixels is not None and batch.pixels.shape == (2, 3, 28, 28)
        for row, seed in enumerate((1, 4)):
            pixels = prepare(tiny.picture(40 + 4 * seed, 36, seed), PIXELS)
            assert np.array_equal(batch.pixels[row].numpy(), normalise(pixels, PIXELS))


def test_text_only_batches_have_no_pixels(talks: Path, pictures: Path, bpe: Any) -> None:
    batch = Loader(encoded_of(talks, pictures, bpe), PIXELS, RECIPE).batch(np.array([3, 7]))
    assert batch.pixels is None


@pytest.fixture
def data(talks: Path, pictures: Path, bpe: Any) -> EncodedData:
    return encoded_of(talks, pictures, bpe)


@pytest.mark.parametrize("grouping", ["none", "length", "modality"])
def test_every_epoch_reads_every_sample_once(data: EncodedData, grouping: str) -> None:
    plan = Plan(data, replace(RECIPE, batch=5, grouping=grouping, epochs=3.0))
    assert (plan.per_epoch, plan.steps) == (3, 9)
    for epoch in range(3):
        steps = range(epoch * 3, epoch * 3 + 3)
        assert Counter(i for step in steps for i in plan.batch(step).tolist()) == Counter(range(12))
        assert [len(plan.batch(step)) for step in steps] == [5, 5, 2]


@pytest.mark.parametrize("grouping", ["none", "length", "modality"])
def test_the_order_is_a_function_of_seed_and_step_alone(data: EncodedData, grouping: str) -> None:
    recipe = replace(RECIPE, grouping=grouping)
    forward = [Plan(data, recipe).batch(step).tolist() for step in range(9)]
    plan = Plan(data, recipe)
    np.random.seed(7)  # what others draw changes nothing
    backward = [plan.batch(step).tolist() for step in reversed(range(9))]
    assert backward[::-1] == forward
    assert forward[:3] != forward[3:6]  # another epoch, another order
    other = Plan(data, replace(recipe, seed=1))
    assert [other.batch(step).tolist() for step in range(9)] != forward


def test_the_order_is_known_across_machines(data: EncodedData) -> None:
    """Pinned: a resumed run on another machine reads the same samples."""
    plan = Plan(data, replace(RECIPE, grouping="none", batch=12))
    assert plan.batch(0).tolist() == np.random.default_rng([0, 0]).permutation(12).tolist()
    assert plan.batch(0).tolist() == PINNED


PINNED = [9, 2, 7, 4, 5, 11, 0, 3, 6, 10, 8, 1]


def test_grouping_by_length_wastes_less_padding(data: EncodedData) -> None:
    def waste(grouping: str) -> int:
        plan = Plan(data, replace(RECIPE, grouping=grouping, group_batches=3))
        batches = [data.lengths[plan.batch(step)] for step in range(30)]
        return sum(int(len(part) * part.max() - part.sum()) for part in batches)

    assert waste("length") < waste("none") / 2


def test_grouping_by_modality_mixes_at_most_the_rest(data: EncodedData) -> None:
    plan = Plan(data, replace(RECIPE, grouping="modality", batch=2))
    kinds = [{not data.images[i] for i in plan.batch(step)} for step in range(6)]
    assert sum(len(kind) > 1 for kind in kinds) <= 1 and kinds.count({True}) >= 1


def test_micro_batches_are_the_step_longest_first(data: EncodedData) -> None:
    plan = Plan(data, RECIPE)
    parts = plan.micro_batches(1)
    assert [len(part) for part in parts] == [3, 1]
    joined = np.concatenate(parts)
    assert sorted(joined.tolist()) == sorted(plan.batch(1).tolist())
    assert data.lengths[joined].tolist() == sorted(data.lengths[joined].tolist(), reverse=True)


def test_the_loader_keeps_the_order_whatever_its_threads(data: EncodedData, bpe: Any) -> None:
    plan = Plan(data, RECIPE)
    seen = []
    for workers in (1, 4):
        loader = Loader(data, PIXELS, replace(RECIPE, workers=workers))
        steps = loader.steps(plan.micro_batches, 2, 8)
        seen.append([[part.ids.tolist() for part in step] for step in steps])
    assert len(seen[0]) == 6 and seen[0] == seen[1]


def test_the_fingerprint_tells_data_apart(tmp_path: Path, bpe: Any) -> None:
    prints = set()
    for answer in ("A", "B"):
        path = write(tmp_path, sample([("human", "Q"), ("gpt", answer)]))
        prints.add(encoded_of(path, tmp_path, bpe).fingerprint)
    again = encoded_of(path, tmp_path, bpe).fingerprint
    assert len(prints) == 2 and again in prints
