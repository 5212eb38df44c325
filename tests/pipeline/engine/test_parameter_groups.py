"""Who is decayed, who learns how fast, who not at all; and how few groups that takes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from pipeline.config import Optimizer, TrainConfig
from pipeline.engine.optimizer import build_optimizer
from pipeline.engine.parameter_groups import lr_scales, parameter_groups
from tests.pipeline.engine.small_model import small_batch, small_clip


def grouped(train: TrainConfig) -> dict[str, dict]:
    """The group of each parameter, by the parameter's name."""
    model = small_clip()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: dict[str, dict] = {}
    for group in parameter_groups(model, train):
        for parameter in group["params"]:
            assert names[id(parameter)] not in found
            found[names[id(parameter)]] = group
    assert set(found) == set(names.values())
    return found


def test_gains_biases_embeddings_and_the_scale_are_not_decayed() -> None:
    groups = grouped(TrainConfig(weight_decay=0.3))
    decayed = {name for name, group in groups.items() if group["weight_decay"] == 0.3}
    kept = {name for name, group in groups.items() if group["weight_decay"] == 0.0}
    assert decayed | kept == set(groups)
    matrices = ("stem.projection", "qkv", "attention.out", "mlp.up", "mlp.down", "projection")
    assert all(name.endswith(tuple(f"{part}.weight" for part in matrices)) for name in decayed)
    assert len(decayed) == 4 * (2 + 3) + 3
    for part in ("logit_scale", "token_embedding", "positional_embedding", "class_embedding"):
        assert any(part in name for name in kept), part


def test_equal_towers_without_layer_decay_make_two_groups() -> None:
    groups = parameter_groups(small_clip(), TrainConfig())
    assert [(group["decayed"], group["lr_scale"]) for group in groups] == [(True, 1), (False, 1)]


def test_without_weight_decay_the_matrices_are_still_told_apart() -> None:
    """LAMB gives them a trust ratio, whatever their decay."""
    groups = parameter_groups(small_clip(), TrainConfig(weight_decay=0.0))
    assert [group["decayed"] for group in groups] == [True, False]


def test_layer_decay_counts_blocks_from_the_output() -> None:
    scales = lr_scales(
        [name for name, _ in small_clip().named_parameters()],
        TrainConfig(layer_decay=0.5, image_lr_scale=2.0, text_lr_scale=1.0),
    )
    expected = {
        "logit_scale": 1.0,
        "visual.projection.weight": 2.0,
        "visual.ln_post.bias": 2.0,
        "visual.transformer.blocks.1.mlp.up.weight": 2.0 * 0.5,
        "visual.transformer.blocks.0.ln_1.weight": 2.0 * 0.25,
        "visual.ln_pre.weight": 2.0 * 0.125,
        "visual.stem.projection.weight": 2.0 * 0.125,
        "visual.class_embedding": 2.0 * 0.125,
        "visual.positional_embedding": 2.0 * 0.125,
        "text.projection.weight": 1.0,
        "text.ln_final.weight": 1.0,
        "text.transformer.blocks.2.attention.qkv.bias": 0.5,
        "text.transformer.blocks.0.attention.qkv.bias": 0.125,
        "text.token_embedding.weight": 0.0625,
        "text.positional_embedding": 0.0625,
    }
    assert {name: scales[name] for name in expected} == expected


@settings(max_examples=20)
@given(
    layer_decay=st.floats(0.01, 1.0),
    image_lr_scale=st.floats(0.01, 10.0),
    text_lr_scale=st.floats(0.01, 10.0),
)
def test_groups_are_the_pairs_of_decay_and_scale(
    layer_decay: float, image_lr_scale: float, text_lr_scale: float
) -> None:
    train = TrainConfig(
        layer_decay=layer_decay, image_lr_scale=image_lr_scale, text_lr_scale=text_lr_scale
    )
    groups = grouped(train)
    scales = lr_scales(list(groups), train)
    assert all(groups[name]["lr_scale"] == scales[name] for name in groups)
    made = parameter_groups(small_clip(), train)
    assert len({(group["decayed"], group["lr_scale"]) for group in made}) == len(made)


def test_the_order_of_groups_is_that_of_every_rank_and_run() -> None:
    train = TrainConfig(layer_decay=0.7, image_lr_scale=0.3)
    groups = parameter_groups(small_clip(), train)
    keys = [(group["decayed"], group["lr_scale"]) for group in groups]
    assert keys == sorted(keys, reverse=True)
    assert len({group["name"] for group in groups}) == len(groups)


@pytest.mark.parametrize("kind", list(Optimizer))
@pytest.mark.parametrize("tower", ["visual", "text"])
def test_a_frozen_tower_takes_no_gradient_and_stays_bit_equal(tower: str, kind: Optimizer) -> None:
    model = small_clip()
    train = TrainConfig(optimizer=kind, lr=0.1)
    if tower == "visual":
        train.image_lr_scale = 0.0
    else:
        train.text_lr_scale = 0.0
    optimizer = build_optimizer(model, train)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    for _ in range(3):
        output = model(*small_batch())
        logits = output.logit_scale.exp() * output.image_features @ output.text_features.T
        F.cross_entropy(logits, torch.arange(len(logits))).backward()
        optimizer.step()
    for name, value in model.named_parameters():
        assert (value.grad is None) == name.startswith(f"{tower}.")
        assert torch.equal(value, before[name]) == name.startswith(f"{tower}."), name
