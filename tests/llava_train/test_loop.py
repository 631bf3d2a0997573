"""The loop: losses equal to transformers' own, freeze maps that freeze, exact accumulation."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llava_cli.errors import LlavaError, UsageError
from llava_train import attention, loader, loading, runlog, stepping
from llava_train.assemble import Parts, assemble
from llava_train.recipe import MODULES, Recipe

RECIPE = Recipe(
    batch=6, micro_batch=3, lr=1e-3, precision="float32", workers=1, prefetch=1, save_every=0
)
CPU = torch.device("cpu")
Built = Callable[..., Parts]


@pytest.fixture
def build(language_model: Path, vision_tower: Path) -> Built:
    def make(recipe: Recipe = RECIPE) -> Parts:
        return assemble(recipe, model=language_model, vision_tower=vision_tower)

    return make


def loader_of(recipe: Recipe, parts: Parts, data: Path, pictures: Path) -> loader.Loader:
    encoded = loading.load_data(recipe, parts, [data], pictures)
    return loader.Loader(encoded, parts.pixels, recipe)


def transformers_loss(model: Any, batch: loader.Batch) -> torch.Tensor:
    """The stock forward: its own mask, its own scatter, logits everywhere, its own loss."""
    lengths = (batch.ids != 0).sum(1)  # 0 is no id of a row's own end: see the padding below
    mask = torch.arange(batch.ids.shape[1]) < lengths[:, None]
    out = model(
        input_ids=batch.ids,
        attention_mask=mask.long(),
        pixel_values=batch.pixels,
        labels=batch.labels,
    )
    return torch.as_tensor(out.loss) * batch.answer_tokens


@pytest.mark.parametrize("layer", [-2, -1, 1])
@pytest.mark.parametrize("select", ["default", "full"])
def test_loss_and_gradients_equal_transformers_own(
    build: Built, talks: Path, pictures: Path, layer: int, select: str
) -> None:
    recipe = replace(RECIPE, feature_layer=layer, select=select, train_vision_tower=True)
    parts = build(recipe)
    batch = loader_of(recipe, parts, talks, pictures).batch(np.arange(12))  # mixed with text-only
    batch = replace(batch, ids=batch.ids.masked_fill(batch.ids == parts.pad_id, 0))
    assert batch.pixels is not None and len(batch.pixels) == 9
    ours, theirs = (
        _loss_and_grads(parts, stepping.answer_loss, batch),
        _loss_and_grads(parts, transformers_loss, batch),
    )
    assert ours[0] == pytest.approx(theirs[0], rel=1e-6)
    assert ours[1].keys() == theirs[1].keys()
    for name, grad in ours[1].items():
        torch.testing.assert_close(grad, theirs[1][name], atol=2e-5, rtol=1e-4, msg=name)


def _loss_and_grads(
    parts: Parts, loss: Callable[[Any, loader.Batch], torch.Tensor], batch: loader.Batch
) -> tuple[float, dict[str, torch.Tensor]]:
    parts.model.zero_grad(set_to_none=True)
    value = loss(parts.model, batch)
    value.backward()
    grads = {
        name: parameter.grad.clone()
        for name, parameter in parts.model.named_parameters()
        if parameter.grad is not None and parameter.grad.abs().max() > 0
    }
    return float(value.detach()), grads


def test_text_alone_and_pictures_alone_equal_transformers_own(
    build: Built, talks: Path, pictures: Path
) -> None:
    parts = build()
    loads = loader_of(RECIPE, parts, talks, pictures)
    for rows in ([3, 7, 11], [0, 1, 2]):
        batch = loads.batch(np.array(rows))
        batch = replace(batch, ids=batch.ids.masked_fill(batch.ids == parts.pad_id, 0))
        assert (batch.pixels is None) == (rows[0] == 3)
        ours = float(stepping.answer_loss(parts.model, batch).detach())
        assert ours == pytest.approx(
            float(transformers_loss(parts.model, batch).detach()), rel=1e-6
        )


def test_micro_batches_do_not_change_the_update(build: Built, talks: Path, pictures: Path) -> None:
    """Sum over the global batch's answer tokens, never a mean of means."""
    results = []
    for size in (6, 4, 1):
        recipe = replace(RECIPE, micro_batch=size)
        parts = build(recipe)
        loads = loader_of(recipe, parts, talks, pictures)
        rows = np.arange(6)
        micro = [loads.batch(rows[i : i + size]) for i in range(0, 6, size)]
        optimizer = torch.optim.SGD(
            [{"params": [p for _, p in parts.parameters("connector")], "lr": 1, "base_lr": 1.0}]
        )
        line = stepping.Stepper(parts, replace(recipe, warmup=0.0), optimizer, 10).step(1, micro)
        weight = parts.model.model.multi_modal_projector.linear_1.weight.detach().clone()
        results.append((line, weight))
    for line, weight in results[1:]:
        assert line.loss == pytest.approx(results[0][0].loss, rel=1e-6)
        assert line.answer_tokens == results[0][0].answer_tokens
        torch.testing.assert_close(weight, results[0][1], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "trained",
    [
        ("connector",),
        ("connector", "language_model"),
        ("vision_tower", "connector"),
        ("vision_tower",),
        ("language_model",),
    ],
)
@pytest.mark.parametrize("connector", ["mlp2x_gelu", "linear"])
def test_the_freeze_map_really_freezes(
    build: Built, talks: Path, pictures: Path, trained: tuple[str, ...], connector: str
) -> None:
    chosen: dict[str, Any] = {f"train_{name}": name in trained for name in MODULES}
    recipe = replace(RECIPE, connector=connector, lr=1e-2, warmup=0.0, **chosen)
    parts = build(recipe)
    before = {name: value.clone() for name, value in parts.model.state_dict().items()}
    optimizer = stepping.build_optimizer(parts, recipe)
    batch = loader_of(recipe, parts, talks, pictures).batch(np.arange(6))
    stepping.Stepper(parts, recipe, optimizer, 10).step(1, [batch])
    after = parts.model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {_module(name) for name in changed} == set(trained)
    for name in set(before) - changed:
        unread = "layers.2." in name or "post_layernorm" in name  # behind the layer that is read
        identity = connector == "linear" and "linear_2" in name
        assert _module(name) not in trained or unread or identity, name


def _module(name: str) -> str:
    if "vision_tower" in name:
        return "vision_tower"
    return "connector" if "multi_modal_projector" in name else "language_model"


def test_a_linear_connector_is_one_layer(build: Built) -> None:
    parts = build(replace(RECIPE, connector="linear"))
    connector = parts.model.model.multi_modal_projector
    x = torch.randn(3, 32)
    assert torch.equal(connector(x), connector.linear_1(x))
    assert [name for name, _ in parts.parameters("connector")] == [
        "model.multi_modal_projector.linear_1.weight",
        "model.multi_modal_projector.linear_1.bias",
    ]


def test_each_module_has_its_learning_rate_and_biases_no_decay(build: Built) -> None:
    recipe = replace(RECIPE, lr=1e-3, lr_connector=5e-4, weight_decay=0.1, train_vision_tower=True)
    groups = stepping.build_optimizer(build(recipe), recipe).param_groups
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [
        (1e-3, 0.1), (1e-3, 0.0), (5e-4, 0.1), (5e-4, 0.0), (1e-3, 0.1), (1e-3, 0.0),
    ]  # fmt: skip
    for group in groups:
        assert all((p.dim() > 1) == (group["weight_decay"] > 0) for p in group["params"])


def test_learning_rate_rises_then_falls_along_a_cosine() -> None:
    recipe = replace(RECIPE, warmup=0.1, min_lr=0.1)
    curve = [stepping.lr_factor(recipe, step, 100) for step in range(1, 101)]
    assert curve[0] == pytest.approx(0.1) and curve[9] == 1.0 and curve[10] == 1.0
    assert curve[55] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 2)) / 2)
    assert curve[10:] == sorted(curve[10:], reverse=True) and 0.1 < curve[-1] < 0.11
    assert stepping.lr_factor(replace(recipe, schedule="constant"), 90, 100) == 1.0
    assert stepping.lr_factor(replace(recipe, schedule="linear", min_lr=0.0), 100, 100) == (
        pytest.approx(1 / 90)
    )


def test_a_loss_that_is_not_finite_stops_the_run(build: Built, talks: Path, pictures: Path) -> None:
    parts = build()
    batch = loader_of(RECIPE, parts, talks, pictures).batch(np.arange(3))
    with torch.no_grad():
        parts.model.model.multi_modal_projector.linear_2.bias.fill_(math.nan)
    with pytest.raises(LlavaError, match="step 4: the loss is nan"):
        stepping.Stepper(parts, RECIPE, stepping.build_optimizer(parts, RECIPE), 9).step(4, [batch])


@pytest.mark.parametrize("positions", [1, 127, 128, 300])
def test_attention_in_blocks_equals_the_definition(positions: int) -> None:
    torch.manual_seed(0)
    shape = (3, 4, positions, 16)
    q, k, v, grad = (torch.randn(shape, dtype=torch.float64) for _ in range(4))
    k, v = k[:, :2].clone(), v[:, :2].clone()  # grouped heads
    inputs = [part.requires_grad_() for part in (q, k, v)]
    future = torch.ones(positions, positions, dtype=torch.bool).triu(1)
    scores = q @ k.repeat_interleave(2, 1).transpose(2, 3) * 0.25
    theirs = scores.masked_fill(future, -math.inf).softmax(-1) @ v.repeat_interleave(2, 1)
    ours = attention.block_causal(q, k, v, 0.25)
    torch.testing.assert_close(ours, theirs)
    for mine, other in zip(
        torch.autograd.grad(ours, inputs, grad),
        torch.autograd.grad(theirs, inputs, grad),
        strict=True,
    ):
        torch.testing.assert_close(mine, other)


def test_bfloat16_with_blocks_stays_near_float32(build: Built, talks: Path, pictures: Path) -> None:
    recipe = replace(RECIPE, precision="bfloat16")
    parts = build(recipe)
    batch = loader_of(recipe, parts, talks, pictures).batch(np.arange(12))
    exact = float(stepping.answer_loss(parts.model, batch).detach())
    calls: list[torch.Size] = []
    attention.use(parts.model.model.language_model)
    inside = attention.block_causal

    def counted(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        calls.append(query.shape)
        return inside(query, key, value, scale)

    with pytest.MonkeyPatch.context() as patch, stepping.autocast(recipe, CPU):
        patch.setattr(attention, "block_causal", counted)
        near = float(stepping.answer_loss(parts.model, batch).detach())
    assert len(calls) == 2  # each layer's attention
    assert near == pytest.approx(exact, rel=2e-3)


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_frozen_weights_rounded_once_change_no_bit(
    build: Built, talks: Path, pictures: Path, adapter: str
) -> None:
    recipe = replace(RECIPE, precision="bfloat16", adapter=adapter, lora_rank=4, lora_dropout=0.0)
    if adapter == "none":
        recipe = replace(recipe, train_language_model=False)
    found = []
    for rounds in (False, True):
        parts = build(recipe)
        before = {name: value.clone() for name, value in parts.model.state_dict().items()}
        rounded = stepping.Rounded(parts, recipe) if rounds else None
        head = parts.model.lm_head.weight.dtype
        assert head == (torch.bfloat16 if rounds else torch.float32)
        batch = loader_of(recipe, parts, talks, pictures).batch(np.arange(6))
        with stepping.autocast(recipe, CPU):
            found.append(_loss_and_grads(parts, stepping.answer_loss, batch))
        if rounded:
            rounded.restore()
        after = parts.model.state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)
    assert found[0][0] == found[1][0] and len(found[0][1]) >= 4
    for name, grad in found[0][1].items():
        assert torch.equal(grad, found[1][1][name]), name


def test_recomputing_activations_changes_no_gradient(
    build: Built, talks: Path, pictures: Path
) -> None:
    found = []
    for again in (False, True):
        recipe = replace(RECIPE, gradient_checkpointing=again, train_vision_tower=True)
        parts = build(recipe)
        stepping.speed_up(parts, recipe, CPU)
        batch = loader_of(recipe, parts, talks, pictures).batch(np.arange(6))
        parts.model.train()
        found.append(_loss_and_grads(parts, stepping.answer_loss, batch))
        layers = parts.model.model.language_model.layers
        assert all(layer.gradient_checkpointing is again for layer in layers)
    assert found[0][0] == found[1][0]
    for name, grad in found[0][1].items():
        assert torch.equal(grad, found[1][1][name]), name


def test_frozen_weights_take_their_precision_and_rotary_angles_stay_exact(build: Built) -> None:
    parts = build(replace(RECIPE, train_language_model=False, frozen_dtype="bfloat16"))
    model = parts.model.model
    assert {p.dtype for p in model.language_model.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in model.vision_tower.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in model.multi_modal_projector.parameters()} == {torch.float32}
    angles = model.language_model.rotary_emb.inv_freq
    assert angles.dtype == torch.float32
    assert torch.equal(angles, build().model.model.language_model.rotary_emb.inv_freq)


def test_frozen_bfloat16_trains_a_connector(build: Built, pairs: Path, pictures: Path) -> None:
    recipe = replace(
        RECIPE, train_language_model=False, frozen_dtype="bfloat16", precision="bfloat16",
        prompt_format="plain", lr=1e-2, warmup=0.0,
    )  # fmt: skip
    parts = build(recipe)
    stepping.speed_up(parts, recipe, CPU)
    optimizer = stepping.build_optimizer(parts, recipe)
    batch = loader_of(recipe, parts, pairs, pictures).batch(np.arange(6))
    lines = [
        stepping.Stepper(parts, recipe, optimizer, 20).step(step, [batch]) for step in range(1, 13)
    ]
    assert lines[-1].loss < lines[0].loss - 0.02


def test_log_drops_the_lines_after_the_step_resumed_from(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    line = runlog.StepLog(1, 2.0, 1e-3, 30, 10, 1.0, 0.1)
    with runlog.Log(path, 0) as log:
        for step in (1, 2, 3):
            log.write(replace(line, step=step))
    path.write_text(path.read_text() + '{"step": 4, "lo')  # killed while writing
    with runlog.Log(path, 2) as log:
        log.write(replace(line, step=3, loss=9.0))
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    assert [(entry["step"], entry["loss"]) for entry in lines] == [(1, 2.0), (2, 2.0), (3, 9.0)]
    assert list(lines[0]) == [
        "step", "loss", "lr", "tokens", "answer_tokens", "grad_norm", "seconds", "data_wait",
        "flops", "mfu",
    ]  # fmt: skip


def test_what_cannot_be_assembled_is_refused(
    language_model: Path, vision_tower: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="either --model or --from"):
        assemble(RECIPE)
    with pytest.raises(UsageError, match="sees nothing"):
        assemble(RECIPE, model=language_model)
    with pytest.raises(UsageError, match="feature_layer"):
        assemble(replace(RECIPE, feature_layer=-5), model=language_model, vision_tower=vision_tower)
    with pytest.raises(LlavaError, match="no CLIP or SigLIP vision tower"):
        assemble(RECIPE, model=language_model, vision_tower=language_model)
    with pytest.raises(LlavaError, match="no model folder"):
        assemble(RECIPE, model=tmp_path / "none", vision_tower=vision_tower)
