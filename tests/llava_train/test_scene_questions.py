"""What is said of a scene is true, and what scores an answer accepts only what is true."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import PIL.Image
import pytest

from llava_train.demo.evaluate import (
    Measure,
    names_odd,
    same_fact,
    says_nothing,
    score_detail,
    score_scene,
)
from llava_train.scene_phrases import UNUSUAL
from llava_train.scene_questions import conversation, detail, reasoning
from llava_train.scene_text import captions, detail_answer, unusual_answer
from llava_train.scene_wording import Turn
from llava_train.scenes import Scene, SceneObject, sample_layout

BOX = (0.0, 0.0, 0.1, 0.1)
SCENE = Scene(
    300,
    300,
    "white",
    (
        SceneObject("circle", "blue", "large", 0, BOX),
        SceneObject("circle", "blue", "large", 4, BOX),
        SceneObject("star", "red", "small", 5, BOX),
    ),
    2,
)


def _scenes(n: int) -> list[tuple[Scene, np.random.Generator]]:
    rngs = [np.random.default_rng([21, i]) for i in range(n)]
    return [(sample_layout(rng), rng) for rng in rngs]


def _true(turn: Turn, scene: Scene) -> bool:
    """Check an answer by another way than the one that wrote it: by counting objects it names."""
    answer = turn.answer.lower()
    rows = [f"{o.size} {o.color} {o.shape} shape one in the {o.place}" for o in scene.objects]
    if match := re.match(r"there (?:is|are) (no|\d) (?:(\w+) )?(\w+?)(?:es|s)?\.$", answer):
        number = 0 if match[1] == "no" else int(match[1])
        words = [w for w in (match[2], match[3]) if w and w != "shape"]
        return number == sum(all(re.search(rf"\b{w}", row) for w in words) for row in rows)
    if match := re.match(r"the (.+) is in the (.+)\.$", answer):
        hits = [
            o
            for o, row in zip(scene.objects, rows, strict=True)
            if all(w in row for w in match[1].split())
        ]
        return len(hits) == 1 and hits[0].place == match[2]
    if match := re.match(r"yes, there is an? (.+)\.$", answer):
        return any(all(w in row for w in match[1].split()) for row in rows)
    if match := re.match(r"no, there is no (.+)\.$", answer):
        return not any(all(w in row for w in match[1].split()) for row in rows)
    return True


def test_answers_about_count_place_and_presence_are_true() -> None:
    topics: set[str] = set()
    for scene, rng in _scenes(300):
        for turn in conversation(scene, rng):
            topics.add(turn.topic)
            assert _true(turn, scene), (turn, scene)
    assert {"count", "color", "shape", "position", "presence", "brief"} <= topics


def test_every_kind_of_question_varies_and_nothing_unusual_occurs() -> None:
    asked: set[str] = set()
    answers = []
    for scene, rng in _scenes(400):
        turn = reasoning(scene, rng)[0]
        asked.add(turn.question)
        answers.append(turn.answer)
    assert set(UNUSUAL) <= asked and "What is unusual here?" in asked
    nothing = sum("othing is unusual" in a for a in answers) / len(answers)
    assert 0.3 < nothing < 0.7


def test_five_captions_are_different_and_name_what_is_there() -> None:
    rows = captions(SCENE)
    assert len(set(rows)) == 5
    assert rows[1] == "two blue circles and a red star"
    assert "red star in the middle right stands out" in rows[4]


def test_the_odd_one_is_told_with_colour_shape_place_and_reason() -> None:
    text = unusual_answer(SCENE)
    assert text == ("The red star in the middle right is unusual: all the others are blue circles.")
    assert names_odd(text, SCENE) and not says_nothing(text)


@pytest.mark.parametrize(
    "wrong",
    [
        "The blue star in the middle right is unusual: all the others are blue circles.",
        "The red star in the center is unusual: all the others are blue circles.",
        "The red circle in the middle right is unusual.",
        "Nothing is unusual here: the red star in the middle right is unusual.",
        "",
    ],
)
def test_a_wrong_odd_one_scores_nothing(wrong: str) -> None:
    assert not names_odd(wrong, SCENE)


def test_descriptions_are_scored_object_by_object() -> None:
    said = "Top left: a large blue circle. Center: a small blue circle. Top right: a red star."
    said += " Bottom left: a large green cross."
    rows = {name: (right, total) for name, right, total in score_detail(said, SCENE)}
    assert rows["detail: objects right"] == (2, 3)
    assert rows["detail: sizes right"] == (1, 3)
    assert rows["detail: objects invented"] == (1, 3)
    full = {name: (r, t) for name, r, t in score_detail(detail_answer(SCENE), SCENE)}
    assert full["detail: objects right"] == (3, 3) and full["detail: objects invented"][0] == 0


def test_a_mute_speaker_scores_nothing() -> None:
    picture = PIL.Image.new("RGB", (8, 8))
    for scene, _ in _scenes(30):
        rng = np.random.default_rng(1)
        rows = list(score_scene(lambda picture, question: "", scene, picture, rng))
        assert all(right == 0 for _, right, _ in rows)


def test_facts_are_compared_by_meaning() -> None:
    assert same_fact("color", "It is red.", "The star is red.")
    assert not same_fact("color", "It is blue.", "The star is red.")
    assert same_fact("position", "The star is in the top left.", "The red star is in the top left.")
    assert not same_fact("presence", "No, there is no star.", "Yes, there is a star.")


def test_wilson_intervals_match_published_values() -> None:
    # Newcombe (1998), Statistics in Medicine 17:857, table I: 81 of 263, score method
    low, high = Measure("m", 81, 263).interval
    assert low == pytest.approx(25.53, abs=0.01) and high == pytest.approx(36.62, abs=0.01)


def test_details_name_every_object_once() -> None:
    for scene, rng in _scenes(50):
        answer: Any = detail(scene, rng).answer
        assert answer.count(": a") == len(scene.objects)
