"""clip_loss in one process: against the dense reference, at its edges, as autograd uses it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.loss import clip_loss, tiled
from pipeline.loss.block import Block, LineSums, SavedSums, Wanted
from pipeline.loss.reference import clip_loss_reference, logits_matrix, top1_reference
from tests.pipeline.loss.features import EXTREMES, correlated_features, extreme_features

Inputs = tuple[Tensor, Tensor, Tensor]


def _inputs(
    num_rows: int = 13, dimension: int = 6, log_scale: float = 2.66, *, seed: int = 0
) -> Inputs:
    image, text = correlated_features(num_rows, dimension, seed=seed)
    return image, text, torch.tensor([log_scale], dtype=torch.float64)


def _value_and_gradients(
    function: Any, inputs: Inputs, upstream: float = 1.0, **options: Any
) -> list[Tensor]:
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    loss = function(*leaves, **options)
    return [loss.detach(), *torch.autograd.grad(loss * upstream, leaves)]


def _assert_equal(inputs: Inputs, upstream: float = 1.0, **options: Any) -> None:
    ours = {name: options.pop(name) for name in ("tile", "stash_bytes") if name in options}
    actual = _value_and_gradients(clip_loss, inputs, upstream, **options, **ours)
    expected = _value_and_gradients(clip_loss_reference, inputs, upstream, **options)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other.reshape(one.shape), rtol=1e-10, atol=1e-10)


@given(
    num_rows=st.integers(1, 17),
    tile=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    log_scale=st.sampled_from([0.0, 2.66, 4.6]),
    num_ids=st.none() | st.integers(1, 12),
    label_smoothing=st.sampled_from([0.0, 0.1, 0.9]),
    normalize=st.booleans(),
    stash_bytes=st.sampled_from([0, 1 << 20]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_equals_reference(
    num_rows: int,
    tile: tuple[int, int],
    log_scale: float,
    num_ids: int | None,
    label_smoothing: float,
    normalize: bool,
    stash_bytes: int,
    seed: int,
) -> None:
    inputs = _inputs(num_rows, log_scale=log_scale, seed=seed)
    if normalize:
        inputs = (inputs[0] * 7.0, inputs[1] * 0.02, inputs[2])
    generator = torch.Generator().manual_seed(seed)
    ids = None if num_ids is None else torch.randint(num_ids, (num_rows,), generator=generator)
    _assert_equal(
        inputs,
        upstream=0.7,
        tile=tile,
        pair_ids=ids,
        label_smoothing=label_smoothing,
        normalize=normalize,
        stash_bytes=stash_bytes,
    )


@pytest.mark.parametrize(
    "options",
    [{}, {"stash_bytes": 0}, {"normalize": True}, {"label_smoothing": 0.2}, {"pair_ids": True}],
)
def test_gradcheck(options: dict[str, Any]) -> None:
    leaves = [tensor.requires_grad_() for tensor in _inputs(11, log_scale=1.5)]
    if options.get("pair_ids"):
        options = {"pair_ids": torch.tensor([1, 1, 2, 3, 4, 5, 6, 6, 6, -7, 1 << 62])}
    assert torch.autograd.gradcheck(lambda *x: clip_loss(*x, tile=(4, 3), **options), leaves)


def test_value_of_one_pair_of_rows_by_hand() -> None:
    eye = torch.eye(2, dtype=torch.float64)
    loss = clip_loss(eye, eye, torch.tensor(math.log(3.0), dtype=torch.float64))
    assert loss.item() == pytest.approx(math.log(1.0 + math.exp(-3.0)), abs=1e-14)


@pytest.mark.parametrize("log_scale", [0.0, 2.66, math.log(100.0)])
@pytest.mark.parametrize("case", EXTREMES)
def test_extremes_in_float32(case: str, log_scale: float) -> None:
    """Logits 200 apart must neither overflow nor lose a row; a fixed shift by the scale does."""
    image, text = extreme_features(case)
    inputs = (image, text, torch.tensor([log_scale]))
    wide: Any = tuple(tensor.double() for tensor in inputs)
    actual = _value_and_gradients(clip_loss, inputs, tile=(16, 16), stash_bytes=0)
    expected = _value_and_gradients(clip_loss_reference, wide)
    assert actual[0].dtype == torch.float32
    for one, other in zip(actual, expected, strict=True):
        assert one.isfinite().all()
        torch.testing.assert_close(one.double(), other.reshape(one.shape), rtol=2e-4, atol=2e-5)


def test_loss_near_zero() -> None:
    eye = torch.eye(32)
    loss = clip_loss(eye, eye, torch.tensor([math.log(100.0)]))
    assert abs(loss.item()) < 1e-5  # one unit in the last place of a logit of 100 is 8e-6


@pytest.mark.parametrize("learning", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 1)])
def test_locked_towers(learning: tuple[int, ...]) -> None:
    inputs = _inputs()
    expected = _value_and_gradients(clip_loss_reference, inputs)[1:]
    leaves = [x.clone().requires_grad_(bool(on)) for x, on in zip(inputs, learning, strict=True)]
    clip_loss(*leaves, tile=5, stash_bytes=0).backward()
    for leaf, on, gradient in zip(leaves, learning, expected, strict=True):
        if on:
            torch.testing.assert_close(leaf.grad, gradient, rtol=1e-10, atol=1e-10)
        else:
            assert leaf.grad is None


def test_no_grad_keeps_nothing() -> None:
    inputs = [tensor.requires_grad_() for tensor in _inputs()]
    with torch.no_grad():
        loss = clip_loss(*inputs)
    assert not loss.requires_grad and loss.grad_fn is None
    torch.testing.assert_close(loss, clip_loss_reference(*inputs).detach().squeeze())


def test_two_backwards_through_a_kept_graph() -> None:
    leaves = [tensor.requires_grad_() for tensor in _inputs()]
    loss = clip_loss(*leaves)
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    second = torch.autograd.grad(loss, leaves)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


def test_strided_inputs() -> None:
    image, text, scale = _inputs(12, 6)
    wide = torch.cat([image, text], dim=1)
    strided = (wide[:, :6], text.T.contiguous().T, scale)
    assert not strided[1].is_contiguous()
    _assert_equal(strided, tile=5)


@pytest.mark.parametrize("shape", [(), (1,)])
def test_shape_of_the_scale_is_kept_by_its_gradient(shape: tuple[int, ...]) -> None:
    image, text, _ = _inputs()
    scale = torch.full(shape, 2.0, dtype=torch.float32, requires_grad=True)
    loss = clip_loss(image.requires_grad_(), text, scale)
    loss.backward()
    assert scale.grad is not None and scale.grad.shape == shape and loss.shape == ()
    assert scale.grad.dtype == torch.float32 and loss.dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_are_computed_in_float32(dtype: torch.dtype) -> None:
    image, text = correlated_features(64, 32, dtype=dtype)
    scale = torch.tensor([4.6])
    exact = (image.double(), text.double(), scale.double())
    actual = _value_and_gradients(clip_loss, (image, text, scale))
    expected = _value_and_gradients(clip_loss_reference, exact)
    assert actual[0].dtype == torch.float32 and actual[1].dtype == dtype
    torch.testing.assert_close(actual[0].double(), expected[0].squeeze(), rtol=1e-5, atol=1e-5)
    rounding = torch.finfo(dtype).eps  # of the returned gradient only
    for one, other in zip(actual[1:3], expected[1:3], strict=True):
        assert (one.double() - other).norm() < rounding * other.norm()


def test_autocast_changes_nothing() -> None:
    image, text = correlated_features(16, 8, dtype=torch.float32)
    inputs = (image, text, torch.tensor([4.6]))
    plain = _value_and_gradients(clip_loss, inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = _value_and_gradients(clip_loss, inputs)
    for one, other in zip(plain, cast, strict=True):
        assert torch.equal(one, other)


def test_two_runs_are_bit_equal() -> None:
    image, text = correlated_features(300, 32, dtype=torch.float32)
    inputs = (image, text, torch.tensor([4.6]))
    runs = [_value_and_gradients(clip_loss, inputs, tile=(64, 96)) for _ in range(2)]
    for one, other in zip(*runs, strict=True):
        assert torch.equal(one, other)


def test_virtual_ranks_compose() -> None:
    """Blocks of 3 x 12 with offsets, combined by hand: what ranks do, in one process."""
    image, text, scale = _inputs(12)
    blocks = [
        Block(image[top : top + 3], text, scale.exp().reshape(()), offset=top)
        for top in range(0, 12, 3)
    ]
    sums = [tiled.block_sums(block, tile=(2, 5)) for block in blocks]
    tops = torch.stack([part.column.top for part in sums])
    totals = torch.stack([part.column.total for part in sums])
    column = LineSums(tops.amax(0), (totals * torch.exp2(tops - tops.amax(0))).sum(0))
    row = LineSums(
        torch.cat([part.row.top for part in sums]), torch.cat([part.row.total for part in sums])
    )
    positive = torch.cat([part.positive for part in sums])
    lse = sum(line.top + line.total.log2() for line in (row, column))
    expected = _value_and_gradients(clip_loss_reference, (image, text, scale))
    loss = (lse - 2 * positive).mean() / 2 * math.log(2.0)
    torch.testing.assert_close(loss, expected[0].squeeze())
    parts = [
        tiled.block_grad(block, SavedSums(part.row, column), Wanted(), tile=(2, 5))
        for block, part in zip(blocks, sums, strict=True)
    ]
    factor = scale.exp() / 24
    image_parts = [part.x for part in parts if part.x is not None]
    text_parts = [part.y for part in parts if part.y is not None]
    torch.testing.assert_close(torch.cat(image_parts) * factor, expected[1])
    torch.testing.assert_close(torch.stack(text_parts).sum(0) * factor, expected[2])


@pytest.mark.parametrize("use_ids", [False, True])
@pytest.mark.parametrize("tile", [4, 100])
def test_top1_is_that_of_the_dense_logits(use_ids: bool, tile: int) -> None:
    image, text, scale = _inputs(29, 3)
    ids = torch.arange(29) // 2 if use_ids else None
    result = torch.empty(2)
    loss = clip_loss(image, text, scale, pair_ids=ids, tile=tile, top1_out=result)
    expected = top1_reference(logits_matrix(image, text, scale, normalize=False), ids)
    assert 0.0 < float(expected[0]) < 1.0
    assert result[0].item() == pytest.approx(float(expected[0]))
    assert result[1].item() == pytest.approx(float(expected[1]))
    torch.testing.assert_close(loss, clip_loss(image, text, scale, pair_ids=ids))


def test_a_collapsed_model_has_no_top1() -> None:
    ones = torch.ones(8, 4, requires_grad=True)
    result = torch.empty(2)
    loss = clip_loss(ones, ones, torch.zeros(1), normalize=True, top1_out=result)
    assert result[0] == 0.0 and result[1] == 0.0
    assert loss.item() == pytest.approx(math.log(8.0), abs=1e-6)
    loss.backward()
    assert ones.grad is not None and not result[0].requires_grad


def test_duplicates_are_no_negatives() -> None:
    """Two pairs with one caption: with ids the loss can reach its floor, the entropy of targets."""
    rows = torch.eye(3, dtype=torch.float64)[[0, 0, 1, 2]]
    scale = torch.tensor([math.log(100.0)], dtype=torch.float64)
    ids = torch.tensor([7, 7, 8, 9])
    leaf = rows.clone().requires_grad_()
    loss = clip_loss(leaf, rows, scale, pair_ids=ids)
    loss.backward()
    assert loss.item() == pytest.approx(2 / 4 * math.log(2.0), abs=1e-12)
    assert leaf.grad is not None and leaf.grad.abs().max() < 1e-12
    leaf.grad.zero_()
    clip_loss(leaf, rows + 0.1 * rows.flip(0), scale).backward()
    assert (
        leaf.grad is not None and leaf.grad.abs().max() > 1e-3
    )  # without ids there is something to push apart
