"""What a question would take, told before the model is loaded: tokens, context, memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llava_cli.conversation import Conversation
from llava_cli.engines.base import Sampling
from llava_cli.engines.estimates import Estimate
from llava_cli.engines.formats import choose_format
from llava_cli.engines.gguf.interrupt import Interrupt
from llava_cli.engines.gguf.language import LanguageModel, LoadSettings
from llava_cli.engines.gguf.memory import available_bytes, bytes_a_position
from llava_cli.engines.gguf.pictures import Pictures
from llava_cli.engines.gguf.prompt import Reader
from llava_cli.engines.gguf.setup import Setup
from llava_cli.engines.gguf.vision import ImageEncoder
from llava_cli.errors import LlavaError, ModelInvalid
from llava_cli.models.files import ModelFiles
from llava_cli.models.gguf_header import read_header


def estimate(
    files: ModelFiles,
    setup: Setup,
    conversation: Conversation,
    sampling: Sampling,
    *,
    prompt_format: str | None,
    context: int | None,
) -> Estimate:
    """Reckon with the model's metadata and its tokenizer; no weights are read."""
    if files.mmproj is None:
        raise ModelInvalid(f"{files.reference} has no mmproj", "give it with --mmproj FILE")
    form = choose_format(files, prompt_format)
    text = LanguageModel(files.path, LoadSettings(), Interrupt(), vocabulary_only=True)
    try:
        pictures = Pictures(files.mmproj, _no_encoder, None, {})
        prompt = Reader(text, form, pictures, files.reference, 0.0).prompt(conversation)
        kind = files.config.get("general.architecture", "llama")
        trained = int(files.config.get(f"{kind}.context_length", 4096))
        limit = min(trained, context or trained)
    finally:
        text.close()
    image_tokens = sum(picture.count for picture in prompt.pictures)
    positions = min(len(prompt.cells) + sampling.max_tokens, limit)
    vision = read_header(files.mmproj).metadata
    return Estimate(
        prompt_tokens=len(prompt.cells) - image_tokens,
        image_tokens=image_tokens,
        answer_tokens=sampling.max_tokens,
        limit=limit,
        weights=files.path.stat().st_size,
        mmproj=files.mmproj.stat().st_size if prompt.images else 0,
        kv=positions * bytes_a_position(files.config, setup.context.kv_type),
        compute=_compute_bytes(files.config, vision, setup.context.ubatch),
        available=available_bytes(),
    )


def _compute_bytes(config: Mapping[str, Any], vision: Mapping[str, Any], ubatch: int) -> int:
    """float32 rows of one layer: three as wide as its feed-forward part, four as the model."""

    def rows(prefix: str, count: int, of: Mapping[str, Any]) -> int:
        wide, width = of.get(f"{prefix}.feed_forward_length"), of.get(f"{prefix}.embedding_length")
        if not isinstance(wide, int) or not isinstance(width, int):
            return 0
        return 4 * count * (3 * wide + 4 * width)

    side = int(vision.get("clip.vision.image_size", 0)) // int(
        vision.get("clip.vision.patch_size", 1)
    )
    text = rows(str(config.get("general.architecture", "llama")), ubatch, config)
    return text + rows("clip.vision", side * side, vision)


def _no_encoder() -> ImageEncoder:
    raise LlavaError("an estimate encodes no picture")
