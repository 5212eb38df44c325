# mypy: disable-error-code="no-untyped-def"
"""Triton kernels of the CLIP loss, forward: sums of exponentials over every tile, and their merge.

No atomics, here or in the other kernels: results do not depend on scheduling.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pipeline.loss.tile_math import (
    add_sums,
    inside,
    line_sums,
    positives,
    scaled_logits,
    strip_at,
    tile_strips,
)


@triton.jit
def sums_kernel(
    X,  # (num_rows, depth)
    Y,  # (num_columns, depth)
    SCALE,  # one float32
    XNORM,  # (num_rows,) inverse norms; or None
    YNORM,  # (num_columns,)
    XLABELS,  # (num_rows,) int32; or None
    YLABELS,  # (num_columns,)
    ROW_TOP,  # (tiles_n, num_rows): largest logit of each row of a tile
    ROW_TOTAL,  # (tiles_n, num_rows): sum of exp2(logit - top)
    COLUMN_TOP,  # (tiles_m, num_columns)
    COLUMN_TOTAL,
    POSITIVE,  # (num_rows,), with labels (tiles_n, num_rows): sum of the positives' logits
    ROW_BEST,  # (2, tiles_n, num_rows): largest positive, largest negative; or None
    COLUMN_BEST,  # (2, tiles_m, num_columns)
    KEPT,  # (num_rows, num_columns): logits less the mean of STRIP_TOP and COLUMN_TOP; or None
    STRIP_TOP,  # (strips, num_rows)
    num_rows,
    num_columns,
    offset,
    x_stride,
    y_stride,
    depth,
    EVEN: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    WIDTH: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Sums of exponentials over the rows and the columns of every tile."""
    pm, pn, strips = tile_strips(
        X, Y, num_rows, num_columns, x_stride, y_stride, depth, EVEN, BM, BN, BK, WIDTH, GROUP
    )
    rows = pm * BM + tl.arange(0, BM)
    valid_row = rows < num_rows
    row_part = pn.to(tl.int64) * num_rows + rows
    row_top = tl.full((BM,), float("-inf"), tl.float32)
    row_total = tl.zeros((BM,), tl.float32)
    row_positive, row_best, row_rival = row_total, row_top, row_top
    for i in tl.static_range(BN // WIDTH):
        index = pn * (BN // WIDTH) + i  # among the strips of all columns
        strip = strip_at(pm * BM, index * WIDTH, num_rows, num_columns, BM, WIDTH)
        valid = inside(strip)
        column_part = pm.to(tl.int64) * num_columns + strip.columns
        logits, _ = scaled_logits(strips[i], strip, SCALE, XNORM, YNORM)
        logits = tl.where(valid, logits, float("-inf"))
        if XLABELS is None:
            _store_diagonal(logits, strip, POSITIVE, offset, num_columns)
        else:
            positive = positives(strip, XLABELS, YLABELS, offset)
            row_positive += tl.sum(tl.where(positive, logits, 0.0), 1)
        if ROW_BEST is not None:
            positive = positives(strip, XLABELS, YLABELS, offset)
            second = tl.cdiv(num_rows, BM).to(tl.int64) * num_columns
            row_best, row_rival = _add_best(
                row_best, row_rival, logits, positive, strip, COLUMN_BEST, column_part, second
            )
        strip_top, strip_total = line_sums(logits, 1)
        column_top, column_total = line_sums(logits, 0)
        tl.store(COLUMN_TOP + column_part, column_top, mask=strip.valid_column)
        tl.store(COLUMN_TOTAL + column_part, column_total, mask=strip.valid_column)
        if KEPT is not None:
            _keep(
                logits, strip_top, column_top, strip, index, KEPT, STRIP_TOP, num_rows, num_columns
            )
        row_top, row_total = add_sums(row_top, row_total, strip_top, strip_total)
    tl.store(ROW_TOP + row_part, row_top, mask=valid_row)
    tl.store(ROW_TOTAL + row_part, row_total, mask=valid_row)
    if XLABELS is not None:
        tl.store(POSITIVE + row_part, row_positive, mask=valid_row)
    if ROW_BEST is not None:
        second = tl.cdiv(num_columns, BN).to(tl.int64) * num_rows
        tl.store(ROW_BEST + row_part, row_best, mask=valid_row)
        tl.store(ROW_BEST + second + row_part, row_rival, mask=valid_row)


@triton.jit
def _store_diagonal(logits, strip, POSITIVE, offset, num_columns):
    """Store the logits of the positives that lie on the diagonal within this strip."""
    WIDTH: tl.constexpr = logits.shape[1]
    first = strip.top + offset  # column of the first row's positive
    if (first < strip.left + WIDTH) & (first + logits.shape[0] > strip.left):
        # the diagonal crosses the strip, as it does few; the sum costs two barriers
        positive = positives(strip, None, None, offset)
        strip_positive = tl.sum(tl.where(positive, logits, 0.0), 1)
        target = strip.rows + offset - strip.left
        here = (target >= 0) & (target < WIDTH) & (strip.rows + offset < num_columns)
        tl.store(POSITIVE + strip.rows, strip_positive, mask=here & strip.valid_row)


@triton.jit
def _add_best(row_best, row_rival, logits, positive, strip, COLUMN_BEST, column_part, second):
    """Largest positive and negative logit of every row so far; those of the columns are stored.

    ``second`` is where the columns' largest negatives start in COLUMN_BEST.
    """
    best = tl.where(positive, logits, float("-inf"))
    rival = tl.where(positive, float("-inf"), logits)
    row_best = tl.maximum(row_best, tl.max(best, 1))
    row_rival = tl.maximum(row_rival, tl.max(rival, 1))
    tl.store(COLUMN_BEST + column_part, tl.max(best, 0), mask=strip.valid_column)
    tl.store(COLUMN_BEST + second + column_part, tl.max(rival, 0), mask=strip.valid_column)
    return row_best, row_rival


@triton.jit
def _keep(logits, strip_top, column_top, strip, index, KEPT, STRIP_TOP, num_rows, num_columns):
    """Store a strip's logits less the mean of its tops, for ``kept_grad_kernel``."""
    # a strip past the last column, in the last tile, has no line in STRIP_TOP
    there = strip.rows < tl.where(strip.left < num_columns, num_rows, 0)
    tl.store(STRIP_TOP + index.to(tl.int64) * num_rows + strip.rows, strip_top, mask=there)
    kept = logits - 0.5 * (strip_top[:, None] + column_top[None, :])
    place = strip.rows.to(tl.int64)[:, None] * num_columns + strip.columns[None, :]
    tl.store(KEPT + place, kept.to(KEPT.dtype.element_ty), mask=inside(strip))


@triton.jit
def merge_kernel(
    PARTS_TOP,  # (num_parts, width)
    PARTS_TOTAL,
    TOP,  # (width,)
    TOTAL,
    num_parts,
    width,
    ACCUMULATE: tl.constexpr,
    BP: tl.constexpr,
    BW: tl.constexpr,
):
    """Merge sums over parts, in their order, and with what TOP and TOTAL hold already."""
    places = tl.program_id(0) * BW + tl.arange(0, BW)
    valid = places < width
    top = tl.full((BW,), float("-inf"), tl.float32)
    total = tl.zeros((BW,), tl.float32)
    if ACCUMULATE:
        top = tl.load(TOP + places, mask=valid, other=0.0)
        total = tl.load(TOTAL + places, mask=valid, other=0.0)
    for start in range(0, num_parts, BP):
        parts = start + tl.arange(0, BP)
        there = (parts < num_parts)[:, None] & valid[None, :]
        place = parts.to(tl.int64)[:, None] * width + places[None, :]
        tops = tl.load(PARTS_TOP + place, mask=there, other=float("-inf"))
        totals = tl.load(PARTS_TOTAL + place, mask=there, other=0.0)
        part_top = tl.max(tops, 0)
        shift = tl.where(part_top == float("-inf"), 0.0, part_top)
        part_total = tl.sum(totals * tl.exp2(tops - shift[None, :]), 0)
        top, total = add_sums(top, total, part_top, part_total)
    tl.store(TOP + places, top, mask=valid)
    tl.store(TOTAL + places, total, mask=valid)
