"""The loss on a CUDA device: Triton kernels in the dtypes that the interpreter cannot run."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.loss import clip_loss, sigmoid_loss, tiled
from pipeline.loss.backends import choose_backend
from pipeline.loss.checks import InputReport
from pipeline.loss.reference import (
    clip_loss_reference,
    logits_matrix,
    sigmoid_loss_reference,
    top1_reference,
)
from tests.pipeline.loss.features import correlated_features

triton_blocks = pytest.importorskip("pipeline.loss.triton_blocks")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

# relative Frobenius error of gradients against float64 on the same, rounded features: G and the
# returned gradient are rounded to the dtype
TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 2e-5}


def _inputs(num_rows: int, dimension: int, dtype: torch.dtype, scale: float) -> list[Tensor]:
    image, text = correlated_features(num_rows, dimension, noise=0.9, dtype=dtype)
    return [image.cuda(), text.cuda(), torch.tensor([math.log(scale)], device="cuda")]


def _gradients(loss: Any, inputs: list[Tensor], **options: Any) -> list[Tensor]:
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    value = loss(*leaves, **options)
    return [value.detach(), *torch.autograd.grad(value * 16.0, leaves)]


def _assert_close(actual: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    assert actual[0].dtype == torch.float32
    torch.testing.assert_close(actual[0].double(), expected[0].squeeze(), rtol=2e-4, atol=1e-5)
    for one, other in zip(actual[1:], expected[1:], strict=True):
        assert one.isfinite().all()
        error = (one.double() - other.double()).norm() / other.double().norm().clamp_min(1e-6)
        assert error <= tolerance


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
@pytest.mark.parametrize("shape", [(1024, 512), (1000, 768), (333, 100)])
@pytest.mark.parametrize("keep", [False, True])
def test_clip_loss(dtype: torch.dtype, scale: float, shape: tuple[int, int], keep: bool) -> None:
    inputs = _inputs(*shape, dtype, scale)
    options = {"backend": "triton", "stash_bytes": 1 << 30 if keep else 0}
    actual = _gradients(clip_loss, inputs, **options)
    expected = _gradients(clip_loss_reference, [tensor.double() for tensor in inputs])
    _assert_close(actual, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_normalised_with_ids_and_smoothing(dtype: torch.dtype) -> None:
    image, text, scale = _inputs(1000, 512, dtype, 50.0)
    inputs = [image * 9.0, text * 0.4, scale]
    options: dict[str, Any] = {"normalize": True, "label_smoothing": 0.1}
    options["pair_ids"] = torch.arange(1000, device="cuda") % 700
    actual = _gradients(clip_loss, inputs, backend="triton", **options)
    options["pair_ids"] = options["pair_ids"].cpu()
    wide = [tensor.double().cpu() for tensor in inputs]
    expected = [tensor.cuda() for tensor in _gradients(clip_loss_reference, wide, **options)]
    _assert_close(actual, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", ["gather", "ring"])
def test_sigmoid_loss(dtype: torch.dtype, mode: str) -> None:
    inputs = [*_inputs(1000, 512, dtype, 10.0), torch.tensor([-10.0], device="cuda")]
    actual = _gradients(sigmoid_loss, inputs, backend="triton", mode=mode)
    expected = _gradients(sigmoid_loss_reference, [tensor.double() for tensor in inputs])
    _assert_close(actual, expected, TOLERANCE[dtype])


def test_torch_backend_on_the_device() -> None:
    inputs = _inputs(700, 64, torch.float64, 14.3)
    actual = _gradients(clip_loss, inputs, tile=(128, 256))
    expected = _gradients(clip_loss_reference, inputs)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other.reshape(one.shape), rtol=1e-9, atol=1e-9)


def test_auto_is_triton_for_16_bits_only() -> None:
    for dtype, expected in (
        (torch.bfloat16, triton_blocks),
        (torch.float16, triton_blocks),
        (torch.float32, tiled),
    ):
        features = torch.ones(2, 2, dtype=dtype, device="cuda")
        assert choose_backend("auto", features, InputReport()) is expected


def test_two_runs_are_bit_equal() -> None:
    inputs = _inputs(5000, 512, torch.bfloat16, 100.0)
    for options in ({"stash_bytes": 0}, {"pair_ids": torch.arange(5000, device="cuda") // 2}):
        runs = [_gradients(clip_loss, inputs, **options) for _ in range(2)]
        for one, other in zip(*runs, strict=True):
            assert torch.equal(one, other)


def test_no_host_synchronisation_without_checks() -> None:
    leaves = [tensor.requires_grad_() for tensor in _inputs(2048, 512, torch.bfloat16, 14.3)]
    ids = torch.arange(2048, device="cuda")
    clip_loss(*leaves, check_inputs=False, pair_ids=ids).backward()  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        clip_loss(*leaves, check_inputs=False, pair_ids=ids).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_memory_is_flat() -> None:
    extra = []
    for num_rows in (16384, 32768):
        image, text = (
            torch.nn.functional.normalize(torch.randn(num_rows, 512, device="cuda"), dim=1)
            .bfloat16()
            .requires_grad_()
            for _ in range(2)
        )
        scale = torch.tensor([2.66], device="cuda", requires_grad=True)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        clip_loss(image, text, scale, stash_bytes=0).backward()
        extra.append(torch.cuda.max_memory_allocated() - before)
    assert extra[1] < 2.2 * extra[0] and extra[1] < 2 * 32768**2 / 2


def test_top1() -> None:
    image, text, scale = _inputs(1000, 16, torch.bfloat16, 14.3)
    result = torch.empty(2, device=image.device)
    clip_loss(image, text, scale, top1_out=result)
    logits = logits_matrix(image.double(), text.double(), scale.double(), normalize=False)
    expected = top1_reference(logits)
    assert float(result[0]) == pytest.approx(float(expected[0]), abs=2e-3)
    assert float(result[1]) == pytest.approx(float(expected[1]), abs=2e-3)
