"""Connectors between vision tower and language model, all of them stock `llava` modules.

transformers knows one projector, linear_2(act(linear_1(x))). `mlp2x_gelu` is that; LLaVA v1's
single `linear` layer is linear_1 with act = identity and a linear_2 that is frozen at the identity
matrix, which gives bit-equal outputs and loads everywhere.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

_ACTIVATIONS = {"mlp2x_gelu": "gelu", "linear": "linear"}


def activation(kind: str) -> str:
    """`projector_hidden_act` of a connector."""
    return _ACTIVATIONS[kind]


def build(kind: str, config: Any) -> nn.Module:
    """A new connector for a LlavaConfig, with torch's own initial values (as LLaVA has them)."""
    from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

    connector: Any = LlavaMultiModalProjector(config).to(torch.float32)
    for layer in (connector.linear_1, connector.linear_2):
        layer.reset_parameters()
    if kind == "linear":
        with torch.no_grad():
            nn.init.eye_(connector.linear_2.weight)
            if connector.linear_2.bias is not None:
                connector.linear_2.bias.zero_()
    built: nn.Module = connector
    return built


def kind_of(connector: nn.Module, act: str) -> str | None:
    """Which kind a loaded connector is, by its own numbers; None: neither."""
    if act == "gelu":
        return "mlp2x_gelu"
    if act == "linear" and _is_identity(connector.linear_2):
        return "linear"
    return None


def trainable(connector: nn.Module, kind: str) -> list[nn.Parameter]:
    """The parameters that training may change."""
    layer = connector.linear_1 if kind == "linear" else connector
    return list(layer.parameters())  # type: ignore[union-attr]


def _is_identity(layer: Any) -> bool:
    weight, bias = layer.weight, layer.bias
    square = weight.shape[0] == weight.shape[1]
    same = square and bool(torch.equal(weight, torch.eye(len(weight), dtype=weight.dtype)))
    return same and (bias is None or not bool(bias.any()))
