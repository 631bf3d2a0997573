"""LLaVA-Bench, MM-Vet, OwlEval, COCO captions, scenes: figures by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from llava_cli.errors import DataError
from llava_cli.evals import captions, llavabench, scenes
from llava_cli.evals.rows import Row
from tests.llava_cli.evals.conftest import Desk


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("8 6\nBecause", (8, 6)),
        ("8,6", (8, 6)),
        ("8.5 7", (8.5, 7)),
        ("8, 6", (-1, -1)),  # two blanks after the comma has become one
        ("8  6", (-1, -1)),
        ("8 6 ", (-1, -1)),
        ("Assistant 1: 8", (-1, -1)),
        ("\n8 6", (-1, -1)),
        ("nan 6", (-1, -1)),
        ("", (-1, -1)),
    ],
)
def test_a_review_is_read_from_its_first_line(text: str, pair: tuple[float, float]) -> None:
    assert llavabench.parse_review(text) == pair


def review(key: int, pair: list[float], category: str = "llava_bench_conv") -> dict[str, Any]:
    content = f"{pair[0]} {pair[1]}\nwell"
    return {"id": key + 1, "question_id": key, "answer1_id": 1, "answer2_id": "x",
            "category": category, "content": content, "tuple": pair}  # fmt: skip


def test_llava_bench_is_a_ratio_of_means_without_failed_reviews(desk: Desk) -> None:
    rows = [
        review(0, [10, 5]),
        review(1, [4, 4]),
        review(2, [8, 6], "llava_bench_detail"),
        review(3, [-1, -1], "llava_bench_detail"),
    ]
    result = desk.score("llava-bench", desk.lines("r.jsonl", rows))
    assert result.metrics["relative_score"] == pytest.approx(100 * 15 / 22)
    assert result.metrics["relative_score_conv"] == pytest.approx(100 * 9 / 14)
    assert result.metrics["relative_score_detail"] == pytest.approx(75)
    assert result.metrics["reference_mean"] == pytest.approx(10 * 22 / 3)
    assert result.metrics["candidate_mean_conv"] == pytest.approx(45)
    assert result.counts == (4, 4, 0, 1)


def test_llava_bench_runs_are_printed_with_their_mean(desk: Desk) -> None:
    runs = tuple(desk.lines(f"r{n}.jsonl", [review(0, [10, n])]) for n in (5, 7))
    metrics = desk.score("llava-bench", runs).metrics
    assert metrics["relative_score"] == pytest.approx(60)
    assert (metrics["relative_score_run_1"], metrics["relative_score_run_2"]) == (50, 70)


def test_llava_bench_says_where_a_tuple_is_not_what_the_review_says(desk: Desk) -> None:
    row = {**review(0, [10, 10]), "content": "9 2\nbad"}
    result = desk.score("llava-bench", desk.lines("r.jsonl", [row]))
    assert "other numbers" in result.protocol["warnings"][0]
    with pytest.raises(DataError, match="question 0 again"):
        desk.score("llava-bench", desk.lines("r.jsonl", [row, row]))


def mmvet_gold(desk: Desk) -> Path:
    return desk.json("mm-vet.json", {
        "v1_0": {"question": "q", "answer": "x", "capability": ["ocr", "math"]},
        "v1_1": {"question": "q", "answer": "y", "capability": ["rec"]},
        "v1_2": {"question": "q", "answer": "z", "capability": ["math", "ocr"]},
    })  # fmt: skip


def test_mm_vet_averages_a_grade_file(desk: Desk) -> None:
    grades = {
        "v1_0": {"model": ["g", "g"], "content": ["1.0", "0.5"], "score": [1.0, 0.5]},
        "v1_1": {"model": ["g", "g"], "content": ["0.2", "0.2"], "score": [0.2, 0.2]},
        "v1_2": {"model": ["g", "g"], "content": ["0.0", "0.1"], "score": [0.0, 0.1]},
    }
    result = desk.score("mm-vet", desk.json("g.json", grades), mmvet_gold(desk))
    assert result.metrics["mean_score"] == pytest.approx(100 * 2.0 / 6)
    assert result.metrics["mean_score_run_1"] == pytest.approx(40)
    assert result.metrics["std"] == pytest.approx(100 * (1.2 - 0.8) / 3 / 2)
    assert result.metrics["ocr"] == pytest.approx(40)
    assert result.metrics["rec"] == pytest.approx(20)
    assert result.metrics["set_math_ocr"] == pytest.approx(40)
    del grades["v1_1"]
    result = desk.score("mm-vet", desk.json("g.json", grades), mmvet_gold(desk))
    assert result.metrics["mean_score"] == pytest.approx(100 * 1.6 / 6)
    assert result.counts == (3, 2, 1, 0)


def test_mm_vet_reads_a_table_of_grades_and_refuses_predictions(desk: Desk) -> None:
    table = desk.text("g.csv", "id,score\r\nv1_0,1.0\r\nv1_1,0.4\r\n2,0.1\r\n")
    result = desk.score("mm-vet", table, mmvet_gold(desk))
    assert result.metrics["mean_score"] == pytest.approx(50)
    wrong: list[dict[str, Any]] = [
        {"v1_0": "an answer"}, {"v1_0": {"score": [1.5]}}, {"v1_0": {"score": []}},
    ]  # fmt: skip
    for bad in wrong:
        with pytest.raises(DataError, match="v1_0"):
            desk.score("mm-vet", desk.json("p.json", bad), mmvet_gold(desk))


def test_owleval_reports_shares_of_grades_by_ability(desk: Desk) -> None:
    gold = desk.lines("q.jsonl", [
        {"image": "1.jpg", "question_id": 1, "question": "q", "ability": "a,b"},
        {"image": "2.jpg", "question_id": 2, "question": "q", "ability": "a,c"},
    ])  # fmt: skip
    rows = [
        {"question_id": 1, "rater": "x", "grade": "A", "image": "1.png"},
        {"question_id": 1, "rater": "y", "grade": "B"},
        {"question_id": 2, "rater": "x", "grade": "D"},
        {"question_id": 2, "rater": "y", "grade": "A"},
    ]
    metrics = desk.score("owleval", desk.lines("r.jsonl", rows), gold).metrics
    assert [metrics[f"grade_{g}"] for g in "abcd"] == [50, 25, 0, 25]
    assert metrics["grade_d_ocr"] == 50
    assert metrics["grade_b_visual"] == 50
    with pytest.raises(DataError, match="without a grade"):
        desk.score("owleval", desk.lines("p.jsonl", [{"question_id": 1, "answer": "x"}]), gold)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A man's dog, sitting.", "a man 's dog sitting"),
        ("It doesn't (really) work!", "it does n't -lrb- really -rrb- work"),
        ('A black-and-white cat; \'tis "nice"', "a black-and-white cat tis nice"),
        ("Two\nlines  can't", "two lines ca n't"),
        ("St. Louis, Mr. X.", "st. louis mr. x"),
        ("At 10:30 in the U.S. for $5", "at 10:30 in the u.s. for $ 5"),
    ],
)
def test_captions_are_cut_into_words(text: str, words: str) -> None:
    assert captions.tokens(text) == words.split()


def test_bleu_by_hand() -> None:
    said, references = "the the cat".split(), ["the cat sat".split(), "a cat".split()]
    scores = captions.bleu([(said, [*references])])
    # unigrams: the (clipped to 1) + cat = 2 of 3; bigrams: "the cat" = 1 of 2; length 3 = 3
    assert scores[0] == pytest.approx(2 / 3, abs=1e-6)
    assert scores[1] == pytest.approx(math.sqrt(2 / 3 / 2), abs=1e-6)
    short = captions.bleu([("the cat".split(), ["the cat sat down".split()])])
    assert short[0] == pytest.approx(math.exp(1 - 4 / 2), abs=1e-6)


def test_rouge_by_hand() -> None:
    # LCS 2: precision 2/3, recall 2/2 (the best of each, of different references)
    score = captions.rouge_l("a cat sat".split(), ["a cat".split(), "x y z w".split()])
    assert score == pytest.approx((1 + 1.44) * (2 / 3) * 1 / (1 + 1.44 * 2 / 3))


def test_cider_by_hand() -> None:
    # Two pictures; unigrams only: `a` is in both (weight 0), `cat` and `dog` in one (log 2).
    pairs = [(["a", "cat"], [["a", "cat"]]), (["a", "cat"], [["a", "dog"]])]
    # First: 1-grams and 2-grams agree, no longer ones: (1 + 1 + 0 + 0) / 4 * 10. Second: 0.
    assert captions.cider(pairs) == pytest.approx((5.0 + 0.0) / 2)


def test_coco_captions_read_results_and_llavas_rows(desk: Desk) -> None:
    gold = desk.json("captions_val2014.json", {"images": [{"id": 1}, {"id": 2}], "annotations": [
        {"image_id": 1, "id": 5, "caption": "A cat sits on a mat."},
        {"image_id": 1, "id": 6, "caption": "The cat sat."},
        {"image_id": 2, "id": 7, "caption": "A dog runs in the park."},
    ]})  # fmt: skip
    results = desk.json("c.json", [
        {"image_id": 1, "caption": "a cat sits on a mat"},
        {"image_id": 2, "caption": "a dog runs in the park"},
    ])  # fmt: skip
    metrics = desk.score("coco-caption", results, gold).metrics
    assert metrics["bleu_4"] == pytest.approx(100, abs=1e-4)
    assert metrics["rouge_l"] == pytest.approx(100)
    rows = desk.lines("a.jsonl", [{"question_id": 1, "prompt": "p", "text": "A cat."}])
    result = desk.score("coco-caption", rows, gold)
    assert result.counts == (2, 1, 1, 0)
    assert result.metrics["rouge_l"] < 50


SCENE = {
    "image": "images/0.png",
    "objects": [
        {"shape": "star", "color": "red", "size": "large", "cell": "top left"},
        {"shape": "star", "color": "blue", "size": "large", "cell": "center"},
    ],
    "odd": {"index": 0, "shape": "star", "color": "red", "size": "large", "cell": "top left"},
}


def test_scenes_are_asked_about_exactly(desk: Desk) -> None:
    asked = {q.topic: q for q in scenes.questions(Row(SCENE, Path("s"), 1))}
    assert asked["count"].gold == "2"
    assert asked["unusual"].gold == "red star in the top left"
    right = {
        "count": "There are two shapes.",
        "color": f"It is {asked['color'].gold}.",
        "position": f"The star is in the {asked['position'].gold}.",
        "presence": f"{asked['presence'].gold}, it seems",
        "unusual": "The red star in the top left is unusual: it differs.",
    }
    gold = desk.lines("scenes.jsonl", [SCENE])
    rows = [{"question_id": q.key, "text": right[t]} for t, q in asked.items()]
    assert desk.score("scenes", desk.lines("a.jsonl", rows), gold).metrics["accuracy"] == 100
    wrong = [{"question_id": q.key, "text": "red or blue, 3 or 4"} for q in asked.values()]
    result = desk.score("scenes", desk.lines("a.jsonl", wrong), gold)
    assert result.metrics["accuracy"] == 0
    assert result.counts.unparsable == 5


def test_mm_vet_reads_the_organisers_table_of_results(desk: Desk) -> None:
    text = ",rec,ocr,know,gen,spat,math,total,std,runs\nm,36.1,22.4,19.9,23.3,28.7,7.7,31.1,0.2,"
    result = desk.score("mm-vet", desk.text("t.csv", text + '"[31.0, 31.2]"\n'), mmvet_gold(desk))
    assert result.metrics["mean_score"] == 31.1
    assert (result.metrics["ocr"], result.metrics["std"]) == (22.4, 0.2)
    assert result.metrics["mean_score_run_2"] == 31.2
    assert "no items to count" in result.protocol["warnings"][0]


def test_files_without_any_item_are_errors_not_crashes(desk: Desk) -> None:
    gold = desk.lines("q.jsonl", [{"question_id": 1, "text": "q", "category": "conv"}])
    for name, file, golds in (
        ("mm-vet", desk.json("g.json", {}), ()),
        ("mm-vet", desk.json("g.json", {}), (mmvet_gold(desk),)),
        ("llava-bench", desk.lines("r.jsonl", []), (gold,)),
        ("coco-caption", desk.json("c.json", []), (desk.json("a.json", {"annotations": []}),)),
    ):
        with pytest.raises(DataError, match="no prediction for any item"):
            desk.score(name, file, *golds)
