"""Bad input is a ValueError that names the value, and the same one on every rank."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.loss import TextGather, clip_loss, sigmoid_loss
from tests.gloo import run_gloo

SCALE = torch.tensor([2.0])
BIAS = torch.tensor([-10.0])


def _features(num_rows: int = 6, dimension: int = 4, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(num_rows)
    return torch.randn(num_rows, dimension, generator=generator).to(dtype)


def _with(value: float) -> Tensor:
    features = _features()
    features[2, 1] = value
    return features


CASES: list[tuple[str, dict[str, Any]]] = [
    ("image_features has dtype torch.int64", {"image_features": torch.ones(6, 4).long()}),
    ("image_features has shape \\(4,\\)", {"image_features": torch.ones(4)}),
    ("text_features has shape \\(0, 4\\)", {"text_features": torch.ones(0, 4)}),
    ("text_features is not a tensor but <class 'list'>", {"text_features": [[1.0]]}),
    ("shape \\(6, 4\\) and text_features \\(6, 5\\)", {"text_features": _features(6, 5)}),
    ("shape \\(6, 4\\) and text_features \\(5, 4\\)", {"text_features": _features(5)}),
    (
        "dtype torch.float32 and text_features torch.float16",
        {"text_features": _features(dtype=torch.float16)},
    ),
    ("image_features has 1 non-finite values, the first nan", {"image_features": _with(torch.nan)}),
    ("text_features .* the first -inf at \\[2, 1\\]", {"text_features": _with(-torch.inf)}),
    ("logit_scale is nan", {"logit_scale": torch.tensor([torch.nan])}),
    ("logit_scale has shape \\(2,\\)", {"logit_scale": torch.ones(2)}),
    ("logit_scale has .* dtype torch.int64", {"logit_scale": torch.ones(1).long()}),
    ("logit_scale is 100.0, whose exponential over", {"logit_scale": torch.tensor([100.0])}),
    ("pair_ids have dtype torch.int32", {"pair_ids": torch.arange(6).int()}),
    ("pair_ids have shape \\(5,\\)", {"pair_ids": torch.arange(5)}),
    ("backend is 'cuda'; pass one of auto, torch, triton", {"backend": "cuda"}),
    ("tile is 0", {"tile": 0}),
    ("tile is \\(3,\\)", {"tile": (3,)}),
    ("reduce_dtype is torch.int32", {"reduce_dtype": torch.int32}),
]


@pytest.mark.parametrize(("message", "change"), CASES)
@pytest.mark.parametrize("loss", [clip_loss, sigmoid_loss])
def test_names_the_value(loss: Any, message: str, change: dict[str, Any]) -> None:
    arguments = {"image_features": _features(), "text_features": _features(), "logit_scale": SCALE}
    if loss is sigmoid_loss:
        arguments["logit_bias"] = BIAS
    loss(**arguments)
    with pytest.raises(ValueError, match=message):
        loss(**{**arguments, **change})


@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan"), "0.1", None])
def test_label_smoothing_out_of_range(value: Any) -> None:
    with pytest.raises(ValueError, match="label_smoothing is"):
        clip_loss(_features(), _features(), SCALE, label_smoothing=value)


@pytest.mark.parametrize("value", [-1, "64 MiB", None])
def test_stash_that_is_no_number_of_bytes(value: Any) -> None:
    with pytest.raises(ValueError, match=f"stash_bytes is {value!r}; pass a number of bytes"):
        clip_loss(_features(), _features(), SCALE, stash_bytes=value)


def test_bias_of_the_sigmoid_loss() -> None:
    for message, bias in (
        ("logit_bias is inf", torch.tensor([torch.inf])),
        ("logit_bias has shape \\(3,\\)", torch.zeros(3)),
        ("logit_bias is not a tensor but <class 'float'>", -10.0),
    ):
        with pytest.raises(ValueError, match=message):
            sigmoid_loss(_features(), _features(), SCALE, bias)  # type: ignore[arg-type]


def test_a_large_bias_is_no_error() -> None:
    """Only the scale is a logarithm."""
    loss = sigmoid_loss(_features(), _features(), SCALE, torch.tensor([-100.0]))
    assert loss.isfinite()


def test_triton_without_a_gpu() -> None:
    with pytest.raises(ValueError, match="backend 'triton' needs an NVIDIA GPU.*pass backend="):
        clip_loss(_features(), _features(), SCALE, backend="triton")


def test_importing_the_loss_needs_no_triton() -> None:
    program = "import sys; sys.modules['triton'] = None; import pipeline.loss as l, torch;"
    program += "x = torch.eye(4); print(float(l.clip_loss(x, x, torch.zeros(1))))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=120)
    assert run.returncode == 0 and 0.0 < float(run.stdout) < 2.0, run.stderr


def test_several_errors_come_at_once() -> None:
    with pytest.raises(ValueError, match="tile is -1.*") as error:
        clip_loss(_with(torch.inf), _features(), SCALE, tile=-1)
    assert "non-finite" in str(error.value)


def test_sigmoid_modes() -> None:
    with pytest.raises(ValueError, match="mode is 'pipeline'; pass 'gather' or 'ring'"):
        sigmoid_loss(_features(), _features(), SCALE, BIAS, mode="pipeline")
    with pytest.raises(ValueError, match="mode 'ring' gathers nothing"):
        sigmoid_loss(_features(), TextGather(_features()), SCALE, BIAS, mode="ring")


Fault = tuple[str, dict[str, Any]]  # what every rank hears, and what rank 1 passes
FAULTS: list[Fault] = [
    (
        "rows of image_features differs between ranks: 6 on rank 0, 5 on rank 1; drop",
        {"image_features": _features(5), "text_features": _features(5)},
    ),
    (
        "dimension of image_features differs between ranks: 4 on rank 0, 5 on rank 1",
        {"image_features": _features(6, 5), "text_features": _features(6, 5)},
    ),
    (
        "rank 1: image_features have shape (6, 4) and text_features (6, 5); they must be equal",
        {"text_features": _features(6, 5)},
    ),
    ("rank 1: image_features has 1 non-finite values", {"image_features": _with(torch.nan)}),
    ("rank 1: logit_scale is nan", {"logit_scale": torch.tensor([torch.nan])}),
    ("rank 1: image_features has dtype torch.int64", {"image_features": _features().long()}),
    (
        "dtype of image_features differs between ranks",
        {"image_features": _features().double(), "text_features": _features().double()},
    ),
    ("rank 1: text_features is not a tensor", {"text_features": None}),
    (
        "use of pair_ids differs between ranks: False on rank 0, True on rank 1",
        {"pair_ids": torch.arange(6)},
    ),
    ("rank 1: backend 'triton' needs an NVIDIA GPU", {"backend": "triton"}),
    ("rank 1: backend is '\\u20ac", {"backend": "\u20ac" * 5000}),  # the note has 4 KiB
    (
        "gradient of text_features differs between ranks: False on rank 0, True on",
        {"text_features": _features().requires_grad_()},
    ),
    ("reduce_dtype differs between ranks: None on", {"reduce_dtype": torch.bfloat16}),
]
OWN_FAULTS: dict[Any, list[Fault]] = {
    clip_loss: [
        (
            "label_smoothing differs between ranks: 0.0 on rank 0, 0.1 on rank 1",
            {"label_smoothing": 0.1},
        ),
        ("rank 1: label_smoothing is 'much'", {"label_smoothing": "much"}),
        ("rank 1: top1_out holds two numbers", {"top1_out": torch.empty(3)}),
        ("top1_out differs between ranks: False on rank 0", {"top1_out": torch.empty(2)}),
    ],
    sigmoid_loss: [
        ("mode differs between ranks: gather on rank 0, ring on rank 1", {"mode": "ring"}),
        ("rank 1: logit_bias is nan", {"logit_bias": torch.tensor([torch.nan])}),
    ],
}


def _messages(rank: int, world_size: int, loss: Any, faults: list[dict[str, Any]]) -> list[str]:
    """What a rank hears of each of rank 1's faults, one call after the other."""
    messages = []
    for fault in faults:
        arguments = {"image_features": _features(), "text_features": _features()}
        arguments |= {
            "logit_scale": SCALE,
            **({"logit_bias": BIAS} if loss is sigmoid_loss else {}),
        }
        try:
            loss(**(arguments | (fault if rank == 1 else {})))
            messages.append("no error")
        except ValueError as error:
            messages.append(str(error))
    return messages


@pytest.mark.parametrize("loss", [clip_loss, sigmoid_loss])
def test_every_rank_raises_alike_and_goes_on(loss: Any) -> None:
    faults = [*FAULTS, *OWN_FAULTS[loss], ("no error", {})]
    given = [fault for _, fault in faults]
    first, second = run_gloo(_messages, 2, loss, given, timeout_s=60)
    assert first == second
    for (message, _), heard in zip(faults, first, strict=True):
        assert message in heard


def _outside_the_group(rank: int, world_size: int) -> str:
    group = torch.distributed.new_group([0])
    try:
        return f"{float(clip_loss(_features(), _features(), SCALE, group=group)):.0f}"
    except ValueError as error:
        return str(error)


def test_a_rank_outside_the_group_is_told() -> None:
    member, outsider = run_gloo(_outside_the_group, 2, timeout_s=60)
    assert float(member) >= 0.0
    assert "this process is not in the given process group" in outsider


def _bad_early_gather(rank: int, world_size: int) -> str:
    try:
        TextGather(_with(torch.nan) if rank == 0 else _features())
    except ValueError as error:
        return str(error)
    return "no error"


def test_early_gather_raises_on_every_rank() -> None:
    first, second = run_gloo(_bad_early_gather, 2, timeout_s=60)
    assert "rank 0: text_features has 1 non-finite values" in first
    assert first == second
