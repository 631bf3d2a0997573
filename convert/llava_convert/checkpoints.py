"""The numbers of a model, read from its llava-hf configuration and checked.

`read_checkpoint` gives one frozen `Checkpoint`: shapes, where every tensor lies, how pictures are
prepared. A model that llama.cpp cannot compute is refused here with the reason.

Not here: which kind of source it was (`llava_cli.engines.layouts`), tensor names (`names.py`),
tokenizers (`vocabulary.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llava_cli.engines.layouts.source import Source
from llava_cli.engines.layouts.tensors import Tensor
from llava_cli.errors import ModelInvalid
from llava_cli.models.families import FAMILIES, Family
from llava_cli.pixels import PixelConfig
from llava_cli.tiles import square_config
from llava_convert.settings import Settings

Activation = Literal["quick_gelu", "gelu", "silu"]
"""What llama.cpp's CLIP graph has; its gelu is the tanh form."""
TowerKind = Literal["clip", "siglip"]

CLIP_DEFAULTS: dict[str, Any] = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "image_size": 224, "patch_size": 32, "num_channels": 3,
    "layer_norm_eps": 1e-5, "hidden_act": "quick_gelu",
}  # fmt: skip
CLIP_L_336: dict[str, Any] = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
    "num_attention_heads": 16, "image_size": 336, "patch_size": 14,
}  # fmt: skip
"""LLaVA's tower, where config.json has no vision_config at all."""
SIGLIP_DEFAULTS: dict[str, Any] = {
    **CLIP_DEFAULTS, "patch_size": 16, "layer_norm_eps": 1e-6, "hidden_act": "gelu_pytorch_tanh",
}  # fmt: skip
TOWERS: dict[str, tuple[TowerKind, dict[str, Any]]] = {
    "clip_vision_model": ("clip", CLIP_DEFAULTS),
    "siglip_vision_model": ("siglip", SIGLIP_DEFAULTS),
}
"""By transformers' model_type."""
KNOWN_TOWERS = "CLIP and SigLIP towers"

ACTIVATIONS: dict[str, Activation] = {
    "quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_new": "gelu", "gelu_fast": "gelu",
    "gelu_python": "gelu", "gelu_pytorch_tanh": "gelu", "silu": "silu", "swish": "silu",
}  # fmt: skip
"""By transformers' names."""
PINPOINTS_336 = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
"""LLaVA-1.6's, as (height, width), where config.json names none."""
PINPOINTS_384 = tuple(
    (384 * rows, 384 * columns) for rows in range(1, 7) for columns in range(1, 7)
)
"""OneVision's."""


@dataclass(frozen=True)
class TextShape:
    """The language model's numbers."""

    family: Family
    hidden: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    rotary: int
    """Values of a head that the rope turns."""
    context: int
    trained_context: int
    """Before a rope scaling."""
    eps: float
    rope_theta: float
    rope: Mapping[str, Any]
    """rope_parameters, of which rope_type decides the scaling."""
    tied: bool
    """lm_head is the embedding."""
    attention_bias: bool
    mlp_bias: bool
    sliding_window: int | None = None


@dataclass(frozen=True)
class VisionShape:
    """The vision tower's numbers."""

    kind: TowerKind
    hidden: int
    ffn: int
    layers: int
    heads: int
    image: int
    patch: int
    eps: float
    hidden_act: str
    """transformers' name of the activation."""
    feature_layer: int
    """k: the features are hidden_states[k], so k layers run."""

    @property
    def activation(self) -> Activation:
        """The activation as llama.cpp knows it."""
        return ACTIVATIONS[self.hidden_act]

    @property
    def positions(self) -> int:
        """Patches, and the class position that CLIP has."""
        return (self.image // self.patch) ** 2 + int(self.kind == "clip")


@dataclass(frozen=True)
class ProjectorShape:
    """What stands between the two."""

    linear: bool
    """No activation between its two matrices (LLaVA v1), instead of GELU."""
    bias: bool


@dataclass(frozen=True)
class Tiles:
    """How a picture is cut into tiles (LLaVA-1.6 and later)."""

    pinpoints: tuple[tuple[int, int], ...]
    """(height, width) in pixels that a picture may be resized to."""
    vision_aspect_ratio: str = "anyres"
    """OneVision's `anyres_max_N` bounds the number of tokens."""


@dataclass(frozen=True)
class Checkpoint:
    """A source that can be converted."""

    source: Source
    text: TextShape
    vision: VisionShape
    projector: ProjectorShape
    pixels: PixelConfig
    tiles: Tiles | None = None

    @property
    def folder(self) -> Path:
        """Where the tokenizer's files lie."""
        return self.source.folder

    @property
    def name(self) -> str:
        """What the source is called."""
        return self.source.name

    @property
    def config(self) -> Mapping[str, Any]:
        """In llava-hf's form."""
        return self.source.config

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """By llava-hf's names."""
        return self.source.tensors

    @property
    def prompt_format(self) -> str | None:
        """Name in `prompts.FORMATS`, where it is known."""
        return self.source.prompt_format


def read_checkpoint(source: Source) -> Checkpoint:
    """The numbers of a source's model."""
    settings = Settings("config.json", source.config)
    vision = _vision(settings)
    tiles = _tiles(settings, vision)
    read_pixels = PixelConfig.from_preprocessor if tiles is None else square_config
    pixels = read_pixels(source.preprocessor)
    if pixels.size != vision.image:
        raise ModelInvalid(
            f"pictures are prepared at {pixels.size} px, but the tower reads {vision.image} px",
            "check preprocessor_config.json and vision_config in config.json",
        )
    return Checkpoint(
        source=source,
        text=_text(settings),
        vision=vision,
        projector=_projector(settings),
        pixels=pixels,
        tiles=tiles,
    )


def _text(config: Settings) -> TextShape:
    kind = config.section("text_config").text("model_type", _text_default(config))
    if kind not in FAMILIES:
        raise ModelInvalid(
            f"a {kind} language model cannot be converted yet",
            f"what can be converted: {', '.join(FAMILIES)}",
        )
    family = FAMILIES[kind]
    text = config.section("text_config", family.defaults)
    if text.text("hidden_act") not in family.activations:
        raise ModelInvalid(
            f"llama.cpp has no {text.text('hidden_act')} in its {family.architecture} graph"
        )
    if text.flag("qk_layernorm", False):
        raise ModelInvalid("llama.cpp's phi2 graph has no norm of queries and keys")
    heads, hidden = text.whole("num_attention_heads"), text.whole("hidden_size")
    rope = _rope(text)
    theta = rope.get("rope_theta") or text.get("rope_theta") or 1e4
    head_dim = text.whole("head_dim", max(hidden // heads, 1))
    part = rope.get("partial_rotary_factor") or text.get("partial_rotary_factor") or 1.0
    context = text.whole("max_position_embeddings")
    window = _window(text, kind)
    trained = rope.get("original_max_position_embeddings") or text.get(
        "original_max_position_embeddings", context
    )
    return TextShape(
        family=family,
        hidden=hidden,
        ffn=text.whole("intermediate_size"),
        layers=text.whole("num_hidden_layers"),
        heads=heads,
        kv_heads=text.whole("num_key_value_heads", heads),
        head_dim=head_dim,
        rotary=int(head_dim * float(part)),
        # llama.cpp's graphs attend to everything: equal only while nothing has slid out.
        context=min(context, window or context),
        trained_context=int(trained),
        eps=text.number("layer_norm_eps" if kind == "phi" else "rms_norm_eps"),
        rope_theta=float(theta),
        rope=rope,
        tied=text.flag("tie_word_embeddings") or config.flag("tie_word_embeddings", False),
        attention_bias=text.flag("attention_bias"),
        mlp_bias=text.flag("mlp_bias"),
        sliding_window=window,
    )


def _rope(text: Settings) -> Mapping[str, Any]:
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    if not isinstance(rope, Mapping):
        raise ModelInvalid("rope_parameters in config.json is not an object")
    return rope


def _text_default(config: Settings) -> str:
    return "qwen2" if config.text("model_type", "llava") == "llava_onevision" else "llama"


def _window(text: Settings, kind: str) -> int | None:
    """How many positions back a layer looks, where it does not see all."""
    if kind == "qwen2" and not text.flag("use_sliding_window"):
        return None
    if kind in ("mistral", "phi3", "qwen2") and text.get("sliding_window") is not None:
        return text.whole("sliding_window")
    return None


def _vision(config: Settings) -> VisionShape:
    onevision = config.text("model_type", "llava") == "llava_onevision"
    default = "siglip_vision_model" if onevision else "clip_vision_model"
    kind = config.section("vision_config").text("model_type", default)
    if kind not in TOWERS:
        raise ModelInvalid(
            f"a {kind} vision tower cannot be converted yet", f"what can be: {KNOWN_TOWERS}"
        )
    tower, defaults = TOWERS[kind]
    vision = config.section("vision_config", defaults)
    if not config.get("vision_config"):
        vision = Settings("vision_config", {}, {**CLIP_DEFAULTS, **CLIP_L_336})
    activation = vision.text("hidden_act")
    if activation not in ACTIVATIONS or vision.whole("num_channels") != 3:
        raise ModelInvalid(
            f"llama.cpp's CLIP graph has no {activation} activation"
            if activation not in ACTIVATIONS
            else f"a tower of {vision.whole('num_channels')} channels cannot be converted"
        )
    _check_strategy(config.text("vision_feature_select_strategy",
                                "full" if onevision else "default"), tower)  # fmt: skip
    layers = vision.whole("num_hidden_layers")
    image, patch = vision.whole("image_size"), vision.whole("patch_size")
    if image < patch:
        raise ModelInvalid(f"image_size {image} is smaller than patch_size {patch}")
    choice = config.get("vision_feature_layer", -1 if onevision else -2)
    return VisionShape(
        kind=tower,
        hidden=vision.whole("hidden_size"),
        ffn=vision.whole("intermediate_size"),
        layers=layers,
        heads=vision.whole("num_attention_heads"),
        image=image,
        patch=patch,
        eps=vision.number("layer_norm_eps"),
        hidden_act=activation,
        feature_layer=_feature_layer(choice, layers),
    )


def _check_strategy(strategy: str, tower: TowerKind) -> None:
    """`default` drops the first position, which is the class with CLIP and a patch with SigLIP."""
    if strategy != ("default" if tower == "clip" else "full"):
        raise ModelInvalid(
            f"vision_feature_select_strategy {strategy!r} cannot be converted with a {tower} tower",
            "llama.cpp's LLaVA graph drops the class position, and nothing else",
        )


def _feature_layer(choice: Any, layers: int) -> int:
    """vision_feature_layer as a non-negative index into the tower's layers + 1 hidden states."""
    if isinstance(choice, list) and len(choice) == 1:
        choice = choice[0]
    if isinstance(choice, list):
        raise ModelInvalid(
            f"features of several layers ({choice}) cannot be converted yet",
            "what can be converted: one vision_feature_layer",
        )
    if not isinstance(choice, int) or isinstance(choice, bool):
        raise ModelInvalid(f"vision_feature_layer {choice!r} in config.json is not a whole number")
    index = choice if choice >= 0 else layers + 1 + choice
    if not 0 <= index <= layers:
        raise ModelInvalid(
            f"vision_feature_layer {choice} is outside of a tower of {layers} layers",
            "check config.json",
        )
    return index


def _projector(config: Settings) -> ProjectorShape:
    act = config.text("projector_hidden_act", "gelu")
    if act != "linear" and ACTIVATIONS.get(act) != "gelu":
        raise ModelInvalid(
            f"a projector with the activation {act} cannot be converted",
            "llama.cpp's LLaVA projector has gelu only",
        )
    return ProjectorShape(
        linear=act == "linear", bias=config.flag("multimodal_projector_bias", True)
    )


def _tiles(config: Settings, vision: VisionShape) -> Tiles | None:
    """The grid of a model that cuts pictures into tiles."""
    kind = config.text("model_type", "llava")
    if kind not in ("llava_next", "llava_onevision"):
        return None
    usual = PINPOINTS_336 if kind == "llava_next" else PINPOINTS_384
    pairs = config.get("image_grid_pinpoints") or usual
    try:
        pinpoints = tuple((int(height), int(width)) for height, width in pairs)
    except (TypeError, ValueError) as error:
        raise ModelInvalid("image_grid_pinpoints in config.json is not a list of pairs") from error
    if any(side < 1 or side % vision.image for pair in pinpoints for side in pair):
        raise ModelInvalid(
            f"image_grid_pinpoints are not multiples of the tower's {vision.image} px",
            "check config.json",
        )
    ratio = config.text("vision_aspect_ratio", "anyres_max_9" if "one" in kind else "anyres")
    return Tiles(pinpoints, ratio)
