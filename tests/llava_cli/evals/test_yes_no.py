"""POPE and MME: reading answers, joining revisions, figures by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llava_cli.errors import DataError, UsageError
from llava_cli.evals import mme, pope
from tests.llava_cli.evals.conftest import Desk

SHORT = "Answer the question using a single word or phrase."


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Yes", "yes"),
        ("No", "no"),
        ("no", "no"),
        ("NO", "yes"),
        ("", "yes"),
        ("No, there is none", "no"),
        ("There is not one", "no"),
        ("Yes. No", "yes"),
        ("Nothing", "yes"),
        ("No\nyes", "yes"),
    ],
)
def test_pope_reads_answers_by_words(text: str, said: str) -> None:
    assert pope.parse(text) == said


GOLD = [
    ("a.jpg", "Is there a dog in the image?", "yes"),
    ("a.jpg", "Is there an apple in the image?", "no"),
    ("b.jpg", "Is there a cat in the imange?", "yes"),
    ("b.jpg", "Is there a car in the image?", "no"),
]


def pope_files(desk: Desk) -> tuple[Path, list[dict[str, Any]]]:
    """Three splits whose ids restart; LLaVA's questions in another order and spelling."""
    questions = []
    for split in ("random", "popular", "adversarial"):
        rows = [
            {"question_id": n, "image": image, "text": text, "label": label}
            for n, (image, text, label) in enumerate(GOLD, 1)
        ]
        desk.lines(f"gold/coco_pope_{split}.json", rows)
        for image, text, _ in reversed(GOLD):
            text = text.replace("imange", "image") + f"\n{SHORT}"
            questions.append({"image": image, "text": text, "category": split})
    for n, question in enumerate(questions):
        question["question_id"] = str(1000 + n)
    return desk.folder / "gold", questions


def test_pope_joins_on_split_picture_and_object(desk: Desk) -> None:
    gold, questions = pope_files(desk)
    # reversed order of GOLD: car (no), cat (yes), apple (no), dog (yes)
    said = ["No", "Yes", "Yes", "Yes"] + ["No", "No", "No", "Yes"] + ["No"] * 4
    rows = [
        {"question_id": int(q["question_id"]), "prompt": q["text"], "text": text}
        for q, text in zip(questions, said, strict=True)
    ]
    result = desk.score(
        "pope", desk.lines("a.jsonl", rows), gold, questions=desk.lines("q.jsonl", questions)
    )
    # random: tp 2 fp 1 tn 1 fn 0; popular: tp 1 fp 0 tn 2 fn 1; adversarial: all no
    assert result.metrics["random_f1"] == pytest.approx(80)
    assert result.metrics["popular_f1"] == pytest.approx(200 / 3)
    assert result.metrics["adversarial_f1"] == 0
    assert result.metrics["f1_mean"] == pytest.approx((80 + 200 / 3) / 3)
    assert result.metrics["random_yes_ratio"] == 75
    assert result.metrics["adversarial_precision"] == 0
    assert result.metrics["popular_recall"] == 50
    assert result.metrics["accuracy"] == pytest.approx(100 * (3 + 3 + 2) / 12)
    assert result.counts == (12, 12, 0, 0)


def test_pope_revisions_of_different_length_are_remarked_on(desk: Desk) -> None:
    gold, questions = pope_files(desk)
    rows = [{"question_id": q["question_id"], "text": "Yes"} for q in questions[1:]]
    extra = {"question_id": "9", "image": "z.jpg", "category": "random",
             "text": f"Is there a zebra in the image?\n{SHORT}"}  # fmt: skip
    rows.append({"question_id": 9, "text": "Yes"})
    result = desk.score(
        "pope", desk.lines("a.jsonl", rows), gold,
        questions=desk.lines("q.jsonl", [*questions, extra]),
    )  # fmt: skip
    assert result.counts == (12, 11, 1, 0)
    assert result.metrics["random_accuracy"] == pytest.approx(100 * 2 / 3)
    assert any("left out" in w for w in result.protocol["warnings"])
    assert any("a.jsonl, line 12" in w for w in result.protocol["warnings"])


def test_pope_reads_the_organisers_answers_in_their_order(desk: Desk) -> None:
    gold, _ = pope_files(desk)
    rows = [{"question": text, "answer": label} for _, text, label in GOLD]
    files = tuple(desk.lines(f"{n}.json", rows) for n in range(3))
    result = desk.score("pope", files, gold)
    assert result.metrics["f1_mean"] == 100
    with pytest.raises(DataError, match="names no picture"):
        desk.score("pope", desk.lines("x.json", rows[::-1]), gold)


def test_pope_takes_pictures_from_the_rows(desk: Desk) -> None:
    gold, _ = pope_files(desk)
    rows = [
        {"question_id": n, "image": image, "category": split, "prompt": text, "text": label}
        for split in ("random", "popular", "adversarial")
        for n, (image, text, label) in enumerate(GOLD)
    ]
    assert desk.score("pope", desk.lines("a.jsonl", rows), gold).metrics["f1_mean"] == 100


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Yes", "yes"),
        ("no", "no"),
        ("No.", "no"),
        ("Not", "no"),
        ("yesno", "yes"),
        ("Know", "no"),
        ("  yes", "other"),
        (" yes", "yes"),
        ("The answer is yes", "other"),
        ("noyes", "no"),
        ("", "other"),
    ],
)
def test_mme_looks_at_four_characters(text: str, said: str) -> None:
    assert mme.parse(text) == said


def mme_folder(desk: Desk) -> Path:
    """`existence` with its texts beside the pictures, `landmark` with folders, one double blank."""
    request = "Please answer yes or no."
    for n in (1, 2):
        desk.text(
            f"MME/existence/{n}.txt",
            f"Is there a dog {n}? {request}\tYes\nIs there a cat {n}?  {request}\tNo\n",
        )
    desk.text(
        "MME/landmark/questions_answers_YN/x.txt",
        f"Is this A? {request}\tYes\r\nIs this B? {request}\tNo",
    )
    (desk.folder / "MME/landmark/images").mkdir()
    return desk.folder / "MME"


def mme_rows(answers: dict[tuple[str, str], str]) -> list[dict[str, str]]:
    return [
        {"question_id": name, "prompt": f"{question}\n{SHORT}", "text": text}
        for (name, question), text in answers.items()
    ]


ANSWERS = {
    ("existence/1.png", "Is there a dog 1?"): "Yes",
    ("existence/1.png", "Is there a cat 1?"): "No",
    ("existence/2.png", "Is there a dog 2?"): "Yes",
    ("existence/2.png", "Is there a cat 2?"): "The cat",
    ("landmark/x.jpg", "Is this A?"): "No",
    ("landmark/x.jpg", "Is this B?"): "No",
}


def test_mme_scores_accuracy_and_both_right(desk: Desk) -> None:
    result = desk.score("mme", desk.lines("a.jsonl", mme_rows(ANSWERS)), mme_folder(desk))
    assert result.metrics["existence_accuracy"] == 75
    assert result.metrics["existence_accuracy_plus"] == 50
    assert result.metrics["landmark"] == 50
    assert result.metrics["perception"] == 175
    assert result.metrics["cognition"] == 0
    assert result.counts == (6, 6, 0, 1)
    assert any("12 categories are not there" in w for w in result.protocol["warnings"])


def test_mme_reads_the_organisers_answer_files(desk: Desk) -> None:
    lines = [
        "1.txt\tIs there a dog 1? Please answer yes or no.\tYes\tYes",
        "1.txt\tIs there a cat 1?  Please answer yes or no.\tNo\tno.",
        "2.txt\tIs there a dog 2? Please answer yes or no.\tYes\t",
        "2.txt\tIs there a cat 2? Please answer yes or no.\tNo\tNo",
    ]
    desk.text("results/existence.txt", "\r\n".join(lines) + "\r\n")
    folder = desk.folder / "results"
    for gold in ((), (mme_folder(desk),)):
        result = desk.score("mme", folder, *gold)
        assert result.metrics["existence"] == 125
    assert result.counts == (6, 4, 2, 1)  # the landmark's two are missing


def test_mme_missing_answers_are_wrong_and_bad_lines_are_errors(desk: Desk) -> None:
    rows = mme_rows(ANSWERS)[:-1]
    result = desk.score("mme", desk.lines("a.jsonl", rows), mme_folder(desk))
    assert result.metrics["landmark"] == 0
    with pytest.raises(UsageError, match="annotations"):
        desk.score("mme", desk.lines("a.jsonl", rows))
    bad = desk.text("r/existence.txt", "1.txt\tq\tYes\tYes\tor no\n")
    with pytest.raises(DataError, match=r"existence.txt, line 1: 5 fields"):
        desk.score("mme", bad)


def test_pope_finds_llavas_questions_among_the_annotations(desk: Desk) -> None:
    gold, questions = pope_files(desk)
    rows = [{"question_id": q["question_id"], "text": "No"} for q in questions[::-1]]
    asked = desk.lines("llava_pope_test.jsonl", questions)
    result = desk.score("pope", desk.lines("a.jsonl", rows), gold, asked, lenient=True)
    assert result.counts.answered == 12
    assert result.metrics["accuracy"] == result.metrics["lenient_accuracy"] == 50
