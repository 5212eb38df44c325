"""Launches of the Triton kernels on parts of one block: pointers, sizes, grids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from pipeline.loss.block import BestLogits, Block, BlockSums, LineSums, SavedSums
from pipeline.loss.clip_gradient_kernels import grad_kernel, kept_grad_kernel
from pipeline.loss.clip_sums_kernels import merge_kernel, sums_kernel
from pipeline.loss.sigmoid_kernel import sigmoid_kernel
from pipeline.loss.tile_shapes import HALF, INTERPRETED, SINGLE, TileShape, interpreting

FORWARD_LOGITS = 2**28  # of one forward launch; its partial sums then take 32 MiB
FLOAT16_LIMIT = 65504.0


class Part(NamedTuple):
    """Rows and columns of the block, and where their G goes, (rows, columns); None for nowhere."""

    rows: slice
    columns: slice
    g: Tensor | None = None


def kept_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which logits are kept, for features of ``dtype``."""
    # less the mean of its row's and column's maximum a logit that matters is small, and float16 has
    # three bits more there than bfloat16
    return torch.float32 if dtype == torch.float32 else torch.float16


def shape_for(block: Block) -> TileShape:
    if interpreting():
        return INTERPRETED
    return SINGLE if block.x.dtype == torch.float32 else HALF


class Launcher:
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

    def sums(self, want_best: bool, keep_logits: bool) -> BlockSums:
        num_rows, num_columns = len(self.x), len(self.y)
        sums = BlockSums(
            row=self._line_sums(num_rows),
            column=self._line_sums(num_columns),
            positive=self._empty(num_rows).zero_(),
        )
        chunk = num_rows if keep_logits else self._rows_a_launch(num_columns)
        for top in range(0, num_rows, chunk):
            rows = slice(top, min(top + chunk, num_rows))
            best = self._sums_of_rows(sums, rows, want_best, keep_logits)
            sums.best = best if sums.best is None else _better(sums.best, best)
        if self.block.positive_weight is not None:
            sums.positive *= self.block.positive_weight
        return sums

    def _rows_a_launch(self, num_columns: int) -> int:
        tile = self.shape.rows
        return max(8 * tile, FORWARD_LOGITS // num_columns // tile * tile)

    def _sums_of_rows(
        self, sums: BlockSums, rows: slice, want_best: bool, keep_logits: bool
    ) -> BestLogits | None:
        """Some rows against all columns, added to ``sums``."""
        part = Part(rows, slice(0, len(self.y)))
        num_rows, num_columns, _ = self._sizes(part)
        tiles_m = triton.cdiv(num_rows, self.shape.rows)
        tiles_n = triton.cdiv(num_columns, self.shape.columns)
        labelled = self.block.x_labels is not None
        row, column = self._line_sums(tiles_n, num_rows), self._line_sums(tiles_m, num_columns)
        positive = self._empty(tiles_n, num_rows) if labelled else sums.positive[rows]
        row_best = self._empty(2, tiles_n, num_rows) if want_best else None
        column_best = self._empty(2, tiles_m, num_columns) if want_best else None
        kept = strip_top = None
        if keep_logits:
            kept = self.x.new_empty(num_rows, num_columns, dtype=kept_dtype(self.x.dtype))
            strip_top = self._empty(triton.cdiv(num_columns, self.shape.strip), num_rows)
            sums.kept = (kept, strip_top, column.top, sums.positive)
        with torch.cuda.device_of(self.x):
            sums_kernel[(tiles_m * tiles_n,)](
                *(*self._features(part), self.scale, *self._norms(part), *self._labels(part)),
                *(row.top, row.total, column.top, column.total, positive),
                *(row_best, column_best, kept, strip_top),
                *(*self._sizes(part), *self._strides()),
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
        self, part: Part, sums: SavedSums, gain: Tensor, targets: tuple[float, float]
    ) -> Tensor:
        """Fill ``part.g``; its shares of sum G_ij l_ij.

        ``targets`` is what G loses at positives, for weight one, and everywhere.
        """
        weight = self.block.positive_weight
        lines = (
            *(sums.row.top[part.rows], sums.row.total[part.rows]),
            *(sums.column.top[part.columns], sums.column.total[part.columns]),
            *(None if weight is None else weight[part.rows], gain, part.g),
        )
        if sums.kept:
            return self._grad_of_kept(part, sums.kept, lines, targets)
        shares = self._empty(self._programs(part) * self._strips)
        with torch.cuda.device_of(self.x):
            grad_kernel[(self._programs(part),)](
                *(*self._features(part), self.scale, *self._norms(part), *self._labels(part)),
                *(*lines, shares, *self._sizes(part), *self._strides(), *targets),
                **self.dot_options,
                LIMIT=self.limit,
            )
        return shares

    def _grad_of_kept(
        self,
        part: Part,
        kept: Sequence[Tensor],
        lines: Sequence[Tensor | None],
        targets: tuple[float, float],
    ) -> Tensor:
        logits, strip_top, tile_top, positive = kept
        num_rows, num_columns, offset = self._sizes(part)
        tiles = triton.cdiv(num_rows, self.shape.rows)
        strips = triton.cdiv(num_columns, self.shape.strip)
        shares = self._empty(tiles * strips)
        top, left = part.rows.start, part.columns.start
        with torch.cuda.device_of(logits):
            kept_grad_kernel[(tiles * strips,)](
                logits[top:, left:],
                strip_top[left // self.shape.strip :, top:],
                tile_top[top // self.shape.rows :, left:],
                *(positive[part.rows], *self._norms(part), *lines, shares),
                *(num_rows, num_columns, offset, *logits.shape, *targets),
                **self.options,
                LIMIT=self.limit,
            )
        return shares

    def sigmoid(self, part: Part, bias: Tensor, gain: Tensor) -> Tensor:
        """Fill ``part.g``; its shares of the loss, sum G_ij l_ij and sum G_ij, (3, parts)."""
        sums = self._empty(3, self._programs(part) * self._strips)
        with torch.cuda.device_of(self.x):
            sigmoid_kernel[(self._programs(part),)](
                *(*self._features(part), self.scale, bias.reshape(1)),
                *(*self._norms(part), *self._labels(part), gain, part.g, sums),
                *(*self._sizes(part), *self._strides(), sums.stride(0)),
                **self.dot_options,
                LIMIT=self.limit,
            )
        return sums

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=self.x.device)

    def _line_sums(self, *shape: int) -> LineSums:
        return LineSums(self._empty(*shape), self._empty(*shape))

    def _features(self, part: Part) -> tuple[Tensor, Tensor]:
        return self.x[part.rows], self.y[part.columns]

    def _norms(self, part: Part) -> tuple[Tensor | None, Tensor | None]:
        x, y = self.block.x_inverse_norm, self.block.y_inverse_norm
        return None if x is None else x[part.rows], None if y is None else y[part.columns]

    def _labels(self, part: Part) -> tuple[Tensor | None, Tensor | None]:
        x, y = self.block.x_labels, self.block.y_labels
        return None if x is None else x[part.rows], None if y is None else y[part.columns]

    def _sizes(self, part: Part) -> tuple[int, int, int]:
        """Rows, columns, and the column of the first row's positive, within a part."""
        rows, columns = part.rows, part.columns
        offset = self.block.offset + rows.start - columns.start
        return rows.stop - rows.start, columns.stop - columns.start, offset

    def _strides(self) -> tuple[int, int, int]:
        """From row to row of x and of y, and their dimension."""
        return self.x.stride(0), self.y.stride(0), self.x.shape[1]

    def _programs(self, part: Part) -> int:
        num_rows, num_columns, _ = self._sizes(part)
        return triton.cdiv(num_rows, self.shape.rows) * triton.cdiv(num_columns, self.shape.columns)

    @property
    def _strips(self) -> int:
        """Number of column strips per tile."""
        return self.shape.columns // self.shape.strip


def _better(one: BestLogits, other: BestLogits | None) -> BestLogits:
    """Join two row ranges: their rows one after the other, the larger of their columns."""
    assert other is not None
    return BestLogits(
        torch.cat([one.row_positive, other.row_positive]),
        torch.cat([one.row_negative, other.row_negative]),
        torch.maximum(one.column_positive, other.column_positive),
        torch.maximum(one.column_negative, other.column_negative),
    )


def _rows_contiguous(features: Tensor) -> Tensor:
    return features if features.stride(1) == 1 else features.contiguous()
