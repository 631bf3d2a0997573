"""The demo's tokenizer and language model, made from text alone.

LLaVA takes a pretrained language model as given. This one learns the language of the synthetic
world without a picture: scenes written out as text, and questions about them, in the prompt format
of the finished model. So it can count, look things up and find the odd one out in words before
stage 1 shows it a picture.

Legend: B texts, S tokens.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from llava_cli.conversation import Conversation
from llava_cli.prompts import FORMATS, prompt_text, render
from llava_train import attention
from llava_train.labels import IGNORE_INDEX, Encoder
from llava_train.scene_questions import conversation, detail, reasoning
from llava_train.scene_text import captions
from llava_train.scene_wording import as_typed
from llava_train.scenes import Scene, sample_layout

SPECIALS = ("<unk>", "<s>", "</s>", "<pad>", "<image>")
PROMPT_FORMAT = FORMATS["vicuna_v1"]


@dataclass(frozen=True)
class LanguageSettings:
    """Every number of the language model's pretraining."""

    vocabulary: int = 1024
    tokenizer_scenes: int = 3_000
    seed: int = 12
    steps: int = 500
    batch_size: int = 24
    micro_batch: int = 8
    lr: float = 2e-3
    warmup_steps: int = 40
    hidden: int = 192
    layers: int = 4
    heads: int = 3
    """Few and wide: looking an object up by colour and shape needs room in one head."""
    rope_theta: float = 1e5
    ffn: int = 512


def written_out(scene: Scene, rng: np.random.Generator) -> str:
    """The scene as text: its objects in some order, in one of several wordings."""
    rows = [
        (
            f"{o.place}: {o.size} {o.color} {o.shape}",
            f"{o.size} {o.color} {o.shape} in the {o.place}",
        )
        for o in scene.objects
    ]
    wording = int(rng.integers(2))
    parts = [row[wording] for row in rows]
    if rng.random() < 0.5:
        rng.shuffle(parts)
    return ", ".join([*parts, f"{scene.background} background"]) + "."


def dialogue(scene: Scene, rng: np.random.Generator) -> Conversation:
    """The scene in words, then questions about it with their answers."""
    turns = conversation(scene, rng)
    turns += reasoning(scene, rng)[:1]
    if rng.random() < 0.4:
        turns.append(detail(scene, rng))
    order = rng.permutation(len(turns))
    result = Conversation()
    for i, turn in enumerate(turns[j] for j in order):
        question = as_typed(turn.question, rng)
        text = f"{written_out(scene, rng)}\n{question}" if i == 0 else question
        result = result.add("user", text).add("assistant", turn.answer)
    return result


def make_tokenizer(out: Path, settings: LanguageSettings) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE (GPT-2's pre-tokenizer, which llama.cpp has too) and save it."""

    def texts() -> Iterator[str]:
        for index in range(settings.tokenizer_scenes):
            scene, rng = scene_of(settings.seed, index)
            yield prompt_text(render(dialogue(scene, rng), PROMPT_FORMAT, complete=True))
            yield from captions(scene)

    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocabulary,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    bos = ("<s>", tokenizer.token_to_id("<s>"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[bos]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(out)
    return fast


def scene_of(seed: int, index: int) -> tuple[Scene, np.random.Generator]:
    """A scene that is never drawn, and the random numbers of its text."""
    rng = np.random.default_rng([seed, index])
    return sample_layout(rng), rng


def batches(
    encoder: Encoder, settings: LanguageSettings, pad: int, first: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Ids and labels (B, S) of step `first` and on; scenes are never seen twice."""
    for step in range(first, settings.steps):
        start = step * settings.batch_size
        rows = []
        for index in range(start, start + settings.batch_size):
            scene, rng = scene_of(settings.seed + 1, index)
            rows.append(
                (f"scene {index}", render(dialogue(scene, rng), PROMPT_FORMAT, complete=True))
            )
        encoded = encoder.encode_many(rows)
        longest = max(len(e.ids) for e in encoded)
        ids = torch.full((len(rows), longest), pad)
        labels = torch.full((len(rows), longest), IGNORE_INDEX)
        for row, e in enumerate(encoded):
            ids[row, : len(e.ids)] = torch.tensor(e.ids)
            labels[row, : len(e.ids)] = torch.tensor(e.labels)
        yield ids, labels


def answer_loss(model: LlamaForCausalLM, ids: Tensor, labels: Tensor) -> Tensor:
    """Sum of the cross-entropy over the answer tokens of (B, S) ids."""
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        keep = labels[:, 1:] != IGNORE_INDEX
        logits = model.lm_head(hidden[keep])
    return nn.functional.cross_entropy(logits.float(), labels[:, 1:][keep], reduction="sum")


def train_language_model(out: Path, settings: LanguageSettings) -> None:
    """Make the tokenizer, train the language model, save both as one causal LM folder."""
    final = out / "model"
    tokenizer = make_tokenizer(final, settings)
    torch.manual_seed(settings.seed)
    config = LlamaConfig(
        vocab_size=settings.vocabulary,
        hidden_size=settings.hidden,
        intermediate_size=settings.ffn,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": settings.rope_theta},
        rms_norm_eps=1e-5,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    attention.use(model.model)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.lr, weight_decay=0.01, betas=(0.9, 0.98)
    )
    encoder = Encoder(tokenizer)
    with (out / "log.jsonl").open("w") as log:
        for step, (ids, labels) in enumerate(batches(encoder, settings, tokenizer.pad_token_id, 0)):
            began = time.perf_counter()
            warm = min(1.0, (step + 1) / settings.warmup_steps)
            rate = (
                settings.lr
                * warm
                * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / settings.steps)))
            )
            for group in optimizer.param_groups:
                group["lr"] = rate
            answers = int((labels[:, 1:] != IGNORE_INDEX).sum())
            total = 0.0
            for part in torch.arange(len(ids)).split(settings.micro_batch):
                loss = answer_loss(model, ids[part], labels[part]) / answers
                loss.backward()
                total += loss.item()
            norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            row = {
                "step": step,
                "loss": round(total, 4),
                "tokens": ids.numel(),
                "lr": rate,
                "grad_norm": round(float(norm), 3),
            }
            log.write(json.dumps({**row, "seconds": round(time.perf_counter() - began, 3)}) + "\n")
            log.flush()
    model.config._attn_implementation = "sdpa"
    model.save_pretrained(final)
