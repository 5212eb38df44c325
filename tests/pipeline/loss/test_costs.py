"""What the README's cost table says: matrix products, what travels, and the largest tensor."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.loss import clip_loss, collectives, sigmoid_loss
from tests.gloo import run_gloo
from tests.pipeline.loss.features import correlated_features

ROWS, DIMENSION = 16, 16  # of a rank
PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_")


class _Work(TorchDispatchMode):
    """Counts multiplications of matrix products, and notes the largest tensor that appears."""

    def __init__(self) -> None:
        super().__init__()
        self.multiplications = 0
        self.largest = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.name().split(".")[0] in PRODUCTS:
            a, b = args[-2:]
            self.multiplications += a.shape[0] * a.shape[1] * b.shape[1]
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.largest = max([self.largest, *sizes])
        return result


def _leaves(
    loss: Any, num_rows: int = ROWS, *, first: int = 0, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """Local features of a rank whose rows start at ``first``, and the scalars."""
    mine = slice(first, first + ROWS)
    sides = [side[mine] for side in correlated_features(num_rows, DIMENSION, dtype=dtype)]
    scalars = [torch.tensor([2.0]), *([torch.tensor([-10.0])] if loss is sigmoid_loss else [])]
    return [leaf.clone().requires_grad_() for leaf in (*sides, *scalars)]


@pytest.mark.parametrize(
    ("loss", "options", "forward", "backward"),
    [
        (clip_loss, {"stash_bytes": 0}, 1, 3),
        (clip_loss, {}, 1, 2),  # logits kept
        (clip_loss, {"stash_bytes": 0, "top1_out": torch.empty(2)}, 1, 3),  # no second pass
        (clip_loss, {"pair_ids": torch.arange(ROWS) // 2, "label_smoothing": 0.1}, 1, 3),
        (sigmoid_loss, {}, 3, 0),
        (sigmoid_loss, {"mode": "ring"}, 3, 0),
    ],
)
def test_matrix_products(loss: Any, options: dict[str, Any], forward: int, backward: int) -> None:
    unit = ROWS * ROWS * DIMENSION
    with _Work() as work:
        result = loss(*_leaves(loss), tile=(4, 8), **options)
    assert work.multiplications == forward * unit
    with _Work() as work:
        result.backward()
    assert work.multiplications == backward * unit


@pytest.mark.parametrize("loss", [clip_loss, sigmoid_loss])
def test_no_tensor_of_all_logits_ever_exists(loss: Any) -> None:
    image, text = correlated_features(512, 4, dtype=torch.float32)
    leaves = [image.requires_grad_(), text.requires_grad_(), *_leaves(loss)[2:]]
    options: dict[str, Any] = {"stash_bytes": 0} if loss is clip_loss else {}
    with _Work() as work:
        loss(
            *leaves, tile=(16, 32), normalize=True, pair_ids=torch.arange(512), **options
        ).backward()
    assert work.largest == 512 * 4  # the features, not 512 x 512


def _largest(rank: int, world_size: int, mode: str) -> int:
    leaves = _leaves(sigmoid_loss, world_size * ROWS, first=rank * ROWS)
    with _Work() as work:
        sigmoid_loss(*leaves, mode=mode, tile=8, check_inputs=False).backward()
    return work.largest


def test_the_ring_never_holds_the_features_of_all_ranks() -> None:
    assert run_gloo(_largest, 2, "ring") == [ROWS * DIMENSION] * 2
    assert run_gloo(_largest, 2, "gather") == [2 * ROWS * DIMENSION] * 2


def _travels(
    rank: int, world_size: int, loss: Any, options: dict[str, Any]
) -> list[tuple[str, str, int]]:
    """Collective, dtype and elements of all that travels, in order."""
    notes: list[tuple[str, str, int]] = []

    def noting(module: Any, attribute: str, name: str) -> None:
        function = getattr(module, attribute)

        def wrapper(*tensors: Any, **arguments: Any) -> Any:
            whole = max(tensors, key=lambda tensor: tensor.numel())
            notes.append((name, str(whole.dtype), whole.numel()))
            return function(*tensors, **arguments)

        setattr(module, attribute, wrapper)

    noting(collectives, "_all_gather", "gather")
    noting(collectives, "_reduce_scatter", "scatter")
    noting(dist, "all_reduce", "reduce")
    leaves = _leaves(loss, world_size * ROWS, first=rank * ROWS, dtype=torch.bfloat16)
    loss(*leaves, check_inputs=False, **options).backward()
    return notes


@pytest.mark.parametrize("reduce_dtype", [None, torch.bfloat16])
def test_only_text_features_travel(reduce_dtype: torch.dtype | None) -> None:
    """In the towers' dtype; with them go two numbers a column, and their gradient comes home."""
    columns = 2 * ROWS
    expected = [
        ("gather", "torch.bfloat16", columns * DIMENSION),
        ("reduce", "torch.float32", columns),
        ("reduce", "torch.float32", columns),
        ("scatter", str(reduce_dtype or torch.float32), columns * DIMENSION),
    ]
    assert run_gloo(_travels, 2, clip_loss, {"reduce_dtype": reduce_dtype}) == [expected] * 2
    both_ends = [expected[0], expected[-1]]
    assert run_gloo(_travels, 2, sigmoid_loss, {"reduce_dtype": reduce_dtype}) == [both_ends] * 2
