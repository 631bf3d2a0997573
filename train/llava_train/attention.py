"""Causal attention for training on a CPU: blocks of queries, stored probabilities, matrix products.

PyTorch's fused CPU kernel recomputes and scatters in its backward pass and reaches a fraction of
what the bfloat16 matrix units give; at the small widths that are trained on a CPU it is more than
half of a step. This one is about twice as fast. On GPUs, and in float32, torch's own is used.
"""

from __future__ import annotations

from typing import Any

import torch

NAME = "llava_blocks"
"""Under this name transformers finds it (`use`)."""
_BLOCK = 128
"""Queries of one matrix product."""
_BYTES = 4 * 2**20
"""Scores worked on at a time: what stays in the cache."""


class _BlockCausal(torch.autograd.Function):
    """softmax(q k^T * scale, causal) v for (N, S, D), N = samples x heads."""

    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
    ) -> torch.Tensor:
        positions = q.shape[1]
        q = q * scale
        future = torch.ones(_BLOCK, _BLOCK, dtype=torch.bool).triu(1)
        out = torch.empty_like(v)
        probabilities = []
        for start in range(0, positions, _BLOCK):
            stop = min(start + _BLOCK, positions)
            size = stop - start
            scores = torch.bmm(q[:, start:stop], k[:, :stop].transpose(1, 2))  # (N, size, stop)
            scores[:, :, start:].masked_fill_(future[:size, :size], float("-inf"))
            weights = torch.softmax(scores, -1)
            out[:, start:stop] = torch.bmm(weights, v[:, :stop])
            probabilities.append(weights)
        ctx.save_for_backward(q, k, v, out, *probabilities)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (grad,) = grads
        q, k, v, out, *probabilities = ctx.saved_tensors
        sums = torch.promote_types(grad.dtype, torch.float32)  # sums lose no bits
        inner = (grad.to(sums) * out).sum(-1, keepdim=True).to(grad.dtype)  # (N, S, 1)
        grad_q = torch.empty_like(q)
        grad_k, grad_v = torch.zeros_like(k, dtype=sums), torch.zeros_like(v, dtype=sums)
        for number, weights in enumerate(probabilities):
            start = number * _BLOCK
            stop = start + weights.shape[1]
            part = grad[:, start:stop]
            grad_v[:, :stop] += torch.bmm(weights.transpose(1, 2), part)
            scores = torch.bmm(part, v[:, :stop].transpose(1, 2))
            scores.sub_(inner[:, start:stop]).mul_(weights)
            grad_q[:, start:stop] = torch.bmm(scores, k[:, :stop])
            grad_k[:, :stop] += torch.bmm(scores.transpose(1, 2), q[:, start:stop])
        return grad_q.mul_(ctx.scale), grad_k.to(k.dtype), grad_v.to(v.dtype), None


def block_causal(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
) -> torch.Tensor:
    """(B, H, S, D) each; keys and values may have fewer heads."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    samples, heads, positions, width = query.shape
    rows = max(1, _BYTES // (heads * _BLOCK * positions * query.element_size()))
    parts = []
    for start in range(0, samples, rows):
        q, k, v = (
            part[start : start + rows].reshape(-1, positions, part.shape[-1])
            for part in (query, key, value)
        )
        mixed: torch.Tensor = _BlockCausal.apply(q, k, v, scale)  # type: ignore[no-untyped-call]
        parts.append(mixed.view(-1, heads, positions, value.shape[-1]))
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _forward(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface; for what the block form lacks, torch's own."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if torch.is_autocast_enabled(query.device.type):  # rotary positions leave float32 behind
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    plain = attention_mask is None and not dropout and query.shape[2] == key.shape[2]
    if not plain or query.dtype != torch.bfloat16 or not getattr(module, "is_causal", False):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return block_causal(query, key, value, scale).transpose(1, 2).contiguous(), None


def use(language_model: Any) -> None:
    """Make a language model of transformers compute its attention here."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, _forward)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    language_model.config._attn_implementation = NAME
