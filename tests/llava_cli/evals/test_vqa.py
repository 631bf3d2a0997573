"""VQAv2, VizWiz, OK-VQA, TextVQA and GQA: joins, figures by hand, bad files."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llava_cli.errors import DataError
from tests.llava_cli.evals.conftest import Desk


def ten(*texts: str) -> list[dict[str, Any]]:
    """Ten answers as VQAv2 has them; the last one given fills up."""
    filled = [*texts, *[texts[-1]] * (10 - len(texts))]
    return [{"answer": a, "answer_confidence": "yes", "answer_id": i} for i, a in enumerate(filled)]


def vqa_annotations(desk: Desk, *rows: tuple[int, str, list[dict[str, Any]]]) -> Any:
    found = [
        {"question_id": key, "image_id": 1, "answer_type": kind, "answers": answers}
        for key, kind, answers in rows
    ]
    return desk.json("v2_mscoco_val2014_annotations.json", {"info": {}, "annotations": found})


def test_vqav2_scores_llavas_rows_by_the_processor_and_by_the_organisers(desk: Desk) -> None:
    gold = vqa_annotations(
        desk,
        (1, "yes/no", ten("yes", "yes", "no")),  # yes twice: .6
        (2, "number", ten("2")),  # "Two": all ten
        (3, "other", ten("Bob's car", "x")),  # once: .3 by the processor; the server misses
        (4, "other", ten("cat")),  # not answered
    )
    rows = [
        {"question_id": 1, "prompt": "p", "text": "Yes.", "answer_id": "a", "metadata": {}},
        {"question_id": "2", "text": "Two"},
        {"question_id": 3.0, "text": "Bob's car"},
        {"question_id": 99, "text": "nobody asked"},
    ]
    result = desk.score("vqav2", desk.lines("a.jsonl", rows), gold)
    assert result.metrics["accuracy"] == pytest.approx(100 * (0.6 + 1.0 + 0.3 + 0) / 4)
    assert result.metrics["official_accuracy"] == pytest.approx(100 * (0.6 + 1.0 + 0 + 0) / 4)
    assert result.metrics["accuracy_yes_no"] == pytest.approx(60)
    assert result.metrics["accuracy_number"] == 100
    assert result.counts == (4, 3, 1, 0)
    unknown = next(w for w in result.protocol["warnings"] if "annotations do not" in w)
    assert unknown.startswith("1 ") and "a.jsonl, line 4" in unknown


def test_vqav2_reads_the_upload_format(desk: Desk) -> None:
    gold = vqa_annotations(desk, (1, "other", ten("red")), (2, "other", ten("blue")))
    upload = desk.json(
        "u.json", [{"question_id": 1, "answer": "red"}, {"question_id": 2, "answer": ""}]
    )
    result = desk.score("vqav2", upload, gold)
    assert result.metrics["accuracy"] == 50
    assert result.counts == (2, 2, 0, 0)


def test_uploads_reach_the_official_rule_as_they_are(desk: Desk) -> None:
    gold = vqa_annotations(desk, (1, "other", ten("bob's")))
    upload = desk.json("u.json", [{"question_id": 1, "answer": "bob's"}])
    assert desk.score("vqav2", upload, gold).metrics["official_accuracy"] == 100
    rows = desk.lines("a.jsonl", [{"question_id": 1, "text": "bob's"}])
    assert desk.score("vqav2", rows, gold).metrics["official_accuracy"] == 0


def test_identical_references_stay_as_they_are_in_the_official_rule(desk: Desk) -> None:
    gold = vqa_annotations(
        desk, (1, "other", ten("top-left")), (2, "other", ten("top-left", "x", "y"))
    )
    rows = [{"question_id": 1, "text": "top left"}, {"question_id": 2, "text": "top left"}]
    result = desk.score("vqav2", desk.lines("a.jsonl", rows), gold)
    assert result.metrics["official_accuracy"] == pytest.approx(100 * (0 + 0.3) / 2)
    assert result.metrics["accuracy"] == pytest.approx(100 * (1 + 0.3) / 2)


def test_mark_windows_line_ends_blank_lines_and_no_last_newline(desk: Desk) -> None:
    gold = vqa_annotations(desk, (1, "other", ten("red")), (2, "other", ten("blue")))
    first = '\ufeff{"question_id": 1, "text": "red", "more": [1]}\r\n\r\n'
    text = first + '{"text": "blue", "question_id": "2"}'
    result = desk.score("vqav2", desk.text("a.jsonl", text), gold)
    assert result.metrics["accuracy"] == 100


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('{"text": "x"}', "question_id is missing"),
        ('{"question_id": null, "text": "x"}', "not an id"),
        ('{"question_id": 1}', "text or answer or prediction is missing"),
        ('{"question_id": 1, "text": 5}', "not a text"),
        ('{"question_id": 1, "text": ["a"]}', "not a text"),
        ('{"question_id": 1, "text": "cut of', "not JSON"),
        ("[1]", "not a JSON object"),
        ('{"question_id": 7, "text": "other"}', "a second answer to 7"),
    ],
)
def test_a_bad_row_is_an_error_that_names_file_and_line(desk: Desk, row: str, said: str) -> None:
    gold = vqa_annotations(desk, (1, "other", ten("red")), (7, "other", ten("red")))
    path = desk.text("a.jsonl", '{"question_id": 7, "text": "red"}\n' + row + "\n")
    with pytest.raises(DataError, match="a.jsonl, line 2: ") as error:
        desk.score("vqav2", path, gold)
    assert said in error.value.message


def test_a_repeated_row_is_remarked_on(desk: Desk) -> None:
    gold = vqa_annotations(desk, (1, "other", ten("red")))
    path = desk.lines("a.jsonl", [{"question_id": 1, "text": "red"}] * 3)
    result = desk.score("vqav2", path, gold)
    assert result.protocol["warnings"] == [
        f"2 rows repeat an earlier row; used once (first: {path}, line 2)"
    ]


def test_predictions_of_something_else_and_empty_files_are_errors(desk: Desk) -> None:
    gold = vqa_annotations(desk, (1, "other", ten("red")))
    for rows in ([], [{"question_id": 5, "text": "red"}]):
        with pytest.raises(DataError, match="no prediction for any item"):
            desk.score("vqav2", desk.lines("a.jsonl", rows), gold)


def test_okvqa_cleans_as_pica_does_and_scores_as_the_organisers_do(desk: Desk) -> None:
    gold = vqa_annotations(desk, (1, "other", ten("race", "race", "track")), (2, "other", ten("2")))
    upload = desk.json(
        "o.json",
        [{"answer": "To the race.", "question_id": "1"}, {"answer": "two", "question_id": 2}],
    )
    result = desk.score("okvqa", upload, gold)
    assert result.metrics["accuracy"] == pytest.approx(100 * (0.6 + 1) / 2)


def test_vizwiz_joins_on_the_picture(desk: Desk) -> None:
    answers = [{"answer": "unanswerable", "answer_confidence": "no"}] * 10
    gold = desk.json(
        "val.json",
        [
            {"image": "VizWiz_val_0.jpg", "question": "q", "answers": answers, "answerable": 0},
            {"image": "VizWiz_val_1.jpg", "question": "q", "answers": answers, "answerable": 0},
        ],
    )
    rows = [
        {"question_id": "VizWiz_val_0.jpg", "prompt": "p", "text": "Unanswerable."},
        {"image": "VizWiz_val_1.jpg", "answer": "a dog"},
    ]
    assert desk.score("vizwiz", desk.lines("a.jsonl", rows), gold).metrics["accuracy"] == 50


def test_vizwiz_ids_become_pictures_by_the_question_file(desk: Desk) -> None:
    gold = desk.json("val.json", [{"image": "a.jpg", "answers": [{"answer": "red"}] * 10}])
    questions = desk.lines("q.jsonl", [{"question_id": 0, "image": "a.jpg", "text": "q"}])
    rows = desk.lines("a.jsonl", [{"question_id": 0, "text": "Red"}])
    assert desk.score("vizwiz", rows, gold, questions=questions).metrics["accuracy"] == 100


def textvqa_gold(desk: Desk) -> Any:
    data = [
        {"question_id": n, "image_id": "ab", "question": question, "answers": [answer] * 10}
        for n, question, answer in ((34602, "What Brand?", "nokia"), (34603, "What year?", "1999"))
    ]
    return desk.json("TextVQA_0.5.1_val.json", {"dataset_type": "val", "data": data})


SHORT = "Answer the question using a single word or phrase."


@pytest.mark.parametrize(
    "prompt",
    [
        f"What brand?\nReference OCR token: NOKIA, x\n{SHORT}",
        f"What brand?\nReference OCR token: \n{SHORT}",
        f"Reference OCR token: NOKIA\nWhat brand?\n{SHORT}",
        f"What brand?\n{SHORT}",
        "OCR tokens: a, b. Question: What brand? Short answer:",
    ],
)
def test_textvqa_reads_the_question_back_from_the_prompt(desk: Desk, prompt: str) -> None:
    rows = [
        {"question_id": "ab", "prompt": prompt, "text": "Nokia"},
        {"question_id": "ab", "prompt": f"What year?\n{SHORT}", "text": "2000"},
    ]
    result = desk.score("textvqa", desk.lines("a.jsonl", rows), textvqa_gold(desk))
    assert result.metrics["accuracy"] == 50
    assert [item.score for item in desk.items] == [1, 0]


def test_textvqa_refuses_any_other_prompt(desk: Desk) -> None:
    rows = [{"question_id": "ab", "prompt": "What brand?", "text": "Nokia"}]
    with pytest.raises(DataError, match="cannot be read back"):
        desk.score("textvqa", desk.lines("a.jsonl", rows), textvqa_gold(desk))


def test_textvqa_joins_by_id_where_rows_have_its_ids(desk: Desk) -> None:
    rows = [
        {"question_id": 34602, "image_id": "ab", "answer": "nokia", "pred_source": ["OCR"]},
        {"question_id": "34603", "image_id": "ab", "answer": "1999"},
    ]
    result = desk.score("textvqa", desk.json("m4c.json", rows), textvqa_gold(desk))
    assert result.metrics["accuracy"] == 100


def test_textvqa_wants_ten_references(desk: Desk) -> None:
    gold = desk.json("g.json", {"data": [
        {"question_id": 1, "image_id": "ab", "question": "What brand?", "answers": ["nokia"] * 9}
    ]})  # fmt: skip
    rows = [{"question_id": 1, "answer": "nokia"}]
    with pytest.raises(DataError, match="9 references"):
        desk.score("textvqa", desk.json("m4c.json", rows), gold)


def test_textvqa_scores_equal_questions_against_the_later_annotation(desk: Desk) -> None:
    data = [
        {"question_id": n, "image_id": "ab", "question": "What brand?", "answers": [word] * 10}
        for n, word in enumerate(("nokia", "sony"))
    ]
    rows = [
        {"question_id": "ab", "prompt": f"What brand?\n{SHORT}", "text": text}
        for text in ("nokia", "sony")
    ]
    result = desk.score("textvqa", desk.lines("a.jsonl", rows), desk.json("g.json", {"data": data}))
    assert result.metrics["accuracy"] == 50
    assert result.counts.answered == 2


def test_gqa_strips_periods_and_capitals_of_llavas_rows_only(desk: Desk) -> None:
    gold = desk.json("testdev_balanced_questions.json", {
        "201": {"question": "q", "answer": "yes", "types": {"structural": "verify"}},
        "202": {"question": "q", "answer": "dog", "types": {"structural": "query"}},
    })  # fmt: skip
    rows = [{"question_id": "201", "text": "Yes.."}, {"question_id": 202, "text": "a dog"}]
    result = desk.score("gqa", desk.lines("a.jsonl", rows), gold)
    assert result.metrics == {"accuracy": 50, "accuracy_binary": 100, "accuracy_open": 0}
    upload = [
        {"questionId": "201", "prediction": "Yes"},
        {"questionId": "202", "prediction": "dog"},
    ]
    assert desk.score("gqa", desk.json("u.json", upload), gold).metrics["accuracy"] == 50


def test_large_annotations_are_read_element_by_element(desk: Desk, monkeypatch: Any) -> None:
    from llava_cli.evals import json_stream

    monkeypatch.setattr(json_stream, "CHUNK", 7)
    gold = vqa_annotations(desk, *[(n, "other", ten("red")) for n in range(30)])
    pred = desk.json("u.json", [{"question_id": n, "answer": "red"} for n in range(30)])
    assert desk.score("vqav2", pred, gold).metrics["accuracy"] == 100


@pytest.mark.parametrize("cut", [1, 20, -1])
def test_cut_off_annotations_are_an_error(desk: Desk, cut: int) -> None:
    text = json.dumps({"annotations": [{"question_id": 1, "answers": ten("red")}]})
    gold = desk.text("g.json", text[:cut])
    with pytest.raises(DataError, match="g.json: not JSON"):
        desk.score("vqav2", desk.lines("a.jsonl", [{"question_id": 1, "text": "red"}]), gold)


def test_textvqa_keeps_the_ocr_line_where_there_are_no_tokens(desk: Desk) -> None:
    from llava_cli.evals import plans
    from llava_cli.evals.tasks import Asking
    from tests.llava_cli.evals.layouts import make, put

    data = make("textvqa", desk.folder / "data")
    rows = [{"image_id": "00685bc495504d61", "ocr_tokens": []}]
    put(data / "TextVQA_Rosetta_OCR_v0.2_val.json", {"data": rows})
    task = plans.plan("textvqa", Asking(data)).tasks[0]
    assert task.text == f"what brand?\nReference OCR token: \n{SHORT}"
    assert plans.plan("textvqa", Asking(data, ocr=False)).tasks[0].text == f"what brand?\n{SHORT}"
