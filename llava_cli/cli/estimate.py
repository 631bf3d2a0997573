"""`ask --estimate`: tokens and memory, told without loading the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from llava_cli.cli.models import ModelChoice, find
from llava_cli.cli.options import common

if TYPE_CHECKING:
    from llava_cli.conversation import Conversation
    from llava_cli.engines.base import Sampling


def show(choice: ModelChoice, conversations: Sequence[Conversation], sampling: Sampling) -> None:
    """Print what the largest of the questions would take."""
    from llava_cli import engines
    from llava_cli.terminal.documents import write_document
    from llava_cli.terminal.streams import write

    files = find(choice, common())
    found = max(
        (
            engines.estimate(
                files,
                conversation,
                sampling,
                device=choice.device,
                threads=choice.threads,
                prompt_format=choice.prompt_format,
                context=choice.context,
                kv_type=choice.kv_type,
                flash_attention=choice.flash_attention,
                tuning=choice.tuning,
                quantize=choice.quantize,
            )
            for conversation in conversations
        ),
        key=lambda each: each.prompt_tokens + each.image_tokens,
    )
    memory = {
        "weights": found.weights,
        "mmproj": found.mmproj,
        "kv": found.kv,
        "compute": found.compute,
        "total": found.total,
        "available": found.available,
    }
    if common().json:
        write_document(
            {
                "model": files.reference,
                "prompt_tokens": found.prompt_tokens,
                "image_tokens": found.image_tokens,
                "max_tokens": found.answer_tokens,
                "context": found.positions,
                "context_limit": found.limit,
                "fits_context": found.fits_context,
                "memory": memory,
            }
        )
        return
    room = "" if found.fits_context else ": more than the model can read"
    write(
        f"{found.prompt_tokens} text + {found.image_tokens} image tokens, answer at most"
        f" {found.answer_tokens}; the model reads {found.limit}{room}\n"
    )
    parts = ", ".join(f"{name} {_mb(memory[name])}" for name in list(memory)[:4] if memory[name])
    write(f"memory about {_mb(found.total)} ({parts}); {_mb(found.available)} are free\n")


def _mb(size: int | None) -> str:
    return "?" if size is None else f"{size / 1e6:,.0f} MB"
