# mypy: disable-error-code="no-untyped-def"
"""Triton kernels of the CLIP loss, backward: G, its derivative by the logits, tile by tile.

One makes the logits again, the other takes them as ``sums_kernel`` kept them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pipeline.loss.tile_math import (
    LN2,
    inside,
    positives,
    scaled_logits,
    store_gradient,
    strip_at,
    strip_norms,
    tile_strips,
)


@triton.jit
def grad_kernel(
    X,  # as in sums_kernel
    Y,
    SCALE,
    XNORM,
    YNORM,
    XLABELS,
    YLABELS,
    ROW_TOP,  # (num_rows,)
    ROW_TOTAL,
    COLUMN_TOP,  # (num_columns,)
    COLUMN_TOTAL,
    WEIGHT,  # (num_rows,): one over the number of a row's positives; or None for one
    GAIN,  # one float32
    G,  # (num_rows, num_columns), the features' dtype
    SHARES,  # (programs * strips of a tile,)
    num_rows,
    num_columns,
    offset,
    x_stride,
    y_stride,
    depth,
    target,
    uniform,
    EVEN: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    WIDTH: tl.constexpr,
    GROUP: tl.constexpr,
    LIMIT: tl.constexpr,
):
    """G_ij times the inverse norms and the gain, from recomputed logits."""
    pm, pn, strips = tile_strips(
        X, Y, num_rows, num_columns, x_stride, y_stride, depth, EVEN, BM, BN, BK, WIDTH, GROUP
    )
    lines = (ROW_TOP, ROW_TOTAL, COLUMN_TOP, COLUMN_TOTAL)
    for i in tl.static_range(BN // WIDTH):
        strip = strip_at(pm * BM, pn * BN + i * WIDTH, num_rows, num_columns, BM, WIDTH)
        logits, norms = scaled_logits(strips[i], strip, SCALE, XNORM, YNORM)
        positive = positives(strip, XLABELS, YLABELS, offset)
        share = SHARES + tl.program_id(0) * (BN // WIDTH) + i
        g = _by_logits(logits, positive, strip, lines, WEIGHT, target, uniform)
        tl.store(share, tl.sum(tl.sum(g * logits, 1), 0) * LN2)
        store_gradient(G, g * (norms * tl.load(GAIN)), strip, num_columns, LIMIT)


@triton.jit
def kept_grad_kernel(
    KEPT,  # as sums_kernel left it, from the first row and column of this launch on
    STRIP_TOP,
    TILE_TOP,  # COLUMN_TOP of sums_kernel
    POSITIVE,  # (num_rows,): exact logits of the positives
    XNORM,
    YNORM,
    ROW_TOP,
    ROW_TOTAL,
    COLUMN_TOP,
    COLUMN_TOTAL,
    WEIGHT,
    GAIN,
    G,
    SHARES,  # one a program
    num_rows,
    num_columns,
    offset,
    all_rows,  # of the block
    all_columns,
    target,
    uniform,
    BM: tl.constexpr,  # rows of a tile of the sums_kernel that kept the logits
    WIDTH: tl.constexpr,  # and columns of its strips
    LIMIT: tl.constexpr,
):
    """The same from kept logits."""
    num_strips = tl.cdiv(num_columns, WIDTH)
    pm, ps = tl.program_id(0) // num_strips, tl.program_id(0) % num_strips
    strip = strip_at(pm * BM, ps * WIDTH, num_rows, num_columns, BM, WIDTH)
    place = strip.rows.to(tl.int64)[:, None] * all_columns + strip.columns[None, :]
    logits = tl.load(KEPT + place, mask=inside(strip), other=0.0).to(tl.float32)
    strip_tops = STRIP_TOP + ps.to(tl.int64) * all_rows + strip.rows
    strip_top = tl.load(strip_tops, mask=strip.valid_row, other=0.0)
    column_part = pm.to(tl.int64) * all_columns + strip.columns
    tile_top = tl.load(TILE_TOP + column_part, mask=strip.valid_column, other=0.0)
    logits += 0.5 * (strip_top[:, None] + tile_top[None, :])
    positive = positives(strip, None, None, offset)
    exact = tl.load(POSITIVE + strip.rows, mask=strip.valid_row, other=0.0)
    logits = tl.where(positive, exact[:, None], logits)
    norms = strip_norms(strip, XNORM, YNORM)
    lines = (ROW_TOP, ROW_TOTAL, COLUMN_TOP, COLUMN_TOTAL)
    g = _by_logits(logits, positive, strip, lines, WEIGHT, target, uniform)
    tl.store(SHARES + tl.program_id(0), tl.sum(tl.sum(g * logits, 1), 0) * LN2)
    store_gradient(G, g * (norms * tl.load(GAIN)), strip, num_columns, LIMIT)


@triton.jit
def _by_logits(logits, positive, strip, lines, WEIGHT, target, uniform):
    """G_ij of a strip; ``lines`` are the tops and totals of the block's rows and columns."""
    ROW_TOP, ROW_TOTAL, COLUMN_TOP, COLUMN_TOTAL = lines
    valid = inside(strip)
    row_top = tl.load(ROW_TOP + strip.rows, mask=strip.valid_row, other=0.0)
    row_share = 1.0 / tl.load(ROW_TOTAL + strip.rows, mask=strip.valid_row, other=1.0)
    column_top = tl.load(COLUMN_TOP + strip.columns, mask=strip.valid_column, other=0.0)
    column_share = 1.0 / tl.load(COLUMN_TOTAL + strip.columns, mask=strip.valid_column, other=1.0)
    g = tl.exp2(logits - row_top[:, None]) * row_share[:, None] - uniform
    g += tl.exp2(logits - column_top[None, :]) * column_share[None, :]
    if WEIGHT is None:
        g = tl.where(positive, g - target, g)
    else:
        weight = tl.load(WEIGHT + strip.rows, mask=strip.valid_row, other=0.0)
        g = tl.where(positive, g - target * weight[:, None], g)
    return tl.where(valid, g, 0.0)
