"""Tiny random LLaVA models in llava-hf layout, for tests of engines, converter and training.

CLIP tower: hidden 64, FFN 128, 2 heads, 3 layers, 56 px, patch 14 (16 image tokens). Llama: hidden
64, head_dim 32, FFN 160, 2 layers. Weights are drawn wide enough that logits differ clearly from
each other; FFN differs from hidden and head_dim is 32, because llama.cpp treats other shapes
specially. Nothing is downloaded.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image as PIL

IMAGE_PX, PATCH_PX, TOKENS = 56, 14, 16
SPECIALS = ("<unk>", "<s>", "</s>", "<pad>", "<image>")
TEXTS = (
    "A chat between a curious user and an artificial intelligence assistant. ",
    "The assistant gives helpful, detailed, and polite answers to the user's questions. ",
    "USER: what is unusual here? ASSISTANT: the red circle in the top left is the odd one out.",
    "how many shapes are there? two blue squares, 3 green stars and one small yellow triangle.",
    "Füße auf dem Übergang — „schön“ naïve café 東京の写真を見てください 🙂🙃 l'été, ça va?",
)


def picture(width: int = 80, height: int = 60, seed: int = 0) -> PIL.Image:
    """Smooth coloured noise: structure at the scale of patches, sharp edges included."""
    rng = np.random.default_rng(seed)
    coarse = PIL.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    image = coarse.resize((width, height), PIL.Resampling.BICUBIC)
    pixels = np.array(image)
    pixels[height // 4 : height // 2, width // 3 : width // 2] = rng.integers(0, 256, 3)
    return PIL.fromarray(pixels)


def bpe_tokenizer(extra: tuple[str, ...] = ()) -> Any:
    """A byte-level BPE as the bundled model has: GPT-2's regex, `<s>` added in front."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    specials = [*SPECIALS, *extra]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 4, trainer)
    begin = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", begin)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        additional_special_tokens=["<image>"],
        add_bos_token=True,
    )


def spm_tokenizer(folder: Path) -> Any:
    """A SentencePiece tokenizer of Llama's kind; `tokenizer.model` is left in the folder."""
    import sentencepiece
    from transformers import LlamaTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 8),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=400,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=0.98,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=True,
        split_digits=True,
        minloglevel=2,
        hard_vocab_limit=False,
        num_threads=1,
    )
    (folder / "tokenizer.vocab").unlink()
    tokenizer = LlamaTokenizer.from_pretrained(folder, add_bos_token=True)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"], "pad_token": "<pad>"})
    return tokenizer


def build(
    folder: Path,
    *,
    tokenizer: Literal["bpe", "spm"] = "bpe",
    aspect: Literal["pad", "crop"] = "pad",
    prompt_format: str | None = "vicuna_v1",
    connector: Literal["mlp2x_gelu", "linear"] = "mlp2x_gelu",
    hidden_act: str = "quick_gelu",
    seed: int = 0,
    gain: float = 1.0,
    **changes: Any,
) -> Path:
    """Write a random model; `gain` widens the logits, `changes` go to the model's config."""
    import torch
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig
    from transformers import LlavaForConditionalGeneration as Llava

    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    tokens = bpe_tokenizer() if tokenizer == "bpe" else spm_tokenizer(folder)
    vocabulary = -(-len(tokens) // 32) * 32
    vision = CLIPVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=2,
        image_size=IMAGE_PX, patch_size=PATCH_PX, hidden_act=hidden_act,
    )  # fmt: skip
    text = LlamaConfig(
        hidden_size=64, intermediate_size=160, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=32, vocab_size=vocabulary, max_position_embeddings=512,
        bos_token_id=tokens.bos_token_id, eos_token_id=tokens.eos_token_id,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokens.convert_tokens_to_ids("<image>"),
        projector_hidden_act="linear" if connector == "linear" else "gelu",
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        **changes,
    )
    model = Llava(config).float().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                weight.normal_(0.0, 1.1 / weight[0].numel() ** 0.5)
            elif name.endswith("bias") or "class_embedding" in name:
                weight.normal_(0.0, 0.1)
        model.model.language_model.embed_tokens.weight.normal_(0.0, 1.0)
        model.model.vision_tower.embeddings.position_embedding.weight.normal_(0.0, 0.7)
        model.lm_head.weight.mul_(gain)
    model.save_pretrained(folder)
    tokens.save_pretrained(folder)
    _settings(folder, aspect, prompt_format)
    return folder


def _settings(folder: Path, aspect: str, prompt_format: str | None) -> None:
    """preprocessor_config.json, and our own key in config.json."""
    square = {"height": IMAGE_PX, "width": IMAGE_PX}
    settings: dict[str, Any] = {
        "crop_size": square,
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "rescale_factor": 1 / 255,
    }
    if aspect == "pad":
        settings |= {"image_processor_type": "LlavaImageProcessor", "do_pad": True, "size": square}
    else:
        settings |= {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": IMAGE_PX},
        }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    config = json.loads((folder / "config.json").read_text())
    if prompt_format is not None:
        config["llava_prompt_format"] = prompt_format
    (folder / "config.json").write_text(json.dumps(config))
