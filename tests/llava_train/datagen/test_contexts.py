"""Pictures as text: box arithmetic, crowds, missing captions, unicode, several ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llava_cli.errors import DataError
from llava_train.datagen.coco import Coco
from llava_train.datagen.contexts import Box, Picture, context, corners
from tests.llava_train.datagen.conftest import Generate, read_lines
from tests.llava_train.datagen.server import serving


@pytest.mark.parametrize(
    ("xywh", "size", "expected"),
    [
        ((10, 20, 30, 40), (100, 200), (0.1, 0.1, 0.4, 0.3)),
        ((0, 0, 640, 480), (640, 480), (0, 0, 1, 1)),
        ((-5, -5, 20, 20), (100, 100), (0, 0, 0.15, 0.15)),
        ((90, 90, 20, 20), (100, 100), (0.9, 0.9, 1, 1)),
        ((1, 1, 0, 5), (100, 100), None),
        ((1, 1, -3, 5), (100, 100), None),
        ((200, 1, 5, 5), (100, 100), None),
        ((1, 1, 5), (100, 100), None),
        ((1, 1, 5, float("nan")), (100, 100), None),
        ((1, 1, 5, True), (100, 100), None),
        ((1, 1, 5, 5), (0, 100), None),
    ],
)
def test_pixels_become_corners_in_fractions(
    xywh: tuple[float, ...], size: tuple[float, float], expected: tuple[float, ...] | None
) -> None:
    found = corners(xywh, *size)
    assert found == (None if expected is None else pytest.approx(expected))


def test_a_box_is_written_with_three_decimals() -> None:
    box = Box("dining table", (0.0, 1 / 3, 0.5, 0.99951))
    assert box.line() == "dining table: [0.000, 0.333, 0.500, 1.000]"


def test_which_kind_sees_what() -> None:
    picture = Picture("1", "a.jpg", ("A café.", "Two cups ☕."), (Box("cup", (0, 0, 0.5, 1)),))
    assert context(picture, "conversation") == "A café.\nTwo cups ☕."
    boxed = "A café.\nTwo cups ☕.\n\ncup: [0.000, 0.000, 0.500, 1.000]"
    assert context(picture, "detail") == context(picture, "reasoning") == boxed


def test_a_picture_without_boxes_is_shown_by_its_captions() -> None:
    picture = Picture("1", "a.jpg", ("One.",))
    assert {context(picture, kind) for kind in ("conversation", "detail", "reasoning")} == {"One."}


def image(identity: Any, name: str, **more: Any) -> dict[str, Any]:
    return {"id": identity, "file_name": name, "width": 100, "height": 50, **more}


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Captions and instances in COCO's layout, with everything that goes wrong in them."""
    captions, instances = tmp_path / "captions.json", tmp_path / "instances.json"
    captions.write_text(
        json.dumps(
            {
                "annotations": [  # before the pictures, and out of their order
                    {"image_id": 2, "caption": "Second.", "id": 1},
                    {"image_id": 1, "caption": "A  dog\non grass. ", "id": 2},
                    {"image_id": 1, "caption": "Ein Hund – 犬 🐕", "id": 3},
                    {"image_id": 1, "caption": "   ", "id": 4},
                    {"image_id": 99, "caption": "Nobody's.", "id": 5},
                ],
                "info": {"year": 2014},
                "images": [
                    image(1, "b.jpg"),
                    image(2, "a.jpg", width=None),
                    image(3, "none.jpg"),
                    image(1, "again.jpg"),
                ],
            }
        )
    )
    rows: list[dict[str, Any]] = [
        {"image_id": 1, "category_id": 18, "bbox": [10, 5, 20, 10], "iscrowd": 0},
        {"image_id": 1, "category_id": 1, "bbox": [0, 0, 100, 50], "iscrowd": 1},
        {"image_id": 1, "category_id": 7, "bbox": [0, 0, 1, 1], "iscrowd": 0},
        {"image_id": 1, "category_id": 1, "bbox": [0, 0, 0, 9], "iscrowd": 0},
        {"image_id": 2, "category_id": 1, "bbox": [0, 0, 9, 9], "iscrowd": 0},
        {"image_id": 77, "category_id": 1, "bbox": [0, 0, 9, 9], "iscrowd": 0},
    ]
    categories = [{"id": 18, "name": "dog"}, {"id": 1, "name": "person"}]
    images = [image(1, "b.jpg"), image(2, "a.jpg", width=None)]
    instances.write_text(
        json.dumps({"images": images, "annotations": rows, "categories": categories})
    )
    return captions, instances


def test_what_belongs_to_a_picture_is_brought_together(files: tuple[Path, Path]) -> None:
    coco = Coco(*files)
    first, second = coco.pictures()
    assert first == Picture(
        "1",
        "b.jpg",
        ("A dog on grass.", "Ein Hund – 犬 🐕"),
        (Box("dog", (0.1, 0.1, 0.3, 0.3)),),
    )
    assert second == Picture("2", "a.jpg", ("Second.",))
    assert coco.usable() == 2
    coco.close()


def test_everything_left_out_is_counted(files: tuple[Path, Path]) -> None:
    coco = Coco(*files)
    assert dict(coco.left_out) == {
        "empty caption": 1,
        "picture listed twice": 1,
        "crowd": 1,
        "box without area or of wrong numbers": 1,
        "picture without captions": 1,
        "caption of an unknown picture": 1,
        "box of an unknown picture": 1,
        "box of an unknown category": 1,
        "box of a picture without a size": 1,
    }
    coco.close()


def test_crowds_can_be_kept(files: tuple[Path, Path]) -> None:
    coco = Coco(*files, crowds="keep")
    boxes = next(coco.pictures()).boxes
    assert [(box.category, box.crowd) for box in boxes] == [("dog", False), ("person", True)]
    coco.close()


def test_a_request_shows_a_picture_so_and_not_otherwise(generate: Generate, tmp_path: Path) -> None:
    captions, instances = tmp_path / "captions.json", tmp_path / "instances.json"
    pictures = [image(1, "1.jpg"), image(2, "2.jpg"), image(3, "ünï 犬.jpg"), image(4, "4.jpg")]
    said = {1: ["One.", "Two.", "Three.", "Four.", "Five.", "Six."], 2: ["Alone."], 3: ["Café 🐕."]}
    rows = [{"image_id": i, "caption": text} for i, texts in said.items() for text in texts]
    captions.write_text(json.dumps({"images": pictures, "annotations": rows}))
    boxes = [
        (1, [10, 5, 30.5, 10], 0),
        (1, [0, 0, 100, 50], 1),  # a crowd
        (1, [-10, 40, 20, 20], 0),  # over the edge
        (1, [200, 5, 10, 10], 0),  # outside
        (1, [5, 5, 0, 10], 0),  # without width
        (3, [33.3333, 0, 33.3333, 50], 0),
        (4, [0, 0, 10, 10], 0),  # of a picture without captions
    ]
    found = [{"image_id": i, "category_id": 7, "bbox": b, "iscrowd": c} for i, b, c in boxes]
    categories = [{"id": 7, "name": "Hund 🐶"}]
    instances.write_text(
        json.dumps({"images": pictures, "annotations": found, "categories": categories})
    )
    options = ("--captions", str(captions), "--instances", str(instances), "--kind", "detail")
    with serving() as server:
        code, document, err = generate(server, *options)
        assert (code, document["written"]) == (0, {"detail": 3}), err
    assert sorted(body["messages"][-1]["content"] for body in server.asked) == [
        "Alone.",
        "Café 🐕.\n\nHund 🐶: [0.333, 0.000, 0.667, 1.000]",
        "One.\nTwo.\nThree.\nFour.\nFive.\nSix.\n\n"
        "Hund 🐶: [0.100, 0.100, 0.405, 0.300]\nHund 🐶: [0.000, 0.800, 0.100, 1.000]",
    ]
    names = [row["image"] for row in read_lines(tmp_path / "out" / "instruct.jsonl")]
    assert names == ["1.jpg", "2.jpg", "ünï 犬.jpg"]
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["left_out_of_the_source"] == {
        "box outside its picture": 1,
        "box without area or of wrong numbers": 1,
        "crowd": 1,
        "picture without captions": 1,
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "names no pictures"),
        ("[]", "'{' expected"),
        ('{"images": [{"id": 1}]}', "without 'id' or 'file_name'"),
        ('{"images": [1]}', "is not an object"),
        ('{"images": [', "not JSON"),
        ("", "not JSON"),
    ],
)
def test_files_of_another_layout_are_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(DataError, match=said):
        Coco(path)
