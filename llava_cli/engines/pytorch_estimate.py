"""What a question would take in PyTorch, told from the model's settings and headers alone."""

from __future__ import annotations

from typing import Any

from llava_cli.conversation import Conversation
from llava_cli.engines.base import Sampling
from llava_cli.engines.estimates import Estimate
from llava_cli.engines.formats import choose_format
from llava_cli.engines.hf_vocabulary import HfVocabulary
from llava_cli.engines.pytorch_prompts import Prompts, read_config
from llava_cli.engines.pytorch_setup import Setup, check_type, choose_device, free_bytes, needs
from llava_cli.engines.tokenise import flat, tokenise
from llava_cli.models.facts import kv_bytes
from llava_cli.models.files import ModelFiles
from llava_cli.prompts import render, runs


def estimate(
    files: ModelFiles,
    setup: Setup,
    conversation: Conversation,
    sampling: Sampling,
    *,
    prompt_format: str | None,
    context: int | None,
) -> Estimate:
    """Reckon; `files` are in llava-hf's form (`pytorch_source.opened`), no weights are read."""
    check_type(files)
    config = read_config(files)
    text = config.get_text_config()
    device = choose_device(setup.device)
    available = free_bytes(device)
    ways = needs(files, setup, device)
    dtype, weights = next(
        ((d, need) for d, need in ways if available is None or need <= available), ways[-1]
    )
    if config.model_type == "llava":
        counts = _llava_tokens(files, config, conversation, prompt_format)
    else:
        counts = _tokens(files, conversation)
    trained = int(getattr(text, "max_position_embeddings", None) or 4096)
    limit = min(trained, context or trained)
    positions = min(sum(counts) + sampling.max_tokens, limit)
    heads = int(text.num_attention_heads)
    hidden = int(text.hidden_size)
    kv = kv_bytes(
        int(text.num_hidden_layers),
        int(getattr(text, "num_key_value_heads", None) or heads),
        int(getattr(text, "head_dim", None) or hidden // heads),
        positions,
        dtype.itemsize,
    )
    wide = int(getattr(text, "intermediate_size", None) or 4 * hidden)
    return Estimate(
        prompt_tokens=counts[0],
        image_tokens=counts[1],
        answer_tokens=sampling.max_tokens,
        limit=limit,
        weights=int(weights),
        mmproj=0,
        kv=kv,
        compute=sum(counts) * (3 * wide + 4 * hidden) * dtype.itemsize,
        available=available,
    )


def _llava_tokens(
    files: ModelFiles, config: Any, conversation: Conversation, prompt_format: str | None
) -> tuple[int, int]:
    """Text and picture tokens of a LLaVA-1.5, whose pictures all take as many."""
    form = choose_format(files, prompt_format)
    vocabulary = HfVocabulary.from_folder(files.path)
    ids = flat(tokenise(runs(render(conversation, form)), vocabulary))
    vision = config.vision_config
    each = (int(vision.image_size) // int(vision.patch_size)) ** 2
    has_class = vision.model_type == "clip_vision_model"
    each += int(has_class and config.vision_feature_select_strategy == "full")
    pictures = sum(token == "image" for token in ids)
    return len(ids) - pictures, pictures * each


def _tokens(files: ModelFiles, conversation: Conversation) -> tuple[int, int]:
    """Text and picture tokens as the model's own processor counts them."""
    prompts = Prompts(files)
    ids = prompts.inputs([conversation])["input_ids"][0]
    pictures = int((ids == prompts.image_id).sum()) if prompts.image_id is not None else 0
    return len(ids) - pictures, pictures
