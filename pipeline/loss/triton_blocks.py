"""The block functions on Triton kernels.

Forward: one launch for some rows x all columns writes sums over each tile, which a second, small
kernel merges in a fixed order. Backward: G in 16 bits for one tile of the block at a time,
then two matrix products accumulate it into float32 gradients. No n x N tensor, no atomics.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from pipeline.loss.backends import interpreting
from pipeline.loss.block import BestLogits, Block, BlockGradient, BlockSums, LineSums, Tile
from pipeline.loss.clip_gradient_kernels import grad_kernel, kept_grad_kernel
from pipeline.loss.clip_sums_kernels import merge_kernel, sums_kernel
from pipeline.loss.sigmoid_kernel import sigmoid_kernel
from pipeline.loss.tile_shapes import HALF, INTERPRETED, SINGLE, TileShape

LN2 = math.log(2.0)
G_TILE: Tile = (8192, 8192)  # 128 MiB in 16 bits: long enough for the matrix products to fill a GPU
FORWARD_LOGITS = 2**28  # of one forward launch; its partial sums then take 32 MiB
FLOAT16_GAIN = 2.0**14  # |G| <= 2, so 2^15: G's tail of 1/N stays out of float16's denormals
FLOAT16_LIMIT = 65504.0


def kept_logit_bytes(dtype: torch.dtype) -> int:
    return _kept_dtype(dtype).itemsize


def _kept_dtype(dtype: torch.dtype) -> torch.dtype:
    # less the mean of its row's and column's maximum a logit that matters is small, and float16 has
    # three bits more there than bfloat16
    return torch.float32 if dtype == torch.float32 else torch.float16


def shape_for(block: Block) -> TileShape:
    if interpreting():
        return INTERPRETED
    return SINGLE if block.x.dtype == torch.float32 else HALF


def block_sums(
    block: Block, *, tile: Tile | None, want_best: bool = False, keep_logits: bool = False
) -> BlockSums:
    return _Launcher(block).sums(want_best, keep_logits)


def block_grad(
    block: Block,
    row: LineSums,
    column: LineSums,
    kept: Sequence[Tensor] = (),
    *,
    tile: Tile | None,
    label_smoothing: float = 0.0,
    need_x: bool = True,
    need_y: bool = True,
) -> BlockGradient:
    launcher = _Launcher(block)
    sums = _FeatureGradient(launcher, tile, need_x, need_y)
    weight = block.positive_weight
    targets = (2.0 * (1.0 - label_smoothing), 2.0 * label_smoothing / len(block.y))
    shares = []
    for rows, columns in sums.tiles():
        lines = (
            *(row.top[rows], row.total[rows], column.top[columns], column.total[columns]),
            *(None if weight is None else weight[rows], sums.gain),
        )
        if kept:
            shares.append(launcher.kept_grad(kept, rows, columns, lines, sums.g, targets))
        else:
            shares.append(launcher.grad(rows, columns, lines, sums.g, targets))
        sums.add(rows, columns)
    return sums.finish(torch.cat(shares).sum())


def block_sigmoid(
    block: Block,
    bias: Tensor,
    *,
    tile: Tile | None,
    need_gradient: bool,
    need_x: bool,
    need_y: bool,
) -> tuple[Tensor, BlockGradient | None]:
    launcher = _Launcher(block)
    sums = _FeatureGradient(launcher, tile, need_x, need_y, storing=need_gradient)
    parts = []
    for rows, columns in sums.tiles():
        g = sums.g if need_gradient else None
        parts.append(launcher.sigmoid(rows, columns, bias, g, sums.gain))
        if need_gradient:
            sums.add(rows, columns)
    loss, by_scale, by_bias = torch.cat(parts, dim=1).sum(1)
    if not need_gradient:
        return loss, None
    gradient = sums.finish(by_scale)
    gradient.bias = by_bias
    return loss, gradient


class _Launcher:
    """Launches the kernels on parts of one block."""

    def __init__(self, block: Block) -> None:
        self.block = block
        self.shape = shape_for(block)
        self.x, self.y = _rows_contiguous(block.x), _rows_contiguous(block.y)
        self.scale = block.scale.reshape(1)
        self.options: dict[str, Any] = {
            "BM": self.shape.rows,
            "WIDTH": self.shape.strip,
            "num_warps": self.shape.num_warps,
            "num_stages": self.shape.num_stages,
            "enable_fp_fusion": True,  # triton 3.10 changes the default, and with it the last bits
        }
        self.dot_options: dict[str, Any] = {
            **self.options,
            "EVEN": block.x.shape[1] % self.shape.depth == 0,
            "BN": self.shape.columns,
            "BK": self.shape.depth,
            "GROUP": self.shape.group,
        }
        self.limit = FLOAT16_LIMIT if block.x.dtype == torch.float16 else 0.0

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=self.x.device)

    def inputs(self, rows: slice, columns: slice) -> tuple[Tensor, Tensor]:
        return self.x[rows], self.y[columns]

    def sides(self, rows: slice, columns: slice) -> tuple[Tensor | None, ...]:
        """Inverse norms and labels of a part."""
        block = self.block
        return (
            None if block.x_inverse_norm is None else block.x_inverse_norm[rows],
            None if block.y_inverse_norm is None else block.y_inverse_norm[columns],
            None if block.x_labels is None else block.x_labels[rows],
            None if block.y_labels is None else block.y_labels[columns],
        )

    def sizes(self, rows: slice, columns: slice) -> tuple[int, int, int]:
        """Rows, columns, and the column of the first row's positive, within a part."""
        offset = self.block.offset + rows.start - columns.start
        return rows.stop - rows.start, columns.stop - columns.start, offset

    def programs(self, rows: slice, columns: slice) -> int:
        num_rows, num_columns, _ = self.sizes(rows, columns)
        return triton.cdiv(num_rows, self.shape.rows) * triton.cdiv(num_columns, self.shape.columns)

    @property
    def strips(self) -> int:
        """Of a tile."""
        return self.shape.columns // self.shape.strip

    def sums(self, want_best: bool, keep_logits: bool) -> BlockSums:
        num_rows, num_columns = len(self.x), len(self.y)
        sums = BlockSums(
            row=self._line_sums(num_rows),
            column=self._line_sums(num_columns),
            positive=self.empty(num_rows).zero_(),
        )
        chunk = num_rows if keep_logits else self._rows_a_launch(num_columns)
        for top in range(0, num_rows, chunk):
            rows = slice(top, min(top + chunk, num_rows))
            best = self._sums_part(sums, rows, want_best, keep_logits)
            sums.best = best if sums.best is None else _better(sums.best, best)
        if self.block.positive_weight is not None:
            sums.positive *= self.block.positive_weight
        return sums

    def _line_sums(self, *shape: int) -> LineSums:
        return LineSums(self.empty(*shape), self.empty(*shape))

    def _rows_a_launch(self, num_columns: int) -> int:
        tile = self.shape.rows
        return max(8 * tile, FORWARD_LOGITS // num_columns // tile * tile)

    def _sums_part(
        self, sums: BlockSums, rows: slice, want_best: bool, keep_logits: bool
    ) -> BestLogits | None:
        """Some rows against all columns, added to ``sums``."""
        columns = slice(0, len(self.y))
        num_rows, num_columns, offset = self.sizes(rows, columns)
        tiles_m = triton.cdiv(num_rows, self.shape.rows)
        tiles_n = triton.cdiv(num_columns, self.shape.columns)
        labelled = self.block.x_labels is not None
        row, column = self._line_sums(tiles_n, num_rows), self._line_sums(tiles_m, num_columns)
        positive = self.empty(tiles_n, num_rows) if labelled else sums.positive[rows]
        row_best = self.empty(2, tiles_n, num_rows) if want_best else None
        column_best = self.empty(2, tiles_m, num_columns) if want_best else None
        kept = strip_top = None
        if keep_logits:
            kept = self.x.new_empty(num_rows, num_columns, dtype=_kept_dtype(self.x.dtype))
            strip_top = self.empty(triton.cdiv(num_columns, self.shape.strip), num_rows)
            sums.kept = (kept, strip_top, column.top, sums.positive)
        x, y = self.x[rows], self.y
        with torch.cuda.device_of(x):
            sums_kernel[(tiles_m * tiles_n,)](
                *(x, y, self.scale, *self.sides(rows, columns)),
                *(row.top, row.total, column.top, column.total, positive),
                *(row_best, column_best, kept, strip_top),
                *(num_rows, num_columns, offset, x.stride(0), y.stride(0), x.shape[1]),
                **self.dot_options,
            )
            self._merge(row, LineSums(sums.row.top[rows], sums.row.total[rows]), accumulate=False)
            self._merge(column, sums.column, accumulate=rows.start > 0)
        if labelled:
            torch.sum(positive, dim=0, out=sums.positive[rows])
        if row_best is None or column_best is None:
            return None
        return BestLogits(*row_best.amax(1), *column_best.amax(1))

    def _merge(self, parts: LineSums, out: LineSums, *, accumulate: bool) -> None:
        num_parts, width = parts.top.shape
        merge_kernel[(triton.cdiv(width, 128),)](
            *(parts.top, parts.total, out.top, out.total, num_parts, width),
            ACCUMULATE=accumulate,
            BP=16,
            BW=128,
            num_warps=4,
        )

    def grad(
        self,
        rows: slice,
        columns: slice,
        lines: tuple[Tensor | None, ...],
        g: Tensor,
        targets: tuple[float, float],
    ) -> Tensor:
        """Fill ``g`` for a part; its shares of sum G_ij l_ij."""
        x, y = self.inputs(rows, columns)
        shares = self.empty(self.programs(rows, columns) * self.strips)
        with torch.cuda.device_of(x):
            grad_kernel[(self.programs(rows, columns),)](
                *(x, y, self.scale, *self.sides(rows, columns), *lines, g, shares),
                *(*self.sizes(rows, columns), x.stride(0), y.stride(0), x.shape[1], *targets),
                **self.dot_options,
                LIMIT=self.limit,
            )
        return shares

    def kept_grad(
        self,
        kept: Sequence[Tensor],
        rows: slice,
        columns: slice,
        lines: tuple[Tensor | None, ...],
        g: Tensor,
        targets: tuple[float, float],
    ) -> Tensor:
        """The same from what ``block_sums`` kept."""
        logits, strip_top, tile_top, positive = kept
        num_rows, num_columns, offset = self.sizes(rows, columns)
        tiles = triton.cdiv(num_rows, self.shape.rows)
        strips = triton.cdiv(num_columns, self.shape.strip)
        shares = self.empty(tiles * strips)
        first_tile, first_strip = rows.start // self.shape.rows, columns.start // self.shape.strip
        with torch.cuda.device_of(logits):
            kept_grad_kernel[(tiles * strips,)](
                logits[rows.start :, columns.start :],
                strip_top[first_strip:, rows.start :],
                tile_top[first_tile:, columns.start :],
                *(positive[rows], *self.sides(rows, columns)[:2], *lines, g, shares),
                *(num_rows, num_columns, offset, *logits.shape, *targets),
                **self.options,
                LIMIT=self.limit,
            )
        return shares

    def sigmoid(
        self, rows: slice, columns: slice, bias: Tensor, g: Tensor | None, gain: Tensor
    ) -> Tensor:
        """Fill ``g`` for a part; its shares of the loss, sum G_ij l_ij and sum G_ij, (3, parts)."""
        x, y = self.inputs(rows, columns)
        sums = self.empty(3, self.programs(rows, columns) * self.strips)
        x_norm, y_norm, x_labels, y_labels = self.sides(rows, columns)
        with torch.cuda.device_of(x):
            sigmoid_kernel[(self.programs(rows, columns),)](
                *(x, y, self.scale, bias.reshape(1), x_norm, y_norm, x_labels, y_labels, gain, g),
                *(sums, *self.sizes(rows, columns), x.stride(0), y.stride(0)),
                *(x.shape[1], sums.stride(0)),
                **self.dot_options,
                LIMIT=self.limit,
            )
        return sums


class _FeatureGradient:
    """The buffer for a tile of G, and the float32 sums of G @ y and G.T @ x over tiles."""

    def __init__(
        self,
        launcher: _Launcher,
        tile: Tile | None,
        need_x: bool,
        need_y: bool,
        *,
        storing: bool = True,
    ) -> None:
        self.x, self.y = launcher.x, launcher.y
        shape = launcher.shape
        sides = [
            min(math.ceil(wanted / unit) * unit, math.ceil(size / unit) * unit)
            for wanted, unit, size in zip(
                tile or G_TILE, (shape.rows, shape.strip), (len(self.x), len(self.y)), strict=True
            )
        ]
        self.tile = (sides[0], sides[1])
        self._buffer = self.x.new_empty(sides[0] * sides[1] if storing else 0)
        self.g = self._buffer
        self.gain = _gain(launcher.block)
        self.dx = torch.zeros_like(self.x, dtype=torch.float32) if storing and need_x else None
        self.dy = torch.zeros_like(self.y, dtype=torch.float32) if storing and need_y else None

    def tiles(self) -> Iterator[tuple[slice, slice]]:
        """Row and column ranges; ``g`` is the buffer cut to fit each."""
        for top in range(0, len(self.x), self.tile[0]):
            for left in range(0, len(self.y), self.tile[1]):
                rows = slice(top, min(top + self.tile[0], len(self.x)))
                columns = slice(left, min(left + self.tile[1], len(self.y)))
                height, width = rows.stop - rows.start, columns.stop - columns.start
                if len(self._buffer):
                    self.g = self._buffer[: height * width].view(height, width)
                yield rows, columns

    def add(self, rows: slice, columns: slice) -> None:
        if self.dx is not None:
            _accumulate(self.dx[rows], self.g, self.y[columns])
        if self.dy is not None:
            _accumulate(self.dy[columns], self.g.T, self.x[rows])

    def finish(self, by_scale: Tensor) -> BlockGradient:
        for part in (self.dx, self.dy):
            if part is not None and self.x.dtype == torch.float16:
                part /= self.gain
        return BlockGradient(self.dx, self.dy, by_scale)


def _accumulate(out: Tensor, a: Tensor, b: Tensor) -> None:
    """out += a @ b, in float32 whatever the operands are."""
    if a.is_cuda and a.dtype != torch.float32:
        torch.addmm(out, a, b, out_dtype=torch.float32, out=out)
    else:
        out.addmm_(a.float(), b.float())


def _gain(block: Block) -> Tensor:
    """Factor of what is stored in 16 bits; it centres float16, and bfloat16 needs none."""
    gain = torch.ones(1, dtype=torch.float32, device=block.x.device)
    if block.x.dtype != torch.float16:
        return gain
    gain *= FLOAT16_GAIN
    for norms in (block.x_inverse_norm, block.y_inverse_norm):
        if (
            norms is not None
        ):  # of no length: 1e12, whose product with G is clamped, and with x is 0
            gain /= torch.where(norms < 1e11, norms, 0.0).amax().clamp_min(1e-30)
    return gain


def _better(one: BestLogits, other: BestLogits | None) -> BestLogits:
    """Of two row ranges: their rows one after the other, the larger of their columns."""
    assert other is not None
    return BestLogits(
        torch.cat([one.row_positive, other.row_positive]),
        torch.cat([one.row_negative, other.row_negative]),
        torch.maximum(one.column_positive, other.column_positive),
        torch.maximum(one.column_negative, other.column_negative),
    )


def _rows_contiguous(features: Tensor) -> Tensor:
    return features if features.stride(1) == 1 else features.contiguous()
