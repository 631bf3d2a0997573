"""What becomes of an answer: lead-ins are taken away on request, and nothing else with them."""

from __future__ import annotations

import pytest

from llava_cli.captioning.wording import Finish, Template, without_lead_in


@pytest.mark.parametrize(
    ("said", "left"),
    [
        ("The image shows a red circle.", "A red circle."),
        ("This picture depicts two cats on a sofa.", "Two cats on a sofa."),
        ("This photograph captures the harbour at dusk.", "The harbour at dusk."),
        ("The image features a dog, and the image shows a cat.",
         "A dog, and the image shows a cat."),
        ("In this image, we can see a blue square.", "A blue square."),
        ("In the picture there are three stars.", "Three stars."),
        ("In this photo, a man rides a horse.", "A man rides a horse."),
        ("This is an image of a bridge.", "A bridge."),
        ("Here's a picture showing a bridge.", "A bridge."),
        ("A photo of a bridge.", "A bridge."),
        ("an image that shows a bridge", "a bridge"),
        ("In this image, the picture shows us a bridge.", "A bridge."),
        ("THE IMAGE SHOWS a bridge.", "A bridge."),
        ("The provided image depicts a bridge.", "A bridge."),
    ],
)  # fmt: skip
def test_a_lead_in_is_taken_away(said: str, left: str) -> None:
    assert without_lead_in(said) == left


@pytest.mark.parametrize(
    "said",
    [
        "A close-up photo of a bridge.",
        "The image is blurred.",
        "A man shows the image to a woman.",
        "The image shows",
        "The shows image a circle",
        "Imagery of the coast.",
        "The picturesque village shows its age.",
        "",
    ],
)
def test_what_says_something_stays(said: str) -> None:
    assert without_lead_in(said) == said


def test_lead_ins_stay_unless_asked_and_go_before_the_rest_is_done() -> None:
    said = "The image shows a red circle and a blue square."
    assert Finish().apply(said, {}) == said
    finish = Finish(
        prefix=Template("photo: "), trigger="shp", strip_lead_in=True, ban=("red",), max_words=3
    )
    assert finish.apply(said, {}) == "shp, photo: A circle and"
