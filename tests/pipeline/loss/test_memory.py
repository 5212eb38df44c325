"""Nothing of size n x N is kept, and nothing of that size ever exists."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.loss import clip_loss, sigmoid_loss
from pipeline.loss.clip_loss import STASH_BYTES
from tests.gloo import run_gloo
from tests.pipeline.loss.features import correlated_features

DIMENSION = 16


def _saved_bytes(loss: Any, num_rows: int, **options: Any) -> int:
    image, text = correlated_features(num_rows, DIMENSION, dtype=torch.float32)
    arguments = [image.requires_grad_(), text.requires_grad_(), torch.tensor([2.0])]
    if loss is sigmoid_loss:
        arguments.append(torch.tensor([-10.0]))
    storages: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss(*arguments, **options)
    assert storages
    return sum(storages.values())


@pytest.mark.parametrize(
    ("loss", "options", "per_row"),
    [
        # image, text, tops and totals of rows and columns
        (clip_loss, {}, 2 * DIMENSION + 4),
        (clip_loss, {"normalize": True}, 2 * DIMENSION + 6),
        # and two int32 labels and a weight; labels of one rank are one tensor
        (clip_loss, {"pair_ids": torch.arange(512)}, 2 * DIMENSION + 6),
        # image, and both gradients, which are made in the forward pass
        (sigmoid_loss, {}, 3 * DIMENSION),
        (sigmoid_loss, {"mode": "ring"}, 4 * DIMENSION),
    ],
)
def test_saved_for_backward(loss: Any, options: dict[str, Any], per_row: int) -> None:
    extra = {"stash_bytes": 0} if loss is clip_loss else {}
    saved = _saved_bytes(loss, 512, **options, **extra)
    assert saved == 4 * 512 * per_row + _scalars(loss)


def _scalars(loss: Any) -> int:
    """The scale, and for the sigmoid loss the two summed gradients."""
    return 4 if loss is clip_loss else 12


def test_kept_logits_stay_within_their_budget() -> None:
    size = 4 * 512 * 512
    assert _saved_bytes(clip_loss, 512, stash_bytes=size) > size
    assert _saved_bytes(clip_loss, 512, stash_bytes=size - 1) < size / 4
    assert STASH_BYTES == 4 * 4096**2  # the default: at most 64 MiB, whatever the batch


def _saved_on_a_rank(rank: int, world_size: int, loss: Any, options: dict[str, Any]) -> int:
    return _saved_bytes(loss, 64, **options)


def test_the_ring_holds_no_gathered_features() -> None:
    features = 4 * 64 * DIMENSION
    ring = run_gloo(_saved_on_a_rank, 4, sigmoid_loss, {"mode": "ring"})
    gathered = run_gloo(_saved_on_a_rank, 4, sigmoid_loss, {})
    assert ring == [4 * features + 12] * 4  # image, text, and a gradient of each
    assert gathered == [6 * features + 12] * 4  # image, its gradient, that of all 4 n texts


MEASURE = """
import sys, torch
from pipeline.loss import clip_loss, sigmoid_loss
from tests.benchmarks.peak_memory import peak_extra_bytes
from tests.pipeline.loss.features import correlated_features
torch.set_num_threads(1)
def measure(num_rows):
    image, text = correlated_features(num_rows, 64, dtype=torch.float32)
    scale = torch.tensor([2.0], requires_grad=True)
    image.requires_grad_(); text.requires_grad_()
    def step():
        if sys.argv[1] == "clip":
            clip_loss(image, text, scale, stash_bytes=0, tile=(256, 1024)).backward()
        else:
            sigmoid_loss(image, text, scale, torch.tensor([-10.0]), tile=(256, 1024)).backward()
    return peak_extra_bytes(step)
measure(256)
print(*[measure(num_rows) for num_rows in (1024, 2048, 4096, 8192)])
"""


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["clip", "sigmoid"])
def test_peak_memory_grows_with_n_and_not_with_n_squared(loss: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, loss], capture_output=True, text=True, timeout=300
    )
    if "clear_refs" in run.stderr or "/proc" in run.stderr:
        pytest.skip("the high-water mark of this process cannot be reset")
    assert run.returncode == 0, run.stderr
    peaks = [int(word) for word in run.stdout.split()]
    tiles = 2 * 4 * 256 * 1024
    for num_rows, peak in zip((1024, 2048, 4096, 8192), peaks, strict=True):
        # prepared image, two gradients and what autograd hands out, of (n, 64) each; 8 MiB of slack
        assert peak < tiles + 6 * 4 * 64 * num_rows + 8 * 2**20, (num_rows, peaks)
    assert peaks[-1] < 4 * 8192**2 / 8  # one float32 logit matrix would be 256 MiB
