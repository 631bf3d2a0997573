"""Floating-point operations of training, and the share of a device's peak that they take.

Counted are matrix products, causal attention halved: forward, and backward as far as the freeze map
makes it go. What is computed again to save memory is not counted, so that the share (MFU) is
comparable between runs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from llava_train.assemble import Parts
from llava_train.dataset import EncodedData
from llava_train.recipe import Recipe

PEAKS = {
    "A100": 312e12, "H100": 989e12, "H200": 989e12, "A800": 312e12, "H800": 989e12,
    "RTX 4090": 165e12, "L40S": 362e12, "A6000": 155e12, "V100": 125e12, "A10G": 70e12,
}  # fmt: skip
"""Dense bfloat16 FLOP/s (V100: float16) of the makers' data sheets, by a part of the name."""


@dataclass(frozen=True)
class Flops:
    """Matrix-product FLOPs of one sample's forward pass, by part."""

    tower: float
    connector: float
    language_model: float
    """Weights and attention, without the head."""
    attention: float
    """Of the above: without weights, so that its backward pass is always twice."""
    head: float

    def step(self, recipe: Recipe, *, again: bool = False) -> float:
        """Forward and backward by the freeze map; `again`: also what is computed again."""
        tower = self.tower * (3 if recipe.train_vision_tower else 1)
        through = recipe.train_vision_tower or recipe.train_connector
        connector = self.connector * (1 + recipe.train_connector + recipe.train_vision_tower)
        weights = self.language_model - self.attention + self.head
        trained = recipe.train_language_model and recipe.adapter == "none"
        through = through or recipe.train_language_model
        language = weights * (1 + trained + (trained or through))
        attention = self.attention * (3 if trained or through else 1)
        more = self.language_model if again and recipe.gradient_checkpointing else 0.0
        return tower + connector + language + attention + more


def sample_flops(parts: Parts, encoded: EncodedData, index: int) -> Flops:
    """Of the forward pass of one sample."""
    vision, text = parts.model.config.vision_config, parts.model.config.text_config
    part = slice(encoded.starts[index], encoded.starts[index + 1])
    positions, answers = int(encoded.lengths[index]), int(encoded.loss[part].sum())
    pictured = encoded.squares(index)
    patches = (vision.image_size // vision.patch_size) ** 2 + 1
    depth = parts.model.config.vision_feature_layer
    layers = depth if depth >= 0 else vision.num_hidden_layers + 1 + depth
    v, h = vision.hidden_size, text.hidden_size
    per_patch = 2 * (4 * v * v + 2 * v * vision.intermediate_size)
    tower = layers * (per_patch * patches + 4 * patches**2 * v)
    connector = 2 * parts.image_tokens * (v * h + h * h)
    shared = text.num_key_value_heads / text.num_attention_heads
    weights = (2 + 2 * shared) * h * h + 3 * h * text.intermediate_size
    attention = 2 * positions**2 * h * text.num_hidden_layers
    return Flops(
        tower=tower * pictured,
        connector=connector * pictured,
        language_model=2 * text.num_hidden_layers * weights * positions + attention,
        attention=attention,
        head=2 * h * text.vocab_size * answers,
    )


def of_samples(parts: Parts, encoded: EncodedData, recipe: Recipe, indices: Iterable[int]) -> float:
    """Of these samples' forward and backward passes."""
    return float(sum(sample_flops(parts, encoded, i).step(recipe) for i in indices))


def peak(device: str) -> float | None:
    """bfloat16 FLOP/s of a GPU by its name; None where it is not known (and for every CPU)."""
    return next((value for name, value in PEAKS.items() if name in device), None)
