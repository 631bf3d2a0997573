"""What can be asked about every picture without writing a prompt: data, no code."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    """A prompt with a name."""

    prompt: str
    about: str
    """One line for help."""


PRESETS = {
    "descriptive": Preset("Describe this image in detail.", "a paragraph about everything in it"),
    "short": Preset("Describe this image in one sentence.", "one sentence"),
    "tags": Preset(
        "List what is in this image as short tags, separated by commas. Answer with the tags only.",
        "tags, separated by commas",
    ),
    "sd-prompt": Preset(
        "Write a prompt for an image generator that would produce this image: subject, setting, "
        "style, lighting and composition, as comma-separated phrases. Answer with the prompt only.",
        "a prompt that could have made the picture",
    ),
    "alt-text": Preset(
        "Write alt text for this image: what a person who cannot see it needs to know, in at most "
        "two sentences, without saying that it is an image.",
        "for people who cannot see the picture",
    ),
    "product": Preset(
        "Describe the product in this image for a shop: what it is, material, colour and visible "
        "features. Do not invent what cannot be seen.",
        "for a shop",
    ),
    "ocr": Preset(
        "Write down all text that can be read in this image, line by line. Answer with the text "
        "only.",
        "the text in the picture",
    ),
}
DEFAULT = "descriptive"
