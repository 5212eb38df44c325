"""Several real processes compute what one process computes on the concatenated batch: values and
all gradients."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.loss import TextGather, clip_loss
from pipeline.loss.reference import clip_loss_reference, logits_matrix, top1_reference
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
    ids = [7 * row % 13 for row in range(2 * ROWS_PER_RANK)]  # repeated within and across ranks
    results = run_gloo(_one_rank, 2, 2.66, 6, ids, early, options)
    _check(2, results, _expected(2, 2.66, ids, options))


def test_ids_and_smoothing_on_four_ranks() -> None:
    ids = [7 * row % 13 for row in range(4 * ROWS_PER_RANK)]
    options = {"normalize": True, "label_smoothing": 0.1}
    results = run_gloo(_one_rank, 4, 4.6, (3, 8), ids, False, options)
    _check(4, results, _expected(4, 4.6, ids, options))


def test_recomputed_and_unchecked() -> None:
    ours = {"stash_bytes": 0, "check_inputs": False}
    results = run_gloo(_one_rank, 2, 4.6, (3, 8), None, False, ours)
    _check(2, results, _expected(2, 4.6, None, {}))


def _text_gradient(rank: int, world_size: int, reduce_dtype: torch.dtype | None) -> Tensor:
    image, text = correlated_features(world_size * ROWS_PER_RANK, DIMENSION, dtype=torch.float32)
    mine = slice(rank * ROWS_PER_RANK, (rank + 1) * ROWS_PER_RANK)
    leaf = text[mine].clone().requires_grad_()
    scale = torch.tensor([2.66])
    clip_loss(image[mine], leaf, scale, normalize=True, reduce_dtype=reduce_dtype).backward()
    assert leaf.grad is not None
    return leaf.grad


def test_text_gradient_may_travel_in_bfloat16() -> None:
    full = torch.cat(run_gloo(_text_gradient, 2, None))
    half = torch.cat(run_gloo(_text_gradient, 2, torch.bfloat16))
    assert half.dtype == torch.float32 and not torch.equal(half, full)
    assert (half - full).norm() < 2**-7 * full.norm()  # three roundings of 2^-9: two parts, one sum


def _top1(rank: int, world_size: int) -> tuple[float, float]:
    image, text = correlated_features(world_size * ROWS_PER_RANK, 3)
    mine = slice(rank * ROWS_PER_RANK, (rank + 1) * ROWS_PER_RANK)
    scale = torch.tensor([2.66])
    ids = torch.arange(world_size * ROWS_PER_RANK)[mine] // 3
    result = torch.empty(2)
    clip_loss(image[mine], text[mine], scale, pair_ids=ids, top1_out=result)
    return float(result[0]), float(result[1])


def test_top1_counts_negatives_of_all_ranks() -> None:
    hits = torch.tensor(run_gloo(_top1, 4)).mean(0)
    image, text = correlated_features(4 * ROWS_PER_RANK, 3)
    logits = logits_matrix(image, text, torch.tensor([2.66]), normalize=False)
    expected = top1_reference(logits, torch.arange(4 * ROWS_PER_RANK) // 3)
    assert hits.tolist() == pytest.approx([float(part) for part in expected])
    assert 0.0 < float(hits[0]) < 1.0 and 0.0 < float(hits[1]) < 1.0


def _edge_inputs(world_size: int, case: str) -> tuple[Tensor, Tensor]:
    num_rows = world_size * ROWS_PER_RANK
    if case == "loss near zero":
        return torch.eye(num_rows), torch.eye(num_rows)
    image, _ = correlated_features(1, DIMENSION, dtype=torch.float32)
    rows = image.expand(num_rows, DIMENSION).contiguous()
    # logits of 200 between the ranks: rank 0's images are opposite to every text
    signs = torch.ones(num_rows, 1)
    signs[: ROWS_PER_RANK if case == "opposite ranks" else 0] = -1.0
    return rows * signs, rows


def _edge(rank: int, world_size: int, case: str) -> tuple[dict[str, Tensor], bool]:
    """Results in float32, and whether a second run repeats them bit for bit."""
    image, text = _edge_inputs(world_size, case)
    mine = slice(rank * ROWS_PER_RANK, (rank + 1) * ROWS_PER_RANK)
    runs = []
    for _ in range(2):
        leaves = [side[mine].clone().requires_grad_() for side in (image, text)]
        scale = torch.tensor([math.log(100.0)], requires_grad=True)
        loss = clip_loss(leaves[0], leaves[1], scale, tile=(4, 5))
        loss.backward()
        runs.append(_results(loss, leaves[0], leaves[1], scale))
    return runs[0], all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


@pytest.mark.parametrize("case", ["equal rows", "opposite ranks", "loss near zero"])
def test_edges_at_scale_100(case: str) -> None:
    results, repeated = zip(*run_gloo(_edge, 2, case), strict=True)
    assert all(repeated)
    image, text = (side.double().requires_grad_() for side in _edge_inputs(2, case))
    scale = torch.tensor([math.log(100.0)], dtype=torch.float64, requires_grad=True)
    value = clip_loss_reference(image, text, scale)
    value.backward()
    expected = _results(value, image, text, scale)
    for name, tolerance in (("image", 2e-5), ("text", 2e-5), ("scale", 2e-5), ("loss", 1e-5)):
        parts = torch.stack([result[name] for result in results]).double()
        got = parts.flatten(0, 1) / 2 if name in ("image", "text") else parts.mean(0)
        wanted = expected[name].reshape(got.shape)
        torch.testing.assert_close(got, wanted, rtol=2e-4, atol=tolerance)
