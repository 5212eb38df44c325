"""The block functions in plain torch: any device, any float dtype, float32 or float64 arithmetic.

Logits are made tile by tile in base 2 (``exp2`` needs no range reduction by ln 2, and unlike MKL's
``exp`` it is not 40 times slower where results are denormal) and are gone when the next tile
starts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from pipeline.loss.block import BestLogits, Block, BlockGradient, BlockSums

LOG2E = math.log2(math.e)
LN2 = math.log(2.0)


class TiledBlock:
    """A block prepared for tiling: x carries scale, norm and log2(e), so that ``x @ y.T`` is the
    logit in base 2."""

    def __init__(self, block: Block, tile: tuple[int, int]) -> None:
        dtype = block.accumulator
        self.block = block
        self.dtype = dtype
        self.tile = tile
        self.shape = (len(block.x), len(block.y))
        factor = block.scale * LOG2E
        if block.x_inverse_norm is not None:
            factor = (factor * block.x_inverse_norm)[:, None]
        self.x = block.x.to(dtype) * factor
        y = block.y.to(dtype)
        self.y = y if block.y_inverse_norm is None else y * block.y_inverse_norm[:, None]
        shape = (min(tile[0], self.shape[0]), min(tile[1], self.shape[1]))
        self._buffers = [self.x.new_empty(shape[0] * shape[1]) for _ in range(2)]

    def tiles(self) -> Iterator[tuple[slice, slice]]:
        for top in range(0, self.shape[0], self.tile[0]):
            for left in range(0, self.shape[1], self.tile[1]):
                yield (
                    slice(top, min(top + self.tile[0], self.shape[0])),
                    slice(left, min(left + self.tile[1], self.shape[1])),
                )

    def buffer(self, which: int, rows: slice, columns: slice) -> Tensor:
        height, width = rows.stop - rows.start, columns.stop - columns.start
        return self._buffers[which][: height * width].view(height, width)

    def logits(self, rows: slice, columns: slice) -> Tensor:
        """Logits of a tile in base 2, in a buffer that the next tile overwrites."""
        return torch.mm(self.x[rows], self.y[columns].T, out=self.buffer(0, rows, columns))

    def positives(self, rows: slice, columns: slice) -> Tensor | None:
        """Mask of a tile's positives, None where it has none. Only for labelled blocks."""
        block = self.block
        assert block.x_labels is not None and block.y_labels is not None
        return block.x_labels[rows, None] == block.y_labels[None, columns]

    def diagonal(self, tile: Tensor, rows: slice, columns: slice) -> tuple[Tensor, slice] | None:
        """View of a tile's positives and the rows they belong to. Only for blocks without
        labels."""
        first = max(rows.start, columns.start - self.block.offset)
        last = min(rows.stop, columns.stop - self.block.offset)
        if first >= last:
            return None
        shift = first + self.block.offset - columns.start - (first - rows.start)
        return tile.diagonal(shift), slice(first, last)


def block_lse(block: Block, *, tile: tuple[int, int], want_best: bool = False) -> BlockSums:
    tiled = TiledBlock(block, tile)
    num_rows, num_columns = tiled.shape
    row = tiled.x.new_full((num_rows,), -math.inf)
    column = tiled.x.new_full((num_columns,), -math.inf)
    positive = tiled.x.new_zeros(num_rows)
    best = _no_best(row, column) if want_best else None
    for rows, columns in tiled.tiles():
        logits = tiled.logits(rows, columns)
        _add_positive(tiled, logits, rows, columns, positive, best)
        spare = tiled.buffer(1, rows, columns)
        row[rows] = torch.logaddexp2(row[rows], _lse2(logits, 1, spare))
        column[columns] = torch.logaddexp2(column[columns], _lse2(logits, 0, spare))
    if block.positive_weight is not None:
        positive *= block.positive_weight
    if best is not None:
        for part in (
            best.row_positive,
            best.row_negative,
            best.column_positive,
            best.column_negative,
        ):
            part *= LN2
    return BlockSums(row * LN2, column * LN2, positive * LN2, best)


def _lse2(logits: Tensor, dim: int, spare: Tensor) -> Tensor:
    """log2 of the sum of 2^logits along ``dim``."""
    largest = logits.amax(dim, keepdim=True)
    total = torch.sub(logits, largest, out=spare).exp2_().sum(dim)
    return total.log2_().add_(largest.squeeze(dim))


def _no_best(row: Tensor, column: Tensor) -> BestLogits:
    return BestLogits(row.clone(), row.clone(), column.clone(), column.clone())


def _add_positive(
    tiled: TiledBlock,
    logits: Tensor,
    rows: slice,
    columns: slice,
    positive: Tensor,
    best: BestLogits | None,
) -> None:
    """Add the tile's positive logits to ``positive`` and take them into ``best``."""
    if tiled.block.x_labels is not None:
        mask = tiled.positives(rows, columns)
        assert mask is not None
        positive[rows] += torch.where(mask, logits, 0.0).sum(1)
    else:
        found = tiled.diagonal(logits, rows, columns)
        if found is not None:
            positive[found[1]] = found[0]
        mask = None
    if best is None:
        return
    if mask is None:
        mask = torch.zeros_like(logits, dtype=torch.bool)
        marked = tiled.diagonal(mask, rows, columns)
        if marked is not None:
            marked[0].fill_(True)
    for name, dim, where in (("row", 1, rows), ("column", 0, columns)):
        for kind, chosen in (("positive", mask), ("negative", ~mask)):
            largest = torch.where(chosen, logits, -math.inf).amax(dim)
            part = getattr(best, f"{name}_{kind}")
            part[where] = torch.maximum(part[where], largest)


def block_grad(
    block: Block,
    row_lse: Tensor,
    column_lse: Tensor,
    *,
    tile: tuple[int, int],
    label_smoothing: float = 0.0,
    need_x: bool = True,
    need_y: bool = True,
) -> BlockGradient:
    """G_ij = exp(l_ij - r_i) + exp(l_ij - c_j) - 2 (1 - e) t_ij - 2 e / N, with t_ij the weight of
    a positive."""
    tiled = TiledBlock(block, tile)
    num_rows, num_columns = tiled.shape
    row, column = row_lse * LOG2E, column_lse * LOG2E
    wanted_x = need_x or not need_y  # one of the two is needed for the scale
    dx = torch.zeros_like(tiled.x) if wanted_x else None
    dy = torch.zeros_like(tiled.y) if need_y else None
    uniform = 2.0 * label_smoothing / num_columns
    weight = tiled.x.new_full((num_rows,), 2.0 * (1.0 - label_smoothing))
    if block.positive_weight is not None:
        weight *= block.positive_weight
    for rows, columns in tiled.tiles():
        logits = tiled.logits(rows, columns)
        g = torch.sub(logits, row[rows, None], out=tiled.buffer(1, rows, columns)).exp2_()
        g += logits.sub_(column[columns]).exp2_()
        _subtract_targets(tiled, g, rows, columns, weight)
        if uniform:
            g -= uniform
        if dx is not None:
            dx[rows].addmm_(g, tiled.y[columns])
        if dy is not None:
            dy[columns].addmm_(g.T, tiled.x[rows])
    return _finish(tiled, dx, dy, need_x)


def _subtract_targets(
    tiled: TiledBlock, g: Tensor, rows: slice, columns: slice, weight: Tensor
) -> None:
    if tiled.block.x_labels is not None:
        mask = tiled.positives(rows, columns)
        assert mask is not None
        g.addcmul_(mask.to(g.dtype), weight[rows, None], value=-1.0)
        return
    found = tiled.diagonal(g, rows, columns)
    if found is not None:
        found[0].sub_(weight[found[1]])


def _finish(tiled: TiledBlock, dx: Tensor | None, dy: Tensor | None, need_x: bool) -> BlockGradient:
    """Take out the factors that the prepared x carries, and sum G_ij l_ij as <x, dx> or <y, dy>."""
    block = tiled.block
    if dx is not None:
        log_scale = (tiled.x * dx).sum() * LN2
        if block.x_inverse_norm is not None:
            dx *= block.x_inverse_norm[:, None]
    else:
        assert dy is not None
        log_scale = (tiled.y * dy).sum() * LN2
    if dy is not None:
        dy *= LN2 / block.scale
        if block.y_inverse_norm is not None:
            dy *= block.y_inverse_norm[:, None]
    return BlockGradient(dx if need_x else None, dy, log_scale)
