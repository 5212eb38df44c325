"""The gather that starts early: what it may be used for, and when its gradient is waited for."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pipeline.loss import TextGather, clip_loss
from pipeline.loss.reference import clip_loss_reference
from pipeline.loss.text_gather import TextGradient
from tests.gloo import run_gloo
from tests.pipeline.loss.features import correlated_features


class _Tower(torch.autograd.Function):
    """Identity that notes when its backward runs."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, name: str, notes: list[str]) -> Tensor:
        ctx.name, ctx.notes = name, notes
        return features.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        ctx.notes.append(f"{ctx.name} tower")
        return gradient, None, None


def _order_of_backward(rank: int, world_size: int, early: bool) -> list[str]:
    notes: list[str] = []
    image, text = (x.requires_grad_() for x in correlated_features(8, 4))
    start, finish = TextGradient.start, TextGradient.finish

    def noting_start(self: TextGradient, gradient: Tensor, dtype: torch.dtype | None) -> None:
        notes.append("reduce-scatter starts")
        start(self, gradient, dtype)

    def noting_finish(self: TextGradient) -> Tensor:
        notes.append("reduce-scatter waited for")
        return finish(self)

    TextGradient.start = noting_start  # type: ignore[method-assign]
    TextGradient.finish = noting_finish  # type: ignore[method-assign]
    text_features = _Tower.apply(text, "text", notes)
    passed = TextGather(text_features) if early else text_features
    image_features = image
    for layer in ("upper", "lower"):  # the image tower runs while the text features travel
        image_features = _Tower.apply(image_features, layer, notes)
    clip_loss(image_features, passed, torch.zeros(1)).backward()
    return notes


def test_image_backward_runs_while_text_gradients_travel() -> None:
    expected = ["reduce-scatter starts", "lower tower", "upper tower"]
    expected += ["reduce-scatter waited for", "text tower"]
    for notes in run_gloo(_order_of_backward, 2, True):
        assert notes == expected


def test_without_the_early_start_there_is_no_overlap() -> None:
    """What the handle buys, and that the test above can fail."""
    for notes in run_gloo(_order_of_backward, 2, False):
        assert notes[:2] == ["reduce-scatter starts", "reduce-scatter waited for"]


def test_same_gradients_as_without_it() -> None:
    image, text = correlated_features(9, 4)
    scale = torch.tensor([1.0], dtype=torch.float64)
    gradients = []
    for early in (False, True):
        leaves = [x.clone().requires_grad_() for x in (image, text, scale)]
        passed = TextGather(leaves[1]) if early else leaves[1]
        gradients.append(torch.autograd.grad(clip_loss(leaves[0], passed, leaves[2]), leaves))
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


def test_serves_one_loss() -> None:
    image, text = correlated_features(4, 3)
    gather = TextGather(text)
    clip_loss(image, gather, torch.zeros(1))
    with pytest.raises(ValueError, match="served a loss already; make one for each loss call"):
        clip_loss(image, gather, torch.zeros(1))


def test_locked_text_tower() -> None:
    image, text = correlated_features(6, 3)
    image.requires_grad_()
    clip_loss(image, TextGather(text), torch.zeros(1)).backward()
    assert image.grad is not None and text.grad is None


def test_partial_backward_then_whole() -> None:
    image, text = (x.requires_grad_() for x in correlated_features(6, 3))
    loss = clip_loss(image, TextGather(text), torch.zeros(1))
    torch.autograd.grad(loss, image, retain_graph=True)
    (whole,) = torch.autograd.grad(loss, text)
    (expected,) = torch.autograd.grad(clip_loss(image, text, torch.zeros(1)), text)
    assert torch.equal(whole, expected)


def test_nothing_outlives_the_step() -> None:
    """The handle is in the graph and holds features; a cycle would keep both until a collection."""
    image, text = (x.requires_grad_() for x in correlated_features(6, 3))
    gc.disable()
    try:
        features = text * 1.0
        gather = TextGather(features)
        clip_loss(image, gather, torch.zeros(1)).backward()
        watched = weakref.ref(gather), weakref.ref(gather.gradient)
        del features, gather
        assert [reference() for reference in watched] == [None, None]
    finally:
        gc.enable()


def _other_group(rank: int, world_size: int) -> str:
    alone = [torch.distributed.new_group([member]) for member in range(world_size)][rank]
    _, text = correlated_features(4, 3)
    gather = TextGather(text)
    try:
        clip_loss(text, gather, torch.zeros(1), group=alone)
    except ValueError as error:
        return str(error)
    return "no error"


def test_group_is_that_of_the_gather() -> None:
    for message in run_gloo(_other_group, 2):
        assert "the TextGather was started over another group" in message


def _pairs_of_ranks(rank: int, world_size: int) -> float:
    groups = [torch.distributed.new_group(members) for members in ([0, 2], [1, 3])]
    image, text = correlated_features(12, 4)
    mine = slice(3 * rank, 3 * rank + 3)
    scale = torch.tensor([2.0], dtype=torch.float64)
    return float(clip_loss(image[mine], text[mine], scale, group=groups[rank % 2]))


def test_groups_that_are_not_the_world() -> None:
    losses = run_gloo(_pairs_of_ranks, 4)
    image, text = correlated_features(12, 4)
    scale = torch.tensor([2.0], dtype=torch.float64)
    for members in ((0, 2), (1, 3)):
        rows = torch.cat([torch.arange(3 * member, 3 * member + 3) for member in members])
        expected = clip_loss_reference(image[rows], text[rows], scale)
        assert sum(losses[member] for member in members) / 2 == pytest.approx(float(expected))
