"""What a source folder is, told by its content, and the numbers of its model.

`open_checkpoint` gives one frozen `Checkpoint`: shapes, where every tensor lies, how pictures are
prepared. A kind that cannot be converted is refused here with the reason.

Not here: tensor names (`names.py`), tokenizers (`vocabulary.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llava_cli.errors import ModelInvalid, ModelNotFound
from llava_cli.models.folders import chat_template, read_json
from llava_cli.models.templates import format_of
from llava_cli.pixels import PixelConfig
from llava_cli.prompts import FORMATS
from llava_convert.settings import Settings
from llava_convert.shards import SourceTensor, open_tensors

Activation = Literal["quick_gelu", "gelu", "silu"]
"""What llama.cpp's CLIP graph has; its gelu is the tanh form."""

SUPPORTED = "LlavaForConditionalGeneration with a CLIP tower and a Llama or Mistral language model"
REFUSED = {
    "llava_next": "LLaVA-1.6 (LlavaNext) checkpoints cannot be converted yet",
    "llava_onevision": "LLaVA-OneVision checkpoints cannot be converted yet",
    "llava_llama": "checkpoints of the original LLaVA code cannot be converted yet",
    "llava_mistral": "checkpoints of the original LLaVA code cannot be converted yet",
    "llava_mpt": "checkpoints of the original LLaVA code cannot be converted yet",
    "llava_qwen": "checkpoints of the original LLaVA code cannot be converted yet",
}
"""model_type -> why not."""

# What the classes of transformers assume where config.json is silent.
LLAMA_DEFAULTS: dict[str, Any] = {
    "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6,
    "hidden_act": "silu", "attention_bias": False, "mlp_bias": False,
    "tie_word_embeddings": False,
}  # fmt: skip
MISTRAL_DEFAULTS: dict[str, Any] = {
    **LLAMA_DEFAULTS, "intermediate_size": 14336, "num_key_value_heads": 8,
    "max_position_embeddings": 131072, "sliding_window": 4096,
}  # fmt: skip
TEXT_DEFAULTS = {"llama": LLAMA_DEFAULTS, "mistral": MISTRAL_DEFAULTS}
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

ACTIVATIONS: dict[str, Activation] = {
    "quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_new": "gelu", "gelu_fast": "gelu",
    "gelu_python": "gelu", "gelu_pytorch_tanh": "gelu", "silu": "silu", "swish": "silu",
}  # fmt: skip
"""By transformers' names."""


@dataclass(frozen=True)
class TextShape:
    """The language model's numbers."""

    hidden: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int
    rms_eps: float
    rope_theta: float
    rope: Mapping[str, Any]
    """rope_parameters, of which rope_type decides the scaling."""
    tied: bool
    """lm_head is the embedding."""
    attention_bias: bool
    mlp_bias: bool


@dataclass(frozen=True)
class VisionShape:
    """The vision tower's numbers."""

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
        """Patches and the class position."""
        return (self.image // self.patch) ** 2 + 1


@dataclass(frozen=True)
class ProjectorShape:
    """What stands between the two."""

    linear: bool
    """No activation between its two matrices (LLaVA v1), instead of GELU."""
    bias: bool


@dataclass(frozen=True)
class Checkpoint:
    """A source that can be converted."""

    folder: Path
    name: str
    config: Mapping[str, Any]
    text: TextShape
    vision: VisionShape
    projector: ProjectorShape
    pixels: PixelConfig
    prompt_format: str | None
    tensors: Mapping[str, SourceTensor]


def open_checkpoint(source: Path) -> Checkpoint:
    """Look at a folder: which kind it is, and the numbers of its model."""
    folder = _model_folder(source)
    config = read_json(folder / "config.json")
    _refuse_other_kinds(config)
    settings = Settings("config.json", config)
    vision = _vision(settings)
    pixels = _pixels(folder)
    if pixels.size != vision.image:
        raise ModelInvalid(
            f"pictures are prepared at {pixels.size} px, but the tower reads {vision.image} px",
            "check preprocessor_config.json and vision_config in config.json",
        )
    return Checkpoint(
        folder=folder,
        name=source.resolve().name.lstrip(".") or "model",
        config=config,
        text=_text(settings),
        vision=vision,
        projector=_projector(settings),
        pixels=pixels,
        prompt_format=_prompt_format(settings, folder),
        tensors=open_tensors(folder),
    )


def _model_folder(source: Path) -> Path:
    """The llava-hf folder: the source itself, or the `model` folder of a training run."""
    if not source.exists():
        raise ModelNotFound(
            f"{source} does not exist", "give the folder of a model; `hf download` fetches one"
        )
    if source.is_file():
        what = "already a GGUF file" if source.suffix == ".gguf" else "a file, not a model's folder"
        raise ModelInvalid(f"{source} is {what}", "give the folder that holds config.json")
    for folder in (source, source / "model"):
        if (folder / "config.json").is_file():
            return folder
    if (source / "adapter_config.json").is_file():
        raise ModelInvalid(
            f"{source} is a LoRA adapter, which cannot be converted yet",
            "merge it into its base model first (peft: merge_and_unload)",
        )
    raise ModelInvalid(
        f"{source} is no model: it holds neither config.json nor model/config.json",
        "give a llava-hf folder or a training run",
    )


def _refuse_other_kinds(config: Mapping[str, Any]) -> None:
    kind = str(config.get("model_type", ""))
    architectures = [str(a) for a in config.get("architectures") or []]
    original = [a for a in architectures if a.startswith("Llava") and a.endswith("ForCausalLM")]
    if kind in REFUSED or original:
        reason = REFUSED.get(kind) or REFUSED["llava_llama"]
        raise ModelInvalid(reason, f"what can be converted: {SUPPORTED}")
    if kind != "llava" or architectures not in ([], ["LlavaForConditionalGeneration"]):
        name = ", ".join(architectures) or kind or "unknown"
        raise ModelInvalid(
            f"a model of the architecture {name} cannot be converted",
            f"what can be converted: {SUPPORTED}",
        )
    if config.get("quantization_config"):
        raise ModelInvalid(
            "the checkpoint is quantised already, which cannot be converted",
            "convert the model that it was made from",
        )


def _text(config: Settings) -> TextShape:
    kind = config.section("text_config").text("model_type", "llama")
    if kind not in TEXT_DEFAULTS:
        raise ModelInvalid(
            f"a {kind} language model cannot be converted yet",
            f"what can be converted: {SUPPORTED}",
        )
    text = config.section("text_config", TEXT_DEFAULTS[kind])
    if text.text("hidden_act") not in ("silu", "swish"):
        raise ModelInvalid(f"llama.cpp has no {text.text('hidden_act')} in its Llama graph")
    heads, hidden = text.whole("num_attention_heads"), text.whole("hidden_size")
    context = text.whole("max_position_embeddings")
    if kind == "mistral" and text.get("sliding_window") is not None:
        # llama.cpp's graph attends to everything: equal only while nothing has slid out.
        context = min(context, text.whole("sliding_window"))
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    if not isinstance(rope, Mapping):
        raise ModelInvalid("rope_parameters in config.json is not an object")
    theta = rope.get("rope_theta") or text.get("rope_theta") or 10000.0
    return TextShape(
        hidden=hidden,
        ffn=text.whole("intermediate_size"),
        layers=text.whole("num_hidden_layers"),
        heads=heads,
        kv_heads=text.whole("num_key_value_heads", heads),
        head_dim=text.whole("head_dim", max(hidden // heads, 1)),
        context=context,
        rms_eps=text.number("rms_norm_eps"),
        rope_theta=float(theta),
        rope=rope,
        tied=text.flag("tie_word_embeddings") or config.flag("tie_word_embeddings", False),
        attention_bias=text.flag("attention_bias"),
        mlp_bias=text.flag("mlp_bias"),
    )


def _vision(config: Settings) -> VisionShape:
    vision = config.section("vision_config", CLIP_DEFAULTS)
    if not config.get("vision_config"):
        vision = Settings("vision_config", {}, {**CLIP_DEFAULTS, **CLIP_L_336})
    kind = vision.text("model_type", "clip_vision_model")
    if kind != "clip_vision_model":
        raise ModelInvalid(
            f"a {kind} vision tower cannot be converted yet", f"what can be converted: {SUPPORTED}"
        )
    activation = vision.text("hidden_act")
    if activation not in ACTIVATIONS or vision.whole("num_channels") != 3:
        raise ModelInvalid(
            f"llama.cpp's CLIP graph has no {activation} activation"
            if activation not in ACTIVATIONS
            else f"a tower of {vision.whole('num_channels')} channels cannot be converted"
        )
    strategy = config.text("vision_feature_select_strategy", "default")
    if strategy != "default":
        raise ModelInvalid(
            f"vision_feature_select_strategy {strategy!r} cannot be converted",
            "llama.cpp's LLaVA graph always drops the class position (`default`)",
        )
    layers = vision.whole("num_hidden_layers")
    image, patch = vision.whole("image_size"), vision.whole("patch_size")
    if image % patch:
        raise ModelInvalid(f"image_size {image} is not a multiple of patch_size {patch}")
    return VisionShape(
        hidden=vision.whole("hidden_size"),
        ffn=vision.whole("intermediate_size"),
        layers=layers,
        heads=vision.whole("num_attention_heads"),
        image=image,
        patch=patch,
        eps=vision.number("layer_norm_eps"),
        hidden_act=activation,
        feature_layer=_feature_layer(config.get("vision_feature_layer", -2), layers),
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


def _pixels(folder: Path) -> PixelConfig:
    """Preparation of pictures, looked up in transformers' order."""
    for name in ("processor_config.json", "preprocessor_config.json"):
        if not (folder / name).is_file():
            continue
        settings = read_json(folder / name)
        if name == "preprocessor_config.json" or settings.get("image_processor"):
            return PixelConfig.from_preprocessor(settings)
    raise ModelInvalid(
        f"{folder} holds no preprocessor_config.json, so the size and colours that the tower "
        "expects are unknown",
        "fetch it from where the model came from",
    )


def _prompt_format(config: Settings, folder: Path) -> str | None:
    """As config.json names it, else the one that the chat template writes."""
    name = config.get("llava_prompt_format")
    if name is None:
        template = chat_template(folder)
        return format_of(template) if template else None
    if name not in FORMATS:
        raise ModelInvalid(
            f"llava_prompt_format {name!r} in config.json is not known",
            f"known: {', '.join(sorted(FORMATS))}",
        )
    return str(name)
