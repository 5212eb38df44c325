"""What one rank computes: the block of logits of its n image rows against all N text columns.

The two device-specific modules (``tiled``: plain torch, ``triton_blocks``) implement the same
functions over these types; gathering, combining and autograd never look at the device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import torch
from torch import Tensor

Tile = tuple[int, int]
EPS = 1e-12  # of torch.nn.functional.normalize


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    """Sums are float32, or float64 where the features are (gradcheck)."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@dataclass(frozen=True)
class Block:
    """Inputs of one n x N block of logits ``l_ij = scale * a_i * b_j * <x_i, y_j>``.

    ``x`` is (n, d) local image features, ``y`` is (N, d) gathered text features, both in their own
    dtype. ``scale`` is the exponentiated logit scale, 0-dim, in the accumulator dtype, as are the
    inverse norms a (n,) and b (N,), which are None when features come normalised. Column ``j`` is a
    positive of row ``i`` when ``y_labels[j] == x_labels[i]`` (int32); without labels, when
    ``j == offset + i``. ``positive_weight`` (n,) is one over the number of positives of each row
    (None: one).
    """

    x: Tensor
    y: Tensor
    scale: Tensor
    offset: int
    x_inverse_norm: Tensor | None = None
    y_inverse_norm: Tensor | None = None
    x_labels: Tensor | None = None
    y_labels: Tensor | None = None
    positive_weight: Tensor | None = None

    @property
    def accumulator(self) -> torch.dtype:
        return accumulator_dtype(self.x.dtype)

    def tensors(self) -> list[Tensor | None]:
        """Every tensor of the block, for ``save_for_backward``."""
        return [getattr(self, field.name) for field in fields(self) if field.name != "offset"]

    @staticmethod
    def restore(tensors: Sequence[Any], offset: int) -> Block:
        """The block that ``tensors()`` came from."""
        names = [field.name for field in fields(Block) if field.name != "offset"]
        return Block(offset=offset, **dict(zip(names, tensors, strict=True)))


@dataclass
class BestLogits:
    """Largest logit, in base 2, of the positives and negatives of each row (n,) and column (N,).

    They serve comparisons only; -inf where there is none.
    """

    row_positive: Tensor
    row_negative: Tensor
    column_positive: Tensor
    column_negative: Tensor


@dataclass
class LineSums:
    """Sums of exp(logit) over lines (rows or columns) of a block, each as ``total * 2 ** top``.

    ``top`` is the line's largest logit in base 2, bit for bit. Only so is the loss of a positive
    far above its negatives exact: a logarithm of the sum is rounded to 8e-6 near 100, while
    ``top - positive`` is 0 there and ``total`` is 1 plus what the negatives add.
    """

    top: Tensor
    total: Tensor


@dataclass
class BlockSums:
    """Forward result of a block, all in the accumulator dtype.

    ``row`` (n,) and ``column`` (N,) are sums over the block's own columns and rows; ``positive``
    (n,) is the mean logit, in base 2, of each row's positives. ``kept`` is what the backend wants
    back in ``block_grad`` to spare it the matrix product; empty if it was not asked to keep.
    """

    row: LineSums
    column: LineSums
    positive: Tensor
    best: BestLogits | None = None
    kept: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class SavedSums:
    """What the backward has of the forward: sums over all ranks, and what the backend kept."""

    row: LineSums
    column: LineSums
    kept: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Wanted:
    """The feature gradients to compute, of a block's x and y; the scalars' come in any case."""

    x: bool = True
    y: bool = True


@dataclass
class BlockGradient:
    """Backward result of a block for ``G_ij``, the derivative of the objective by the logit l_ij.

    ``x`` (n, d) is ``sum_j G_ij a_i b_j y_j`` and ``y`` (N, d) is ``sum_i G_ij a_i b_j x_i``, with
    a and b the inverse norms: the gradient by the raw features up to the factor ``scale`` and the
    projection of the normalisation. ``log_scale`` and ``bias`` are the 0-dim sums of ``G_ij l_ij``
    (the logit without its bias) and ``G_ij``. All in the accumulator dtype; ``x`` and ``y`` are
    None where they were not asked for.
    """

    x: Tensor | None
    y: Tensor | None
    log_scale: Tensor
    bias: Tensor | None = None


class BlockFunctions(Protocol):
    """What a backend module provides. ``tile`` is rows and columns of its tiles, None its own."""

    def kept_logit_bytes(self, dtype: torch.dtype) -> int:
        """Bytes a logit takes when ``block_sums`` keeps it, for features of ``dtype``."""

    def block_sums(
        self, block: Block, *, tile: Tile | None, want_best: bool, keep_logits: bool
    ) -> BlockSums:
        """Row and column sums of exponentials and the positives' logits."""

    def block_grad(
        self,
        block: Block,
        sums: SavedSums,
        wanted: Wanted,
        tile: Tile | None,
        label_smoothing: float,
    ) -> BlockGradient:
        """G_ij = exp(l_ij) / R_i + exp(l_ij) / C_j - 2 (1 - e) t_ij - 2 e / N.

        t_ij is ``positive_weight`` at positives, R and C the sums over all ranks, e the label
        smoothing.
        """

    def block_sigmoid(
        self, block: Block, bias: Tensor, wanted: Wanted | None, tile: Tile | None
    ) -> tuple[Tensor, BlockGradient | None]:
        """Sum of softplus(z_ij), with z the logit plus bias, negated at positives.

        Its gradient, G_ij = sigmoid(z_ij), negated at positives, is made in the same pass, unless
        ``wanted`` is None.
        """


def tile_ranges(shape: Tile, tile: Tile) -> Iterator[tuple[slice, slice]]:
    """Row and column ranges of the tiles of a matrix, row of tiles by row of tiles."""
    for top in range(0, shape[0], tile[0]):
        for left in range(0, shape[1], tile[1]):
            yield (
                slice(top, min(top + tile[0], shape[0])),
                slice(left, min(left + tile[1], shape[1])),
            )


def inverse_norms(features: Tensor) -> Tensor:
    """``1 / max(|row|, 1e-12)`` in the accumulator dtype, shape (rows,)."""
    norms = torch.linalg.vector_norm(features, dim=1, dtype=accumulator_dtype(features.dtype))
    return norms.clamp_min_(EPS).reciprocal_()


def project_normalisation(gradient: Tensor, features: Tensor, inverse_norm: Tensor) -> Tensor:
    """In place: remove from every row of ``gradient`` the part along its feature, which
    normalisation cancels.

    With A_i = sum_j G_ij a_i b_j y_j, the gradient by the raw feature is A_i - x_i a_i^2 <x_i, A_i>
    (times the scale): the division by the norm in dI = A_i / a_i and its multiplication back
    cancel. Rows shorter than 1e-12 were divided by a constant, so they are not projected.
    """
    features = features.to(gradient.dtype)
    along = (features * gradient).sum(1) * inverse_norm.square()
    along = torch.where(inverse_norm < 1.0 / EPS, along, torch.zeros_like(along))
    return gradient.addcmul_(features, along[:, None], value=-1.0)
