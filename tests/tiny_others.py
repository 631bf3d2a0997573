"""Tiny random vision-language models that are no LLaVA-1.5: tiles, M-RoPE, pixel shuffle.

As they come from the Hub: config.json, safetensors, processor and chat template; random weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.tiny import TEXTS

TEMPLATE = (
    "{% for message in messages %}<s>{{ message['role'] | upper }}: "
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}IMAGE"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% if not loop.last or add_generation_prompt %} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
"""IMAGE is what a family writes for a picture."""


def tokenizer(specials: tuple[str, ...]) -> Any:
    """A byte-level BPE with a family's own special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>", "<pad>", *specials],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(TEXTS * 2, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        additional_special_tokens=list(specials),
    )  # fmt: skip


def _text(words: Any, **changes: Any) -> dict[str, Any]:
    return {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": len(words) + 8,
        "max_position_embeddings": 2048, "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id, **changes,
    }  # fmt: skip


def _saved(model: Any, processor: Any, folder: Path) -> Path:
    import torch

    torch.manual_seed(1)
    model = model.float().eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(0.0, 1.2 / weight[0].numel() ** 0.5)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def llava_next(folder: Path) -> Path:
    """LLaVA-1.6: pictures in tiles."""
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        LlavaNextProcessor,
    )
    from transformers.models.llava_next.image_processing_pil_llava_next import (
        LlavaNextImageProcessorPil,
    )

    words = tokenizer(("<image>",))
    image_id = words.convert_tokens_to_ids("<image>")
    vision = CLIPVisionConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=2,
        image_size=28, patch_size=14,
    )  # fmt: skip
    pinpoints = [[28, 56], [56, 28], [56, 56]]
    config = LlavaNextConfig(
        vision_config=vision, text_config=LlamaConfig(**_text(words)), image_token_index=image_id,
        image_grid_pinpoints=pinpoints,
    )  # fmt: skip
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28},
        image_grid_pinpoints=pinpoints,
    )  # fmt: skip
    processor = LlavaNextProcessor(
        images, words, patch_size=14, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=TEMPLATE.replace("IMAGE", "<image>\n"),
    )  # fmt: skip
    return _saved(LlavaNextForConditionalGeneration(config), processor, folder)


def smolvlm(folder: Path) -> Path:
    """SmolVLM: SigLIP, pixel shuffle."""
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration, Idefics3Processor
    from transformers.models.idefics3.image_processing_pil_idefics3 import (
        Idefics3ImageProcessorPil,
    )

    specials = ("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>")
    words = tokenizer(specials)
    image_id = words.convert_tokens_to_ids("<image>")
    make: Any = Idefics3Config  # whose generated signature leaves out inherited fields
    config = make(
        vision_config={
            "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
            "num_attention_heads": 2, "image_size": 32, "patch_size": 8,
        },
        text_config={"model_type": "llama", **_text(words)},
        image_token_id=image_id, scale_factor=2, pad_token_id=words.pad_token_id,
    )  # fmt: skip
    images = Idefics3ImageProcessorPil(
        do_image_splitting=False, size={"longest_edge": 32}, max_image_size={"longest_edge": 32}
    )
    processor = Idefics3Processor(
        images, words, image_seq_len=4, chat_template=TEMPLATE.replace("IMAGE", "<image>")
    )
    return _saved(Idefics3ForConditionalGeneration(config), processor, folder)


def qwen2_vl(folder: Path) -> Path:
    """Qwen2-VL: as many tokens as a picture is large, M-RoPE."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLProcessor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    specials = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    words = tokenizer(specials)
    ids = dict(zip(("image", "video", "start", "end"), words.convert_tokens_to_ids(list(specials)),
                   strict=True))  # fmt: skip
    config = Qwen2VLConfig(
        vision_config={"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2,
                       "patch_size": 14},
        text_config=_text(
            words, rope_parameters={"rope_type": "default", "mrope_section": [4, 6, 6],
                                    "rope_theta": 10000.0},
        ),
        image_token_id=ids["image"], video_token_id=ids["video"],
        vision_start_token_id=ids["start"], vision_end_token_id=ids["end"],
    )  # fmt: skip
    images = Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=84 * 84)
    written = "<|vision_start|><|image_pad|><|vision_end|>"
    processor = Qwen2VLProcessor(
        images, words, Qwen2VLVideoProcessor(), chat_template=TEMPLATE.replace("IMAGE", written)
    )
    return _saved(Qwen2VLForConditionalGeneration(config), processor, folder)
