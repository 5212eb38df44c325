"""Several real processes compute what one process computes on the concatenated batch: values and
all gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.loss import TextGather, clip_loss
from pipeline.loss.reference import clip_loss_reference
from tests.gloo import run_gloo
from tests.pipeline.loss.features import correlated_features

ROWS_PER_RANK = 11
DIMENSION = 7


def _batch(world_size: int, normalize: bool) -> tuple[Tensor, Tensor]:
    image, text = correlated_features(world_size * ROWS_PER_RANK, DIMENSION)
    if normalize:  # raw tower outputs: rows of very different length
        lengths = torch.linspace(0.1, 30.0, len(image), dtype=torch.float64)[:, None]
        image, text = image * lengths, text * lengths.flip(0)
    return image, text


def _results(loss: Tensor, image: Tensor, text: Tensor, scale: Tensor) -> dict[str, Tensor]:
    assert image.grad is not None and text.grad is not None and scale.grad is not None
    return {"loss": loss.detach(), "image": image.grad, "text": text.grad, "scale": scale.grad}


def _one_rank(
    rank: int,
    world_size: int,
    log_scale: float,
    tile: Any,
    ids: list[int] | None,
    early: bool,
    options: dict[str, Any],
) -> dict[str, Tensor]:
    image, text = _batch(world_size, options.get("normalize", False))
    mine = slice(rank * ROWS_PER_RANK, (rank + 1) * ROWS_PER_RANK)
    image = image[mine].clone().requires_grad_()
    text = text[mine].clone().requires_grad_()
    scale = torch.tensor([log_scale], dtype=torch.float64, requires_grad=True)
    pair_ids = None if ids is None else torch.tensor(ids)[mine]
    passed = TextGather(text) if early else text
    loss = clip_loss(image, passed, scale, pair_ids=pair_ids, tile=tile, **options)
    loss.backward()
    return _results(loss, image, text, scale)


def _expected(
    world_size: int, log_scale: float, ids: list[int] | None, options: dict[str, Any]
) -> dict[str, Tensor]:
    image, text = _batch(world_size, options.get("normalize", False))
    image.requires_grad_()
    text.requires_grad_()
    scale = torch.tensor([log_scale], dtype=torch.float64, requires_grad=True)
    pair_ids = None if ids is None else torch.tensor(ids)
    loss = clip_loss_reference(image, text, scale, pair_ids=pair_ids, **options)
    loss.backward()
    return _results(loss, image, text, scale)


def _check(world_size: int, results: list[dict[str, Tensor]], expected: dict[str, Tensor]) -> None:
    def close(actual: Tensor, wanted: Tensor) -> None:
        torch.testing.assert_close(actual, wanted, rtol=1e-10, atol=1e-10)

    close(torch.stack([result["loss"] for result in results]).mean(), expected["loss"].squeeze())
    # DDP and DeepSpeed divide summed gradients by the number of ranks; features are not parameters,
    # so do it here
    for side in ("image", "text"):
        close(torch.cat([result[side] for result in results]) / world_size, expected[side])
    close(torch.stack([result["scale"] for result in results]).mean(0), expected["scale"])


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("log_scale", [0.0, 2.66, 4.6])
def test_equals_reference_on_concatenated_batch(world_size: int, log_scale: float) -> None:
    results = run_gloo(_one_rank, world_size, log_scale, (4, 5), None, False, {})
    _check(world_size, results, _expected(world_size, log_scale, None, {}))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"normalize": True},
        {"label_smoothing": 0.1},
        {"normalize": True, "label_smoothing": 0.3},
    ],
)
@pytest.mark.parametrize("early", [False, True])
def test_options_on_two_ranks(options: dict[str, Any], early: bool) -> None:
    ids = [
        3,
        1,
        4,
        1,
        5,
        9,
        2,
        6,
        5,
        3,
        5,
        8,
        9,
        7,
        9,
        3,
        2,
        3,
        8,
        4,
        6,
        2,
    ]  # repeated within and across ranks
    results = run_gloo(_one_rank, 2, 2.66, 6, ids, early, options)
    _check(2, results, _expected(2, 2.66, ids, options))
