"""The sigmoid loss of several real processes, gathered or in a ring, is that of the whole batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.loss import TextGather, sigmoid_loss
from pipeline.loss.reference import sigmoid_loss_reference
from tests.gloo import ChildError, run_gloo
from tests.pipeline.loss.features import correlated_features

ROWS_PER_RANK = 7
DIMENSION = 5
IDS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4, 6, 2, 6, 4, 3, 3, 8, 3]
NAMES = ("image", "text", "log_scale", "bias")


def _leaves(world_size: int, log_scale: float) -> dict[str, Tensor]:
    image, text = correlated_features(world_size * ROWS_PER_RANK, DIMENSION)
    lengths = torch.linspace(0.5, 3.0, len(image), dtype=torch.float64)[:, None]
    scalars = torch.tensor([[log_scale], [-3.0]], dtype=torch.float64)
    leaves = (image * lengths, text * lengths.flip(0), scalars[0], scalars[1])
    return dict(zip(NAMES, leaves, strict=True))


def _gradients(loss: Tensor, leaves: list[Tensor]) -> dict[str, Tensor]:
    gradients = torch.autograd.grad(2.5 * loss, leaves)
    return {"loss": loss.detach(), **dict(zip(NAMES, gradients, strict=True))}


def _one_rank(
    rank: int,
    world_size: int,
    log_scale: float,
    mode: str,
    use_ids: bool,
    normalize: bool,
    tile: Any,
) -> dict[str, Tensor]:
    mine = slice(rank * ROWS_PER_RANK, (rank + 1) * ROWS_PER_RANK)
    every = _leaves(world_size, log_scale)
    local = [every["image"][mine], every["text"][mine], every["log_scale"], every["bias"]]
    leaves = [leaf.clone().requires_grad_() for leaf in local]
    ids = torch.tensor(IDS[: world_size * ROWS_PER_RANK])[mine] if use_ids else None
    text = TextGather(leaves[1]) if mode == "early" else leaves[1]
    loss = sigmoid_loss(
        leaves[0],
        text,
        leaves[2],
        leaves[3],
        mode="ring" if mode == "ring" else "gather",
        pair_ids=ids,
        normalize=normalize,
        tile=tile,
    )
    return _gradients(loss, leaves)


@pytest.mark.parametrize("mode", ["gather", "ring"])
@pytest.mark.parametrize(
    ("world_size", "log_scale", "use_ids", "normalize"),
    [
        (1, 4.6, True, True),
        (2, 2.3, False, False),
        (2, 2.3, True, True),
        (4, 0.0, True, False),
        (4, 2.66, True, True),
        (4, 4.6, False, True),
    ],
)
def test_equals_reference_on_concatenated_batch(
    world_size: int, log_scale: float, use_ids: bool, normalize: bool, mode: str
) -> None:
    arguments = (log_scale, mode, use_ids, normalize, (3, 4))
    results = run_gloo(_one_rank, world_size, *arguments)
    _check(world_size, results, log_scale, use_ids, normalize)


def test_text_gathered_early() -> None:
    results = run_gloo(_one_rank, 2, 2.3, "early", True, True, 4)
    _check(2, results, 2.3, True, True)


def _check(
    world_size: int,
    results: list[dict[str, Tensor]],
    log_scale: float,
    use_ids: bool,
    normalize: bool,
) -> None:
    leaves = [leaf.requires_grad_() for leaf in _leaves(world_size, log_scale).values()]
    ids = torch.tensor(IDS[: len(leaves[0])]) if use_ids else None
    loss = sigmoid_loss_reference(*leaves, normalize=normalize, pair_ids=ids)
    expected = _gradients(loss, leaves)
    for name in expected:
        parts = torch.stack([result[name] for result in results])
        average = parts.flatten(0, 1) / world_size if name in ("image", "text") else parts.mean(0)
        wanted = expected[name].reshape(average.shape)
        torch.testing.assert_close(average, wanted, rtol=1e-10, atol=1e-10)


def _unequal_upstream(rank: int, world_size: int) -> None:
    leaves = [leaf[:ROWS_PER_RANK].clone() for leaf in _leaves(world_size, 2.3).values()]
    leaves[0].requires_grad_()
    loss = sigmoid_loss(leaves[0], leaves[1], leaves[2], leaves[3], mode="ring")
    (loss * (1.0 + rank)).backward()


def test_ring_refuses_unequal_upstream_gradients() -> None:
    with pytest.raises(ChildError, match="upstream gradient of a ring loss differs between ranks"):
        run_gloo(_unequal_upstream, 2)


def _two_runs(rank: int, world_size: int, mode: str) -> bool:
    arguments = (2.3, mode, True, True, (3, 4))
    first, second = (_one_rank(rank, world_size, *arguments) for _ in range(2))
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("mode", ["gather", "ring"])
def test_two_runs_are_bit_equal(mode: str) -> None:
    assert run_gloo(_two_runs, 2, mode) == [True, True]
