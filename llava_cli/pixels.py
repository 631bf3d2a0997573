"""One preparation of a picture for a vision tower, shared by both engines and by training.

`prepare` cuts, pads or stretches an upright RGB picture to the tower's square and resizes it,
equal to transformers' image processors bit for bit; `normalise` makes the float values that a
tower reads. The numbers come from the model's own files (`PixelConfig.from_preprocessor`,
`PixelConfig.from_metadata`).

Not here: opening files, orientation, transparency (`images.py`), LLaVA-1.6's tiles (`tiles.py`).
Needs Pillow and numpy only, and imports Pillow where it is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import numpy.typing as npt

from llava_cli.errors import ImageError, ModelInvalid

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

Aspect = Literal["pad", "crop", "stretch"]
ASPECTS: tuple[Aspect, ...] = ("pad", "crop", "stretch")

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
BICUBIC = 3
"""Pillow's number of the filter, which is also what preprocessor_config.json stores."""

BILINEAR = 2
_STRIP_PIXELS = 24_000_000
"""How much of a padded or enlarged picture is built at once."""
_NARROW = 64
"""Pictures this many times taller than wide are padded by our own arithmetic, not Pillow's."""
_PRECISION_BITS = 22
"""Pillow resizes 8-bit pictures with fixed-point weights of this many fractional bits."""

Triple = tuple[float, float, float]
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class PixelConfig:
    """How a picture becomes the square that one vision tower reads."""

    size: int
    """Side of the square in pixels."""
    mean: Triple = CLIP_MEAN
    std: Triple = CLIP_STD
    aspect: Aspect = "pad"
    """pad: centre on a square canvas, then resize · crop: resize the short edge, then cut the
    centre · stretch: resize to the square."""
    pad_color: tuple[int, int, int] = (122, 116, 104)
    resample: int = BICUBIC

    @classmethod
    def from_preprocessor(cls, settings: Mapping[str, Any]) -> PixelConfig:
        """The numbers of a preprocessor_config.json or processor_config.json, of any vintage."""
        settings = settings.get("image_processor") or settings
        if settings.get("image_grid_pinpoints"):
            raise ModelInvalid(
                "this model cuts pictures into tiles, which is not supported",
                "use a LLaVA-1.5 style model",
            )
        if settings.get("do_resize") is False or settings.get("do_rescale") is False:
            raise ModelInvalid(
                "the image preprocessor neither resizes nor rescales pictures",
                "check preprocessor_config.json",
            )
        _expect_scale(settings.get("rescale_factor", 1 / 255))
        mean, std = CLIP_MEAN, CLIP_STD
        if settings.get("do_normalize") is False:
            mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        else:
            mean = _triple(settings.get("image_mean", CLIP_MEAN), "image_mean")
            std = _triple(settings.get("image_std", CLIP_STD), "image_std")
        aspect, size = _shape(settings)
        resample = settings.get("resample", BICUBIC)
        if resample not in (BILINEAR, BICUBIC):
            raise ModelInvalid(f"unknown resample {resample!r} in the preprocessor settings")
        return cls(size, mean, std, aspect, _mean_color(mean), int(resample))

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> PixelConfig:
        """The numbers of an mmproj GGUF; one that says nothing of padding pads like LLaVA-1.5."""
        size = metadata.get("clip.vision.image_size")
        if not isinstance(size, int) or size <= 0:
            raise ModelInvalid("the mmproj file gives no clip.vision.image_size")
        mean = _triple(metadata.get("clip.vision.image_mean", CLIP_MEAN), "clip.vision.image_mean")
        std = _triple(metadata.get("clip.vision.image_std", CLIP_STD), "clip.vision.image_std")
        aspect = metadata.get("llava.image_aspect", "pad")
        if aspect == "anyres":  # `tiles.py` cuts; what is left is one square as a whole
            aspect = "stretch"
        if aspect not in ASPECTS:
            raise ModelInvalid(f"unknown llava.image_aspect {aspect!r} in the mmproj file")
        color = tuple(int(c) for c in metadata.get("llava.image_pad_color", _mean_color(mean)))
        if len(color) != 3 or not all(0 <= c <= 255 for c in color):
            raise ModelInvalid(f"bad llava.image_pad_color {color!r} in the mmproj file")
        resample = int(metadata.get("llava.image_resample", BICUBIC))
        if resample not in (BILINEAR, BICUBIC):
            raise ModelInvalid(f"unknown llava.image_resample {resample!r} in the mmproj file")
        return cls(size, mean, std, cast(Aspect, aspect), (color[0], color[1], color[2]), resample)

    def to_metadata(self) -> dict[str, Any]:
        """The same numbers as mmproj keys; integers are u32, lists of float are f32."""
        return {
            "clip.vision.image_size": self.size,
            "clip.vision.image_mean": list(self.mean),
            "clip.vision.image_std": list(self.std),
            "llava.image_aspect": self.aspect,
            "llava.image_pad_color": list(self.pad_color),
            "llava.image_resample": self.resample,
        }


def prepare(image: PILImage, config: PixelConfig) -> Pixels:
    """An upright RGB picture as the tower's square: uint8 (size, size, 3)."""
    if image.mode != "RGB":
        raise ImageError(f"a picture must be RGB before it is prepared, not {image.mode}")
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError("the picture is empty")
    if config.aspect == "pad":
        return _pad(image, config)
    if config.aspect == "crop":
        return _crop(image, config)
    return _array(image.resize((config.size, config.size), _filter(config.resample)))


def normalise(pixels: Pixels, config: PixelConfig) -> npt.NDArray[np.float32]:
    """Prepared pixels (size, size, 3) as the tower's input: float32 (3, size, size).

    Rescaled in float64 and rounded to float32 first, as transformers does: equal to the last bit.
    """
    scaled = (pixels.astype(np.float64) * (1 / 255)).astype(np.float32)
    mean, std = np.array(config.mean, np.float32), np.array(config.std, np.float32)
    return np.ascontiguousarray(((scaled - mean) / std).transpose(2, 0, 1))


def _pad(image: PILImage, config: PixelConfig) -> Pixels:
    """Centred on a square of `pad_color`, then resized, without ever building the whole square.

    Pillow resizes rows first and columns second, and a resized row of one colour is that colour:
    so a wide picture's rows are resized before the padding is put above and below them.
    """
    from PIL import Image as PIL

    width, height = image.size
    side, size = max(width, height), config.size
    if width >= height:
        rows = image.resize((size, height), _filter(config.resample))
    else:
        rows = _padded_rows(image, config)
    canvas = PIL.new("RGB", (size, side), config.pad_color)
    canvas.paste(rows, (0, (side - height) // 2))
    return _array(canvas.resize((size, size), _filter(config.resample)))


def _padded_rows(image: PILImage, config: PixelConfig) -> PILImage:
    """A tall picture's rows, padded left and right to its height, resized to (size, height)."""
    from PIL import Image as PIL

    width, height = image.size
    left = (height - width) // 2
    if width * _NARROW <= height:
        weights = _weights(height, config.size, (0, config.size), (left, left + width), config)
        pixels = _one_pass(_array(image).transpose(1, 0, 2), weights, config.pad_color)
        return PIL.fromarray(np.ascontiguousarray(pixels.transpose(1, 0, 2)))
    rows = PIL.new("RGB", (config.size, height))
    step = max(1, _STRIP_PIXELS // height)
    for top in range(0, height, step):
        strip = image.crop((0, top, width, min(top + step, height)))
        padded = PIL.new("RGB", (height, strip.height), config.pad_color)
        padded.paste(strip, (left, 0))
        rows.paste(padded.resize((config.size, strip.height), _filter(config.resample)), (0, top))
    return rows


def _crop(image: PILImage, config: PixelConfig) -> Pixels:
    """Short edge resized to `size`, then the centre cut out; only that centre is ever resized."""
    width, height = image.size
    size, method = config.size, _filter(config.resample)
    long = int(size * max(width, height) / min(width, height))
    start = (long - size) // 2
    if width > height:
        rows = image.resize((long, height), method).crop((start, 0, start + size, height))
        return _array(rows.resize((size, size), method))
    columns = image.resize((size, height), method)
    if size * long <= _STRIP_PIXELS:
        return _array(columns.resize((size, long), method).crop((0, start, size, start + size)))
    weights = _weights(height, long, (start, start + size), (0, height), config)
    return _one_pass(_array(columns), weights, config.pad_color)


@dataclass(frozen=True)
class _Weights:
    """Pillow's fixed-point weights of some outputs along one axis; all are whole numbers."""

    first: int
    """The first place of the picture that any of the outputs sees."""
    inside: npt.NDArray[np.float64]
    """(outputs, places of the picture from `first` on)."""
    outside: npt.NDArray[np.float64]
    """(outputs,): the summed weights of all places beside the picture."""


def _weights(
    n_in: int, n_out: int, window: tuple[int, int], picture: tuple[int, int], config: PixelConfig
) -> _Weights:
    """Weights that resize `n_in` places to `n_out`, for the outputs in `window`.

    The picture takes the places in `picture`; all others hold one colour.
    """
    scale = n_in / n_out
    stretch = max(scale, 1.0)
    support = (2.0 if config.resample == BICUBIC else 1.0) * stretch
    rows = []
    for out in range(*window):
        centre = (out + 0.5) * scale
        first = max(int(centre - support + 0.5), 0)
        place = np.arange(first, min(int(centre + support + 0.5), n_in))
        x = np.abs((place - centre + 0.5) * (1.0 / stretch))
        weight = _bicubic(x) if config.resample == BICUBIC else np.maximum(1.0 - x, 0.0)
        total = float(np.add.accumulate(weight)[-1])  # summed in order, as the C loop does
        weight = weight * (1.0 / total) if total else weight
        fixed = np.trunc(weight * 2.0**_PRECISION_BITS + np.where(weight < 0, -0.5, 0.5))
        rows.append((place, fixed))
    lo = max(picture[0], int(rows[0][0][0]))
    hi = max(min(picture[1], int(rows[-1][0][-1]) + 1), lo)
    inside, outside = np.zeros((len(rows), hi - lo)), np.zeros(len(rows))
    for row, (place, fixed) in enumerate(rows):
        seen = (place >= lo) & (place < hi)
        inside[row, place[seen] - lo] = fixed[seen]
        outside[row] = fixed[~seen].sum()
    return _Weights(lo - picture[0], inside, outside)


def _bicubic(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Keys' kernel with a = -0.5, in the order of operations that Pillow has."""
    near = ((-0.5 + 2.0) * x - (-0.5 + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _one_pass(pixels: Pixels, weights: _Weights, color: tuple[int, int, int]) -> Pixels:
    """One pass of Pillow's resize along the first axis: (L, M, 3) -> (outputs, M, 3).

    Equal to Pillow bit for bit: all sums are whole numbers below 2**53, so float64 is exact. It
    sees only what it needs, which lets a picture of 3 x 20000 pixels pass in a few megabytes.
    """
    length = weights.inside.shape[1]
    seen = pixels[weights.first : weights.first + length]
    beside = weights.outside[:, None, None] * np.array(color, np.float64)  # (O, 1, 3)
    step = max(1, _STRIP_PIXELS // (64 * max(length, len(weights.outside))))
    parts = []
    for start in range(0, pixels.shape[1], step):
        values = seen[:, start : start + step].astype(np.float64)
        sums = np.tensordot(weights.inside, values, axes=1)
        sums += beside + 2.0 ** (_PRECISION_BITS - 1)
        sums *= 2.0**-_PRECISION_BITS
        parts.append(np.clip(np.floor(sums, out=sums), 0, 255, out=sums).astype(np.uint8))
    return np.concatenate(parts, axis=1)


def _array(image: PILImage) -> Pixels:
    return np.array(image, dtype=np.uint8)


def _filter(number: int) -> Any:
    from PIL import Image as PIL

    return PIL.Resampling(number)


def _shape(settings: Mapping[str, Any]) -> tuple[Aspect, int]:
    """Which of the three ways the settings mean, and the side of the square."""
    size = settings.get("size", {"shortest_edge": 224})
    crop = _side(settings.get("crop_size"), "crop_size")
    cropped = settings.get("do_center_crop", True) and crop is not None
    if isinstance(size, int):
        size = {"shortest_edge": size} if cropped else {"height": size, "width": size}
    if not isinstance(size, Mapping):
        raise ModelInvalid(f"size {size!r} in the preprocessor settings is not understood")
    kind = settings.get("image_processor_type", settings.get("feature_extractor_type", ""))
    padded = bool(settings.get("do_pad")) and str(kind).startswith("Llava")
    if size.get("shortest_edge"):
        edge = int(size["shortest_edge"])
        if not cropped and not padded:
            raise ModelInvalid(
                "the image preprocessor makes pictures that are not square",
                "check do_center_crop and crop_size in preprocessor_config.json",
            )
    else:
        side = _side(size, "size")
        if side is None:
            raise ModelInvalid(f"size {dict(size)!r} in the preprocessor settings is not known")
        edge = side
    if cropped and crop != edge:
        raise ModelInvalid(
            f"pictures resized to {edge} and cut to {crop} are not supported",
            "check size and crop_size in preprocessor_config.json",
        )
    if padded:
        return "pad", edge
    return ("crop" if size.get("shortest_edge") else "stretch"), edge


def _side(size: Any, key: str) -> int | None:
    """The side of a square given as an int or as height and width; None where it is not given."""
    if size is None or isinstance(size, int):
        return size or None
    if isinstance(size, Mapping) and size.get("height") and size.get("height") == size.get("width"):
        return int(size["height"])
    raise ModelInvalid(f"{key} {size!r} in the preprocessor settings is not a square")


def _triple(values: Any, key: str) -> Triple:
    if isinstance(values, Sequence) and len(values) == 3:
        numbers = tuple(float(v) for v in values if isinstance(v, (int, float)))
        if len(numbers) == 3:
            return numbers[0], numbers[1], numbers[2]
    raise ModelInvalid(f"{key} must be three numbers, not {values!r}")


def _mean_color(mean: Triple) -> tuple[int, int, int]:
    """LLaVA's padding: the mean colour, cut down to whole numbers."""
    red, green, blue = (min(max(int(m * 255), 0), 255) for m in mean)
    return red, green, blue


def _expect_scale(factor: Any) -> None:
    if not isinstance(factor, (int, float)) or abs(factor - 1 / 255) > 1e-9:
        raise ModelInvalid(
            f"pictures scaled by {factor!r} are not supported",
            "check rescale_factor in preprocessor_config.json",
        )
