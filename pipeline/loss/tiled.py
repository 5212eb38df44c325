"""The block functions in plain torch: any device, any float dtype, float32 or float64 arithmetic.

Logits are made tile by tile, in base 2: ``exp2`` needs no range reduction by ln 2 and, unlike MKL's
``exp``, is not 40 times slower where results are denormal. A tile is gone when the next one starts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from pipeline.loss.block import (
    BestLogits,
    Block,
    BlockGradient,
    BlockSums,
    LineSums,
    SavedSums,
    Tile,
    Wanted,
    accumulator_dtype,
    tile_ranges,
)

LOG2E = math.log2(math.e)
LN2 = math.log(2.0)
# float32 matrix products reach full speed on 2 cores from 1024 rows on, and two such buffers
# (16 MiB) stay in a last-level cache; a GPU needs larger ones to fill it.
CPU_TILE: Tile = (1024, 2048)
DEVICE_TILE: Tile = (4096, 4096)


class TiledBlock:
    """A block made ready: x carries scale, norm and log2(e), so x @ y.T is the logit in base 2."""

    def __init__(self, block: Block, tile: Tile | None) -> None:
        dtype = block.accumulator
        self.block = block
        self.shape = (len(block.x), len(block.y))
        wanted = tile or (CPU_TILE if block.x.device.type == "cpu" else DEVICE_TILE)
        self.tile = (min(wanted[0], self.shape[0]), min(wanted[1], self.shape[1]))
        factor = block.scale * LOG2E
        if block.x_inverse_norm is not None:
            factor = (factor * block.x_inverse_norm)[:, None]
        self.x = block.x.to(dtype) * factor
        y = block.y.to(dtype)
        self.y = y if block.y_inverse_norm is None else y * block.y_inverse_norm[:, None]
        self._buffers = [self.x.new_empty(self.tile[0] * self.tile[1]) for _ in range(2)]

    def tiles(self) -> Iterator[tuple[slice, slice]]:
        return tile_ranges(self.shape, self.tile)

    def buffer(self, which: int, rows: slice, columns: slice) -> Tensor:
        """Scratch space for a tile; the next tile overwrites it."""
        height, width = rows.stop - rows.start, columns.stop - columns.start
        return self._buffers[which][: height * width].view(height, width)

    def logits(self, rows: slice, columns: slice, out: Tensor | None = None) -> Tensor:
        """Logits of a tile in base 2, in ``out`` or buffer 0."""
        out = self.buffer(0, rows, columns) if out is None else out
        return torch.mm(self.x[rows], self.y[columns].T, out=out)

    def labelled(self, rows: slice, columns: slice) -> Tensor:
        """Mask of a tile's positives. Only for blocks with labels."""
        block = self.block
        assert block.x_labels is not None and block.y_labels is not None
        return block.x_labels[rows, None] == block.y_labels[None, columns]

    def diagonal(self, tile: Tensor, rows: slice, columns: slice) -> tuple[Tensor, slice] | None:
        """View of a tile's positives and their rows. Only for blocks without labels."""
        offset = self.block.offset
        first = max(rows.start, columns.start - offset)
        last = min(rows.stop, columns.stop - offset)
        if first >= last:
            return None
        shift = (first + offset - columns.start) - (first - rows.start)
        return tile.diagonal(shift), slice(first, last)

    def negate_positives(self, tile: Tensor, rows: slice, columns: slice) -> None:
        if self.block.x_labels is not None:
            torch.where(self.labelled(rows, columns), -tile, tile, out=tile)
            return
        found = self.diagonal(tile, rows, columns)
        if found is not None:
            found[0].neg_()


def kept_logit_bytes(dtype: torch.dtype) -> int:
    return accumulator_dtype(dtype).itemsize


def block_sums(
    block: Block, *, tile: Tile | None, want_best: bool = False, keep_logits: bool = False
) -> BlockSums:
    tiled = TiledBlock(block, tile)
    row, column = (
        LineSums(tiled.x.new_full((size,), -math.inf), tiled.x.new_zeros(size))
        for size in tiled.shape
    )
    positive = tiled.x.new_zeros(tiled.shape[0])
    best = _no_best(row.top, column.top) if want_best else None
    kept = tiled.x.new_empty(tiled.shape) if keep_logits else None
    for rows, columns in tiled.tiles():
        logits = tiled.logits(rows, columns, None if kept is None else kept[rows, columns])
        _add_positive(tiled, logits, rows, columns, positive)
        if best is not None:
            _take_best(tiled, logits, rows, columns, best)
        spare = tiled.buffer(1, rows, columns)
        _add_lines(row, rows, logits, 1, spare)
        _add_lines(column, columns, logits, 0, spare)
    if block.positive_weight is not None:
        positive *= block.positive_weight
    return BlockSums(row, column, positive, best, () if kept is None else (kept,))


def _add_lines(sums: LineSums, where: slice, logits: Tensor, dim: int, spare: Tensor) -> None:
    """Add a tile's lines along ``dim`` to the sums so far."""
    tile_top = logits.amax(dim, keepdim=True)
    tile_total = torch.sub(logits, tile_top, out=spare).exp2_().sum(dim)
    old, new = sums.top[where], torch.maximum(sums.top[where], tile_top.squeeze(dim))
    total = sums.total[where] * torch.exp2(old - new)
    sums.total[where] = total.addcmul_(tile_total, torch.exp2(tile_top.squeeze(dim) - new))
    sums.top[where] = new


def _add_positive(
    tiled: TiledBlock, logits: Tensor, rows: slice, columns: slice, positive: Tensor
) -> None:
    if tiled.block.x_labels is not None:
        positive[rows] += torch.where(tiled.labelled(rows, columns), logits, 0.0).sum(1)
        return
    found = tiled.diagonal(logits, rows, columns)
    if found is not None:
        positive[found[1]] = found[0]


def _no_best(row: Tensor, column: Tensor) -> BestLogits:
    return BestLogits(row.clone(), row.clone(), column.clone(), column.clone())


def _take_best(
    tiled: TiledBlock, logits: Tensor, rows: slice, columns: slice, best: BestLogits
) -> None:
    if tiled.block.x_labels is not None:
        positives = tiled.labelled(rows, columns)
    else:
        positives = torch.zeros_like(logits, dtype=torch.bool)
        found = tiled.diagonal(positives, rows, columns)
        if found is not None:
            found[0].fill_(True)
    for kind, chosen in (("positive", positives), ("negative", ~positives)):
        values = torch.where(chosen, logits, -math.inf)
        for line, dim, where in (("row", 1, rows), ("column", 0, columns)):
            so_far = getattr(best, f"{line}_{kind}")[where]
            torch.maximum(so_far, values.amax(dim), out=so_far)


def block_grad(
    block: Block, sums: SavedSums, wanted: Wanted, tile: Tile | None, label_smoothing: float = 0.0
) -> BlockGradient:
    tiled = TiledBlock(block, tile)
    row, column, kept = sums.row, sums.column, sums.kept
    row_share, column_share = row.total.reciprocal(), column.total.reciprocal()
    weight = torch.full_like(row_share, 2.0 * (1.0 - label_smoothing))
    if block.positive_weight is not None:
        weight *= block.positive_weight
    gradient = _FeatureGradient(tiled, wanted)
    for rows, columns in tiled.tiles():
        logits = kept[0][rows, columns] if kept else tiled.logits(rows, columns)
        g = torch.sub(logits, row.top[rows, None], out=tiled.buffer(1, rows, columns)).exp2_()
        g *= row_share[rows, None]
        other = torch.sub(logits, column.top[columns], out=tiled.buffer(0, rows, columns)).exp2_()
        g.addcmul_(other, column_share[columns])
        _subtract_targets(tiled, g, rows, columns, weight)
        if label_smoothing:
            g -= 2.0 * label_smoothing / tiled.shape[1]
        gradient.add(g, rows, columns)
    return gradient.finish()


def _subtract_targets(
    tiled: TiledBlock, g: Tensor, rows: slice, columns: slice, weight: Tensor
) -> None:
    if tiled.block.x_labels is not None:
        positives = tiled.labelled(rows, columns).to(g.dtype)
        g.addcmul_(positives, weight[rows, None], value=-1.0)
        return
    found = tiled.diagonal(g, rows, columns)
    if found is not None:
        found[0].sub_(weight[found[1]])


def block_sigmoid(
    block: Block, bias: Tensor, wanted: Wanted | None, tile: Tile | None
) -> tuple[Tensor, BlockGradient | None]:
    tiled = TiledBlock(block, tile)
    sums = None if wanted is None else _FeatureGradient(tiled, wanted)
    losses, biases = [], []
    for rows, columns in tiled.tiles():
        z = tiled.logits(rows, columns).mul_(LN2).add_(bias)
        tiled.negate_positives(z, rows, columns)  # neither the loss nor G then cancels at positives
        spare = tiled.buffer(1, rows, columns)
        tail = torch.abs(z, out=spare).mul_(-LOG2E).exp2_().log1p_().sum()
        losses.append(tail + torch.clamp_min(z, 0.0, out=spare).sum())
        if sums is not None:
            g = z.sigmoid_()
            tiled.negate_positives(g, rows, columns)
            biases.append(g.sum())
            sums.add(g, rows, columns)
    loss = torch.stack(losses).sum()
    if sums is None:
        return loss, None
    gradient = sums.finish()
    gradient.bias = torch.stack(biases).sum()
    return loss, gradient


class _FeatureGradient:
    """Accumulates G @ y and G.T @ x over tiles."""

    def __init__(self, tiled: TiledBlock, wanted: Wanted) -> None:
        self.tiled = tiled
        self.wanted = wanted
        # sum G_ij l_ij is <x, dx> or <y, dy>: one is needed even if only the scale learns
        self.x = torch.zeros_like(tiled.x) if wanted.x or not wanted.y else None
        self.y = torch.zeros_like(tiled.y) if wanted.y else None

    def add(self, g: Tensor, rows: slice, columns: slice) -> None:
        if self.x is not None:
            self.x[rows].addmm_(g, self.tiled.y[columns])
        if self.y is not None:
            self.y[columns].addmm_(g.T, self.tiled.x[rows])

    def finish(self) -> BlockGradient:
        """Take out the factors that the prepared x and y carry."""
        block = self.tiled.block
        if self.x is not None:
            log_scale = _inner(self.tiled.x, self.x) * LN2
            if block.x_inverse_norm is not None:
                self.x *= block.x_inverse_norm[:, None]
        else:
            assert self.y is not None
            log_scale = _inner(self.tiled.y, self.y) * LN2
        if self.y is not None:
            self.y *= LN2 / block.scale
            if block.y_inverse_norm is not None:
                self.y *= block.y_inverse_norm[:, None]
        return BlockGradient(self.x if self.wanted.x else None, self.y, log_scale)


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """<a, b>; an elementwise product would be another tensor of the features' size."""
    return torch.einsum("nd,nd->n", a, b).sum()
