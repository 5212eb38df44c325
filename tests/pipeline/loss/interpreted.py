"""The Triton kernels in Triton's interpreter, against the plain torch backend.

Run by test_triton_interpreted.py in a process of its own, since TRITON_INTERPRET must be set before
the kernels are imported. float32 and float16 only: the interpreter multiplies the bit patterns of
bfloat16 (triton pull request 11585). Its programs run one after the other, so it cannot show races.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.loss import (
    clip_loss,
    sigmoid_loss,
    triton_blocks,
    triton_launch,
)
from pipeline.loss.block import Block
from pipeline.loss.reference import clip_loss_reference, logits_matrix, top1_reference
from pipeline.loss.tile_shapes import INTERPRETED, interpreting
from tests.pipeline.loss.features import EXTREMES, correlated_features, extreme_features

# relative error of gradients: float32 rounds the logits, float16 the logit gradients
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1.5e-3}
ROWS, DIMENSION = 75, 20  # neither is a multiple of a tile's 32 rows, strip of 16, or depth of 16


def test_the_interpreter_is_on() -> None:
    assert interpreting()


def _run(loss: Any, inputs: list[Tensor], backend: str, **options: Any) -> list[Tensor]:
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    value = loss(*leaves, backend=backend, **options)
    return [value.detach(), *torch.autograd.grad(value * 1.7, leaves)]


def _assert_same(loss: Any, inputs: list[Tensor], **options: Any) -> None:
    actual = _run(loss, inputs, "triton", **options)
    expected = _run(loss, inputs, "torch", **options)
    tolerance = TOLERANCE[inputs[0].dtype]
    for one, other in zip(actual, expected, strict=True):
        assert one.dtype == other.dtype and one.isfinite().all()
        difference = (one.double() - other.double()).norm()
        assert difference <= tolerance * max(float(other.double().norm()), 1e-3)


IDS = torch.arange(ROWS) * 7 % 41
CLIP_OPTIONS: list[dict[str, Any]] = [
    {},
    {"stash_bytes": 0},
    {"stash_bytes": 0, "normalize": True, "label_smoothing": 0.1, "tile": (32, 48)},
    {"normalize": True, "tile": 32},
    {"pair_ids": IDS},
    {"pair_ids": IDS, "normalize": True, "label_smoothing": 0.3, "tile": (64, 32)},
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("log_scale", [0.0, 2.66, math.log(100.0)])
@pytest.mark.parametrize("options", CLIP_OPTIONS)
def test_clip_loss(dtype: torch.dtype, log_scale: float, options: dict[str, Any]) -> None:
    if options.get("normalize"):
        image, text = correlated_features(ROWS, DIMENSION)
        image, text = (image * 12.0).to(dtype), (text * 0.3).to(dtype)
    else:
        image, text = correlated_features(ROWS, DIMENSION, dtype=dtype)
    _assert_same(clip_loss, [image, text, torch.tensor([log_scale])], **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    "options", [{}, {"mode": "ring"}, {"pair_ids": IDS, "normalize": True, "tile": (32, 48)}]
)
@pytest.mark.parametrize("log_scale", [0.0, 2.66, math.log(100.0)])
def test_sigmoid_loss(dtype: torch.dtype, log_scale: float, options: dict[str, Any]) -> None:
    image, text = correlated_features(ROWS, DIMENSION, dtype=dtype)
    _assert_same(
        sigmoid_loss, [image, text, torch.tensor([log_scale]), torch.tensor([-10.0])], **options
    )


@pytest.mark.parametrize("shape", [(1, 1), (32, 16), (33, 17), (64, 48), (7, 100)])
def test_shapes(shape: tuple[int, int]) -> None:
    image, text = correlated_features(*shape, dtype=torch.float32)
    _assert_same(clip_loss, [image, text, torch.tensor([2.66])])
    _assert_same(clip_loss, [image, text, torch.tensor([2.66])], stash_bytes=0)
    _assert_same(sigmoid_loss, [image, text, torch.tensor([2.66]), torch.tensor([-10.0])])


@pytest.mark.parametrize(
    ("loss", "needs"),
    [
        (clip_loss, (1, 0, 0)),
        (clip_loss, (0, 1, 0)),
        (clip_loss, (0, 0, 1)),
        (sigmoid_loss, (1, 0, 0, 0)),
        (sigmoid_loss, (0, 1, 0, 0)),
        (sigmoid_loss, (0, 0, 1, 1)),
    ],
)
def test_locked_towers(loss: Any, needs: tuple[int, ...]) -> None:
    image, text = correlated_features(ROWS, DIMENSION, dtype=torch.float32)
    inputs = (image, text, torch.tensor([2.66]), torch.tensor([-10.0]))[: len(needs)]
    gradients = []
    for backend in ("triton", "torch"):
        leaves = [
            tensor.clone().requires_grad_(bool(on))
            for tensor, on in zip(inputs, needs, strict=True)
        ]
        loss(*leaves, backend=backend).backward()
        gradients.append([leaf.grad for leaf in leaves if leaf.grad is not None])
    assert len(gradients[0]) == sum(needs)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_sigmoid_loss_alone_stores_no_gradient() -> None:
    image, text = correlated_features(ROWS, DIMENSION, dtype=torch.float32)
    inputs = [image.requires_grad_(), text, torch.tensor([2.66]), torch.tensor([-10.0])]
    with torch.no_grad():
        alone, expected = (sigmoid_loss(*inputs, backend=name) for name in ("triton", "torch"))
    torch.testing.assert_close(alone, expected)


@pytest.mark.parametrize("case", EXTREMES)
def test_logits_200_apart(case: str) -> None:
    """A tile whose rows share one shift would lose the row that lies 200 below its neighbours."""
    image, text = extreme_features(case, 40, 16)
    inputs = [image, text, torch.tensor([math.log(100.0)])]
    actual = _run(clip_loss, inputs, "triton", stash_bytes=0)
    leaves = [tensor.double().requires_grad_() for tensor in inputs]
    value = clip_loss_reference(*leaves)
    expected = [value.detach(), *torch.autograd.grad(value * 1.7, leaves)]
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one.double(), other.reshape(one.shape), rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("use_ids", [False, True])
def test_top1(use_ids: bool) -> None:
    image, text = correlated_features(ROWS, 3, dtype=torch.float32)
    scale = torch.tensor([2.66])
    ids = IDS if use_ids else None
    result = torch.empty(2)
    clip_loss(image, text, scale, pair_ids=ids, backend="triton", top1_out=result)
    expected = top1_reference(logits_matrix(image, text, scale, normalize=False), ids)
    assert 0.0 < float(expected[0]) < 1.0
    assert result[0].item() == pytest.approx(float(expected[0]))
    assert result[1].item() == pytest.approx(float(expected[1]))


def test_two_runs_are_bit_equal() -> None:
    image, text = correlated_features(ROWS, DIMENSION, dtype=torch.float16)
    inputs = [image, text, torch.tensor([4.6])]
    for one, other in zip(*[_run(clip_loss, inputs, "triton") for _ in range(2)], strict=True):
        assert torch.equal(one, other)


def _saved_bytes(stash_bytes: int) -> int:
    image, text = correlated_features(ROWS, DIMENSION, dtype=torch.float16)
    image.requires_grad_()
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        clip_loss(image, text, torch.tensor([2.66]), backend="triton", stash_bytes=stash_bytes)
    return sum(sizes.values())


def test_logits_are_kept_in_16_bits_where_they_fit() -> None:
    size = 2 * ROWS * ROWS
    strips, tiles = -(-ROWS // INTERPRETED.strip), -(-ROWS // INTERPRETED.rows)
    tops = 4 * ROWS * (strips + tiles + 1)  # what was taken off, and the exact positives
    assert _saved_bytes(size) - _saved_bytes(size - 1) == size + tops


def test_what_kept_logits_cost_in_accuracy() -> None:
    """The gradient of the scale is a sum that cancels; README.md states these bounds."""
    image, text = correlated_features(256, 64, noise=0.3, dtype=torch.float16)
    inputs = [image, text, torch.tensor([math.log(100.0)])]
    leaves = [tensor.double().requires_grad_() for tensor in inputs]
    (exact,) = torch.autograd.grad(clip_loss_reference(*leaves) * 1.7, leaves[2:])
    errors = [
        float((_run(clip_loss, inputs, "triton", stash_bytes=budget)[3].double() / exact - 1).abs())
        for budget in (0, 1 << 30)
    ]
    assert errors[0] < 2e-5 and errors[1] < 1e-3


def test_rows_in_several_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block too large for one launch is summed over launches: columns, top-1 and all."""
    image, text = correlated_features(300, 8, dtype=torch.float32)
    scale = torch.tensor([2.66])
    whole = torch.empty(2)
    one = clip_loss(image, text, scale, backend="triton", stash_bytes=0, top1_out=whole)
    monkeypatch.setattr(triton_launch, "FORWARD_LOGITS", 1)
    assert 300 > 8 * INTERPRETED.rows  # the least that a launch takes
    parts = torch.empty(2)
    many = clip_loss(image, text, scale, backend="triton", stash_bytes=0, top1_out=parts)
    torch.testing.assert_close((one, *whole), (many, *parts))


def test_virtual_rank_with_an_offset() -> None:
    """A 20 x 75 block whose rows' positives start at column 37."""
    image, text = correlated_features(ROWS, DIMENSION, dtype=torch.float32)
    block = Block(image[37:57], text, torch.tensor(14.3), offset=37)
    sums = triton_blocks.block_sums(block, tile=None)
    logits = 14.3 * math.log2(math.e) * image[37:57].double() @ text.double().T
    row = logits.mul(math.log(2.0)).logsumexp(1)
    log_sums = (sums.row.top + sums.row.total.log2()) * math.log(2.0)
    torch.testing.assert_close(log_sums.double(), row, rtol=1e-6, atol=1e-5)
    positive = logits[torch.arange(20), torch.arange(37, 57)]
    torch.testing.assert_close(sums.positive.double(), positive, rtol=1e-5, atol=1e-5)


def test_bfloat16_is_refused() -> None:
    image, text = correlated_features(8, 4, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="backend 'triton' cannot interpret bfloat16"):
        clip_loss(image, text, torch.zeros(1), backend="triton")


def test_zero_rows_stay_finite_in_float16() -> None:
    image, text = correlated_features(ROWS, DIMENSION, dtype=torch.float16)
    image[3] = 0.0
    leaf = text.clone().requires_grad_()
    clip_loss(image, leaf, torch.zeros(1), normalize=True, backend="triton").backward()
    assert leaf.grad is not None and leaf.grad.isfinite().all() and leaf.grad.abs().max() > 0
