"""sigmoid_loss in one process: against the dense reference, at its edges, as autograd uses it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.loss import sigmoid_loss, tiled
from pipeline.loss.block import Block, Wanted
from pipeline.loss.reference import sigmoid_loss_reference
from tests.pipeline.loss.features import EXTREMES, correlated_features, extreme_features

Inputs = tuple[Tensor, ...]
IDS = torch.tensor([1, 1, 2, 3, 4, 5, 6, 6, 6, -7, 1 << 62])


def _inputs(
    num_rows: int = 13,
    dimension: int = 6,
    log_scale: float = 2.3,
    bias: float = -10.0,
    *,
    seed: int = 0,
) -> Inputs:
    image, text = correlated_features(num_rows, dimension, seed=seed)
    return image, text, *torch.tensor([[log_scale], [bias]], dtype=torch.float64)


def _value_and_gradients(
    function: Any, inputs: Inputs, upstream: float = 1.0, **options: Any
) -> list[Tensor]:
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    loss = function(*leaves, **options)
    return [loss.detach(), *torch.autograd.grad(loss * upstream, leaves)]


@given(
    num_rows=st.integers(1, 17),
    tile=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    log_scale=st.sampled_from([0.0, 2.66, 4.6]),
    bias=st.sampled_from([-10.0, 0.0, 3.0]),
    num_ids=st.none() | st.integers(1, 12),
    normalize=st.booleans(),
    mode=st.sampled_from(["gather", "ring"]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_equals_reference(
    num_rows: int,
    tile: tuple[int, int],
    log_scale: float,
    bias: float,
    num_ids: int | None,
    normalize: bool,
    mode: str,
    seed: int,
) -> None:
    inputs = _inputs(num_rows, log_scale=log_scale, bias=bias, seed=seed)
    if normalize:
        inputs = (inputs[0] * 7.0, inputs[1] * 0.02, *inputs[2:])
    generator = torch.Generator().manual_seed(seed)
    ids = None if num_ids is None else torch.randint(num_ids, (num_rows,), generator=generator)
    options: dict[str, Any] = {"pair_ids": ids, "normalize": normalize}
    actual = _value_and_gradients(sigmoid_loss, inputs, 0.7, tile=tile, mode=mode, **options)
    expected = _value_and_gradients(sigmoid_loss_reference, inputs, 0.7, **options)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other.reshape(one.shape), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "options", [{}, {"mode": "ring"}, {"normalize": True}, {"pair_ids": IDS}], ids=str
)
def test_gradcheck(options: dict[str, Any]) -> None:
    leaves = [tensor.requires_grad_() for tensor in _inputs(11, log_scale=1.5, bias=-1.0)]
    assert torch.autograd.gradcheck(lambda *x: sigmoid_loss(*x, tile=(4, 3), **options), leaves)


def test_value_of_one_pair_by_hand() -> None:
    one = torch.ones(1, 1, dtype=torch.float64)
    zero = torch.zeros(1, dtype=torch.float64)
    loss = sigmoid_loss(one, one, zero + math.log(3.0), zero - 2.0)  # z = -(3 - 2)
    assert loss.item() == pytest.approx(math.log(1.0 + math.exp(-1.0)), abs=1e-14)


@pytest.mark.parametrize("log_scale", [0.0, 2.66, math.log(100.0)])
@pytest.mark.parametrize("case", EXTREMES)
def test_extremes_in_float32(case: str, log_scale: float) -> None:
    image, text = extreme_features(case)
    inputs = (image, text, torch.tensor([log_scale]), torch.tensor([-10.0]))
    wide = tuple(tensor.double() for tensor in inputs)
    actual = _value_and_gradients(sigmoid_loss, inputs, tile=(16, 16))
    expected = _value_and_gradients(sigmoid_loss_reference, wide)
    assert actual[0].dtype == torch.float32
    for one, other in zip(actual, expected, strict=True):
        assert one.isfinite().all()
        torch.testing.assert_close(one.double(), other.reshape(one.shape), rtol=2e-4, atol=2e-5)


def test_loss_near_zero_keeps_its_digits() -> None:
    """All 32 x 32 values of z are -50: each pair adds exp(-50), which 1 + exp(-50) would lose."""
    eye = torch.eye(32)
    loss = sigmoid_loss(eye, eye, torch.tensor([math.log(100.0)]), torch.tensor([-50.0]))
    assert loss.item() == pytest.approx(32 * math.exp(-50.0), rel=1e-4)


@pytest.mark.parametrize("mode", ["gather", "ring"])
@pytest.mark.parametrize(
    "learning", [(1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (1, 0, 1, 1), (0, 1, 1, 0)]
)
def test_locked_towers(learning: tuple[int, ...], mode: str) -> None:
    inputs = _inputs()
    expected = _value_and_gradients(sigmoid_loss_reference, inputs)[1:]
    leaves = [x.clone().requires_grad_(bool(on)) for x, on in zip(inputs, learning, strict=True)]
    sigmoid_loss(*leaves, tile=5, mode=mode).backward()
    for leaf, on, gradient in zip(leaves, learning, expected, strict=True):
        if on:
            torch.testing.assert_close(leaf.grad, gradient, rtol=1e-10, atol=1e-10)
        else:
            assert leaf.grad is None


def test_no_grad_makes_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = [tensor.requires_grad_() for tensor in _inputs()]
    expected = sigmoid_loss_reference(*inputs).detach().squeeze()
    monkeypatch.setattr(tiled._FeatureGradient, "add", None)  # a gradient would call it
    with torch.no_grad():
        loss = sigmoid_loss(*inputs)
    assert not loss.requires_grad and loss.grad_fn is None
    torch.testing.assert_close(loss, expected)
    with pytest.raises(TypeError):
        sigmoid_loss(*inputs)


def test_two_backwards_through_a_kept_graph() -> None:
    leaves = [tensor.requires_grad_() for tensor in _inputs()]
    loss = sigmoid_loss(*leaves, normalize=True)
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    second = torch.autograd.grad(loss, leaves)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_are_computed_in_float32(
    dtype: torch.dtype, normalize: bool
) -> None:
    image, text = (side.to(dtype) for side in correlated_features(64, 32))
    inputs = (image, text, torch.tensor([4.6]), torch.tensor([-10.0]))
    exact = tuple(tensor.double() for tensor in inputs)
    actual = _value_and_gradients(sigmoid_loss, inputs, normalize=normalize)
    expected = _value_and_gradients(sigmoid_loss_reference, exact, normalize=normalize)
    assert actual[0].dtype == torch.float32 and actual[1].dtype == dtype
    torch.testing.assert_close(actual[0].double(), expected[0].squeeze(), rtol=1e-5, atol=1e-5)
    for one, other in zip(actual[1:3], expected[1:3], strict=True):
        assert (one.double() - other).norm() < torch.finfo(dtype).eps * other.norm()


def test_autocast_changes_nothing() -> None:
    inputs = tuple(tensor.float() for tensor in _inputs(16, 8))
    plain = _value_and_gradients(sigmoid_loss, inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = _value_and_gradients(sigmoid_loss, inputs)
    for one, other in zip(plain, cast, strict=True):
        assert torch.equal(one, other)


def test_two_runs_are_bit_equal() -> None:
    inputs = tuple(tensor.float() for tensor in _inputs(300, 32))
    runs = [_value_and_gradients(sigmoid_loss, inputs, tile=(64, 96)) for _ in range(2)]
    for one, other in zip(*runs, strict=True):
        assert torch.equal(one, other)


def test_virtual_ranks_compose() -> None:
    """Blocks of 3 x 12 with offsets, added up: what ranks do, in one process."""
    image, text, log_scale, bias = _inputs(12, bias=-3.0)
    scale = log_scale.exp().reshape(())
    results = [
        tiled.block_sigmoid(
            Block(image[top : top + 3], text, scale, offset=top), bias[0], Wanted(), (2, 5)
        )
        for top in range(0, 12, 3)
    ]
    expected = _value_and_gradients(sigmoid_loss_reference, (image, text, log_scale, bias))
    loss = torch.stack([part for part, _ in results]).sum() / 12
    torch.testing.assert_close(loss, expected[0].squeeze())
    gradients = [gradient for _, gradient in results if gradient is not None]
    images = [gradient.x for gradient in gradients if gradient.x is not None]
    texts = [gradient.y for gradient in gradients if gradient.y is not None]
    torch.testing.assert_close(torch.cat(images) * scale / 12, expected[1])
    torch.testing.assert_close(torch.stack(texts).sum(0) * scale / 12, expected[2])
    scales = torch.stack([gradient.log_scale for gradient in gradients]).sum() / 12
    torch.testing.assert_close(scales, expected[3][0])
