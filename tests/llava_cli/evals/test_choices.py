"""MMBench, SEED-Bench, ScienceQA: letters, circles, columns, by hand."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from llava_cli.errors import DataError, UsageError
from llava_cli.evals import mmbench, scienceqa
from tests.llava_cli.evals.conftest import Desk

PICTURE = base64.b64encode(b"x" * 200_000).decode()
COLUMNS = (
    "index question hint A B C D answer category image source l2-category comment split".split()
)


def table(desk: Desk, rows: list[dict[str, Any]]) -> Path:
    lines = ["\t".join(COLUMNS)]
    lines += ["\t".join(str(row.get(name, "")) for name in COLUMNS) for row in rows]
    return desk.text("mmbench_dev.tsv", "\n".join(lines) + "\n")


def circle(base: int, answers: str, category: str = "ocr") -> list[dict[str, Any]]:
    """One question with its rotations."""
    options = dict(
        zip("ABCD", ("cat", "dog", "nan" if len(answers) == 2 else "emu", ""), strict=True)
    )
    return [
        {"index": base + k * 1_000_000, "question": "Which?", **options, "answer": answer,
         "category": category, "l2-category": "fine", "image": PICTURE}
        for k, answer in enumerate(answers)
    ]  # fmt: skip


def test_mmbench_counts_a_question_only_if_all_rotations_are_right(desk: Desk) -> None:
    gold = table(desk, [*circle(7, "AB"), *circle(8, "BA", "count"), *circle(9, "ACB")])
    said = {
        7: "A",
        1000007: "B.",
        8: "B",
        1000008: "B",
        9: "A",
        1000009: "C. emu",
        2000009: "dunno",
    }
    rows = [{"question_id": k, "round_id": 0, "text": v, "options": []} for k, v in said.items()]
    result = desk.score("mmbench", desk.lines("a.jsonl", rows), gold)
    assert result.metrics["circular_accuracy"] == pytest.approx(100 / 3)
    assert result.metrics["row_accuracy"] == pytest.approx(100 * 5 / 7)
    assert result.metrics["first_rotation_accuracy"] == 100
    assert result.metrics["circular_accuracy_ocr"] == 50
    assert result.metrics["circular_accuracy_count"] == 0
    assert result.counts == (7, 7, 0, 1)


def test_mmbench_reads_workbooks_with_and_without_gold_beside(desk: Desk) -> None:
    gold = table(desk, circle(7, "AB"))
    book = openpyxl.Workbook()
    sheet = book.active
    assert sheet is not None
    sheet.append(["index", "question", "A", "B", "C", "D", "prediction", "answer"])
    sheet.append([7, "Which?", "cat", "dog", None, None, "A", "A"])
    sheet.append([1000007, "Which?", "dog", "cat", None, None, "B", "B"])
    path = desk.folder / "u.xlsx"
    book.save(path)
    for files in ((gold,), ()):
        assert desk.score("mmbench", path, *files).metrics["circular_accuracy"] == 100
    text = "index\tprediction\r\n7\tA\r\n1000007\t\r\n"
    result = desk.score("mmbench-cn", desk.text("u.tsv", text), gold)
    assert result.metrics["circular_accuracy"] == 0
    assert result.counts == (2, 1, 1, 0)


def test_mmbench_rounds_of_one_row_turn_the_letters_back(desk: Desk) -> None:
    gold = table(desk, circle(7, "B")[:1])
    rows = [
        {"question_id": 7, "round_id": n, "text": text, "option_char": chars}
        for n, (text, chars) in enumerate(
            [("B", ["A", "B", "C"]), ("A", ["B", "C", "A"]), ("C", ["C", "A", "B"])]
        )
    ]
    result = desk.score("mmbench", desk.lines("a.jsonl", rows), gold)
    assert result.metrics["circular_accuracy"] == 100
    assert result.counts.expected == 3


def test_mmbench_without_gold_is_for_the_server(desk: Desk) -> None:
    rows = [{**row, "answer": ""} for row in circle(7, "AB")]
    with pytest.raises(DataError, match="row 2: has no answer"):
        desk.score(
            "mmbench", desk.lines("a.jsonl", [{"question_id": 7, "text": "A"}]), table(desk, rows)
        )


@pytest.mark.parametrize(
    ("text", "letter"),
    [("A", "A"), ("B.", "B"), ("C. a dog", "C"), ("(D) x", "D"), ("(A)", "A"), (" B\n", "B"),
     ("A dog", None), ("E", None), ("", None), ("a", None), ("AB", None),
     ("The answer is A", None)],
)  # fmt: skip
def test_mmbench_reads_a_letter_alone_or_in_front_of_its_option(
    text: str, letter: str | None
) -> None:
    assert mmbench.parse(text) == letter


def seed_gold(desk: Desk) -> Path:
    questions = [
        {"question_id": "101", "answer": "A", "data_type": "image", "question_type_id": 1},
        {"question_id": "v10_2", "answer": "B", "data_type": "image", "question_type_id": 2},
        {"question_id": "103", "answer": "C", "data_type": "video", "question_type_id": 10},
        {"question_id": "104", "answer": "D", "data_type": "video", "question_type_id": 10},
    ]
    types = {"Scene Understanding": 1, "Instance Identity": 2, "Action Recognition": 10}
    return desk.json("SEED-Bench.json", {"questions": questions, "question_type": types})


def test_seed_wants_the_letter_itself(desk: Desk) -> None:
    rows = [
        {"question_id": 101, "prompt": "p", "text": "A"},
        {"question_id": "v10_2", "text": "B."},
        {"question_id": 103, "text": "C"},
    ]
    result = desk.score("seed", desk.lines("a.jsonl", rows), seed_gold(desk))
    assert result.metrics["accuracy"] == 50
    assert result.metrics["accuracy_image"] == 50
    assert result.metrics["accuracy_video"] == 50
    assert result.metrics["accuracy_action_recognition"] == 50
    assert result.metrics["accuracy_instance_identity"] == 0
    assert result.counts == (4, 3, 1, 1)
    upload = [{"question_id": "101", "prediction": "A"}, {"question_id": "104", "prediction": "d"}]
    assert (
        desk.score("seed", desk.lines("u.jsonl", upload), seed_gold(desk)).metrics["accuracy"] == 25
    )


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("E", "E"),
        ("F", None),
        ("B. because", "B"),
        ("B.", None),
        ("B .", None),
        (" B", None),
        ("The answer is B.", "B"),
        ("The answer is B", None),
        ("The answer is B\n", None),
        ("The answer is B!", "B"),
        ("The answer is Bob.", "B"),
        ("The answer is A. The answer is B.", None),
        ("The answer is A. BECAUSE: The answer is A.", None),
        ("I think the answer is B.", None),
        ("A. The answer is B.", "A"),
        ("", None),
    ],
)
def test_scienceqa_reads_replies(text: str, letter: str | None) -> None:
    assert scienceqa.parse(text) == letter


def problems(desk: Desk) -> tuple[Path, Path]:
    """Four test problems, one of another split."""

    def one(answer: int, subject: str, grade: int, hint: str, image: str | None) -> dict[str, Any]:
        return {
            "question": "q", "choices": ["x", "y"], "answer": answer, "hint": hint,
            "image": image, "grade": f"grade{grade}", "subject": subject, "split": "test",
        }  # fmt: skip

    found = {
        "1": one(0, "natural science", 2, "see", "image.png"),
        "2": one(1, "social science", 8, "", "image.png"),
        "3": one(0, "language science", 7, "", None),
        "4": one(1, "natural science", 6, "see", None),
        "5": {**one(1, "natural science", 6, "see", None), "split": "train"},
    }
    splits = {"train": ["5"], "test": ["1", "2", "3", "4"], "minitest": ["1", "3"]}
    return desk.json("problems.json", found), desk.json("pid_splits.json", splits)


def test_scienceqa_prints_the_nine_columns(desk: Desk) -> None:
    gold, splits = problems(desk)
    rows = [
        {"question_id": "1", "prompt": "<image>\nq", "text": "A"},
        {"question_id": "2", "text": "The answer is C."},  # beyond the choices
        {"question_id": 3, "text": "A. x"},
    ]
    result = desk.score("scienceqa", desk.lines("a.jsonl", rows), gold, splits=splits)
    assert result.metrics == {
        "accuracy": 50, "image_accuracy": 50, "nat": 50, "soc": 0, "lan": 100, "txt": 50,
        "img": 50, "no": 100, "g1_6": 50, "g7_12": 50, "avg": 50,
    }  # fmt: skip
    assert result.counts == (4, 3, 1, 1)
    mini = desk.score(
        "scienceqa", desk.lines("a.jsonl", rows), gold, splits=splits, split="minitest"
    )
    assert mini.metrics["accuracy"] == 100
    assert mini.protocol["warnings"][0].startswith("1 predictions have ids")
    own = desk.score("scienceqa", desk.lines("a.jsonl", rows), gold)
    assert own.counts.expected == 4
    with pytest.raises(UsageError, match="no split 'nope'"):
        desk.score("scienceqa", desk.lines("a.jsonl", rows), gold, splits=splits, split="nope")


@pytest.mark.parametrize("indent", [None, 2])
def test_scienceqa_scores_a_summary_by_its_texts_or_as_stored(
    desk: Desk, indent: int | None
) -> None:
    import json

    gold, splits = problems(desk)
    summary = {
        "acc": 100.0, "correct": 4, "count": 4,
        "results": {"1": 0, "2": 1, "3": 0, "4": 0},  # 2 and 4 were random choices
        "outputs": {"1": "The answer is A.", "2": "no idea", "3": "The answer is A.", "4": "?"},
    }  # fmt: skip
    path = desk.text("s.json", json.dumps(summary, indent=indent) + "\n")
    parsed = desk.score("scienceqa", path, gold, splits=splits)
    assert parsed.metrics["accuracy"] == 50
    assert parsed.counts == (4, 4, 0, 2)
    stored = desk.score("scienceqa", path, gold, splits=splits, use_stored=True)
    assert stored.metrics["accuracy"] == 75
    assert stored.counts == (4, 4, 0, 0)


def test_scienceqa_reads_the_detail_file(desk: Desk) -> None:
    gold, splits = problems(desk)
    detail = {
        "correct": [{"question_id": "1", "pred": "The answer is A.", "is_multimodal": True}],
        "incorrect": [{"question_id": "2", "pred": "The answer is A.", "is_multimodal": True}],
    }
    result = desk.score("scienceqa", desk.json("d.json", detail), gold, splits=splits)
    assert result.metrics["image_accuracy"] == 50
    with pytest.raises(UsageError, match="no stored results"):
        desk.score("scienceqa", desk.json("d.json", detail), gold, splits=splits, use_stored=True)


def test_lenient_figures_stand_beside_the_strict_ones(desk: Desk) -> None:
    rows = [
        {"question_id": 101, "text": "The answer is (A)."},
        {"question_id": "v10_2", "text": "A or B"},
        {"question_id": 103, "text": "C."},
        {"question_id": 104, "text": "D"},
    ]
    found = desk.score("seed", desk.lines("a.jsonl", rows), seed_gold(desk), lenient=True)
    assert found.metrics["accuracy"] == 25
    assert found.metrics["lenient_accuracy"] == 75
    assert found.counts.unparsable == 3
    gold, splits = problems(desk)
    replies = [{"question_id": n, "text": text} for n, text in ((1, "It is A!"), (2, "C"))]
    path = desk.lines("s.jsonl", replies)
    result = desk.score("scienceqa", path, gold, splits=splits, lenient=True)
    assert (result.metrics["accuracy"], result.metrics["lenient_accuracy"]) == (0, 25)
