"""Pixels equal transformers' own image processors, for every shape of picture."""

from __future__ import annotations

import json
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PIL

from llava_cli import pixels
from llava_cli.errors import ImageError, ModelInvalid
from llava_cli.pixels import PixelConfig, normalise, prepare

SIZES = [
    (56, 56), (1, 1), (57, 56), (55, 57), (640, 480), (480, 640), (333, 500), (501, 111), (7, 300),
    (300, 7), (1, 900), (900, 1), (112, 112), (28, 28), (1023, 767), (2, 3),
]  # fmt: skip


def picture(width: int, height: int, seed: int = 0) -> PIL.Image:
    """Noise: every wrong offset or weight shows."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return PIL.fromarray(noise)


def processors() -> dict[str, Any]:
    transformers = pytest.importorskip("transformers")
    square = {"height": 56, "width": 56}
    return {
        "crop": transformers.CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size=56),
        "pad": transformers.LlavaImageProcessorPil(size=square, crop_size=56, do_pad=True),
        "stretch": transformers.SiglipImageProcessorPil(size=square, resample=3),
    }


@pytest.fixture(scope="module")
def theirs() -> dict[str, Any]:
    return processors()


@pytest.mark.parametrize("aspect", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pixels_equal_transformers_bit_for_bit(
    theirs: dict[str, Any], aspect: str, size: tuple[int, int]
) -> None:
    processor = theirs[aspect]
    config = PixelConfig.from_preprocessor(processor.to_dict())
    image = picture(*size)
    wanted = processor(image, return_tensors="np")["pixel_values"][0]
    ours = prepare(image, config)
    assert config.aspect == aspect
    assert ours.dtype == np.uint8 and ours.shape == (56, 56, 3)
    assert np.array_equal(normalise(ours, config), wanted)


def whole_canvas(image: PIL.Image, config: PixelConfig) -> Any:
    """The definition of padding and cropping, by Pillow alone: memory without bound."""
    width, height = image.size
    method, size = PIL.Resampling(config.resample), config.size
    if config.aspect == "pad":
        side = max(image.size)
        canvas = PIL.new("RGB", (side, side), config.pad_color)
        canvas.paste(image, ((side - width) // 2, (side - height) // 2))
        return np.asarray(canvas.resize((size, size), method))
    long = int(size * max(image.size) / min(image.size))
    wide, high = (long, size) if width > height else (size, long)
    left, top = (wide - size) // 2, (high - size) // 2
    return np.asarray(image.resize((wide, high), method).crop((left, top, left + size, top + size)))


@pytest.mark.parametrize("resample", [2, 3])
@pytest.mark.parametrize("strip", [1, 50_000, 24_000_000])
@pytest.mark.parametrize("aspect", ["crop", "pad"])
@pytest.mark.parametrize(
    "size", [*SIZES, (2000, 3), (3, 2000), (999, 1500), (40, 2001), (30, 2001), (4001, 40)], ids=str
)
def test_working_in_strips_and_windows_changes_nothing(
    aspect: Any, size: tuple[int, int], strip: int, resample: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if strip == 1 and size[1] > 1000:
        pytest.skip("one row a strip: slow, and nothing new on long pictures")
    config = PixelConfig(size=57, aspect=aspect, resample=resample)
    image = picture(*size, seed=1)
    monkeypatch.setattr(pixels, "_STRIP_PIXELS", strip)
    assert np.array_equal(prepare(image, config), whole_canvas(image, config))


@pytest.mark.parametrize("aspect", ["crop", "pad"])
@pytest.mark.parametrize("size", [(20000, 3), (3, 20000)], ids=str)
def test_extreme_shapes_are_quick_and_small(aspect: Any, size: tuple[int, int]) -> None:
    image = picture(*size)
    started = time.process_time()
    tracemalloc.start()
    square = prepare(image, PixelConfig(size=336, aspect=aspect))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert square.shape == (336, 336, 3)
    assert time.process_time() - started < 5.0
    assert peak < 600_000_000
    if aspect == "pad":  # a thin line through the middle, padding everywhere else
        corner = square[0, 0]
        assert tuple(corner) == (122, 116, 104)
        assert not np.array_equal(square[168, 168], corner) or not np.array_equal(
            square[167, 167], corner
        )


CLIP = {"image_mean": list(pixels.CLIP_MEAN), "image_std": list(pixels.CLIP_STD), "resample": 3}


@pytest.mark.parametrize(
    ("settings", "aspect"),
    [
        ({"feature_extractor_type": "CLIPFeatureExtractor", "size": 336, "crop_size": 336}, "crop"),
        ({"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}, "crop"),
        (
            {
                "image_processor_type": "LlavaImageProcessor",
                "do_pad": True,
                "size": {"shortest_edge": 336},
                "crop_size": {"height": 336, "width": 336},
            },
            "pad",
        ),
        (
            {
                "image_processor_type": "LlavaImageProcessorFast",
                "do_pad": True,
                "do_center_crop": False,
                "size": {"height": 336, "width": 336},
            },
            "pad",
        ),
        (
            {
                "image_processor_type": "SiglipImageProcessor",
                "do_center_crop": None,
                "size": {"height": 336, "width": 336},
            },
            "stretch",
        ),
        (
            {
                "image_processor_type": "CLIPImageProcessor",
                "do_pad": False,
                "do_center_crop": False,
                "size": 336,
                "crop_size": 336,
            },
            "stretch",
        ),
    ],
)
def test_settings_of_every_vintage_are_understood(settings: dict[str, Any], aspect: str) -> None:
    config = PixelConfig.from_preprocessor({**CLIP, **settings})
    nested = PixelConfig.from_preprocessor(
        {"processor_class": "LlavaProcessor", "image_processor": {**CLIP, **settings}}
    )
    assert (config.size, config.aspect, config.pad_color) == (336, aspect, (122, 116, 104))
    assert nested == config


def test_saved_processor_files_are_understood(theirs: dict[str, Any], tmp_path: Path) -> None:
    for aspect, processor in theirs.items():
        processor.save_pretrained(tmp_path / aspect)
        saved = json.loads((tmp_path / aspect / "preprocessor_config.json").read_text())
        assert PixelConfig.from_preprocessor(saved).aspect == aspect


def test_metadata_round_trip() -> None:
    config = PixelConfig(336, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "crop", (127, 127, 127), 2)
    assert PixelConfig.from_metadata(config.to_metadata()) == config


def test_foreign_mmproj_is_padded_in_its_mean_colour() -> None:
    config = PixelConfig.from_metadata(
        {"clip.vision.image_size": 384, "clip.vision.image_mean": [0.5, 0.5, 0.5]}
    )
    assert (config.aspect, config.pad_color, config.size) == ("pad", (127, 127, 127), 384)


@pytest.mark.parametrize(
    "settings",
    [
        {"size": {"shortest_edge": 256}, "crop_size": 224},
        {"size": {"height": 224, "width": 336}},
        {"size": {"shortest_edge": 224}, "do_center_crop": False},
        {"size": 224, "crop_size": 224, "image_mean": [0.5]},
        {"size": 224, "crop_size": 224, "resample": 9},
        {"size": 224, "crop_size": 224, "rescale_factor": 1.0},
        {"size": 224, "crop_size": 224, "image_grid_pinpoints": [[336, 672]]},
    ],
    ids=str,
)
def test_settings_that_cannot_be_honoured_are_errors(settings: dict[str, Any]) -> None:
    with pytest.raises(ModelInvalid):
        PixelConfig.from_preprocessor(settings)


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"clip.vision.image_size": 56, "llava.image_aspect": "tile"},
        {"clip.vision.image_size": 56, "llava.image_pad_color": [1, 2]},
        {"clip.vision.image_size": 56, "llava.image_resample": 77},
        {"clip.vision.image_size": 56, "clip.vision.image_std": "no"},
    ],
    ids=str,
)
def test_bad_metadata_is_an_error(metadata: dict[str, Any]) -> None:
    with pytest.raises(ModelInvalid):
        PixelConfig.from_metadata(metadata)


def test_a_picture_that_is_not_rgb_is_refused() -> None:
    with pytest.raises(ImageError):
        prepare(PIL.new("L", (4, 4)), PixelConfig(size=56))
