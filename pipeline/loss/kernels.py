# mypy: disable-error-code="no-untyped-def"
"""Triton kernels over tiles of the logits: log-sum-exps, the gradient by the logits, sigmoid loss.

They share one matrix product and one treatment of positives, and differ in their epilogue. None
uses atomics, so results do not depend on scheduling.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pipeline.loss.tile_math import (
    LN2,
    LOG2E,
    column_strips,
    line_lse,
    log2_1p,
    scaled_logits,
    store_gradient,
    tile_dots,
    tile_place,
    tile_positives,
)


@triton.jit
def lse_kernel(
    X,  # (num_rows, D)
    Y,  # (num_columns, D)
    SCALE,  # one float32
    XNORM,  # (num_rows,) inverse norms; or None
    YNORM,  # (num_columns,)
    XLABELS,  # (num_rows,) int32; or None
    YLABELS,  # (num_columns,)
    ROW_LSE,  # (strips, num_rows), base 2
    COLUMN_LSE,  # (tiles_m, num_columns)
    POSITIVE,  # (num_rows,), with labels (strips, num_rows): sum of the positives' logits, base 2
    ROW_BEST,  # (2, strips, num_rows): largest positive, largest negative; or None
    COLUMN_BEST,  # (2, tiles_m, num_columns)
    KEPT,  # (num_rows, num_columns): logits less the mean of ROW_MAX, COLUMN_MAX; or None
    ROW_MAX,  # (strips, num_rows)
    COLUMN_MAX,  # (tiles_m, num_columns)
    num_rows,
    num_columns,
    offset,
    x_stride,
    y_stride,
    D: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    WIDTH: tl.constexpr,
    GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Log-sum-exp of the columns of every tile and of the rows of every strip."""
    pm, pn = tile_place(num_rows, num_columns, BM, BN, GROUP)
    dots = tile_dots(
        X, Y, pm, pn, num_rows, num_columns, x_stride, y_stride, D, BM, BN, BK, PRECISION
    )
    strips = column_strips(dots, BM, BN, WIDTH)
    rows = pm * BM + tl.arange(0, BM)
    valid_row = rows < num_rows
    for i in tl.static_range(BN // WIDTH):
        strip = pn * (BN // WIDTH) + i
        columns = strip * WIDTH + tl.arange(0, WIDTH)
        valid_column = columns < num_columns
        valid = valid_row[:, None] & valid_column[None, :]
        row_part = strip.to(tl.int64) * num_rows + rows
        # a strip past the last column, in the last tile, has no line among the row parts
        in_strip = rows < tl.where(strip * WIDTH < num_columns, num_rows, 0)
        column_part = pm.to(tl.int64) * num_columns + columns
        logits, _ = scaled_logits(
            strips[i], SCALE, XNORM, YNORM, rows, columns, valid_row, valid_column
        )
        logits = tl.where(valid, logits, float("-inf"))
        positive = tile_positives(XLABELS, YLABELS, rows, columns, valid_row, valid_column, offset)
        total = tl.sum(tl.where(positive, logits, 0.0), 1)
        if XLABELS is None:
            target = rows + offset - strip * WIDTH
            here = (target >= 0) & (target < WIDTH) & (rows + offset < num_columns)
            tl.store(POSITIVE + rows, total, mask=here & valid_row)
        else:
            tl.store(POSITIVE + row_part, total, mask=in_strip)
        if ROW_BEST is not None:
            best = tl.where(positive, logits, float("-inf"))
            rival = tl.where(positive, float("-inf"), logits)
            next_rows = tl.cdiv(num_columns, WIDTH).to(tl.int64) * num_rows
            next_columns = tl.cdiv(num_rows, BM).to(tl.int64) * num_columns
            tl.store(ROW_BEST + row_part, tl.max(best, 1), mask=in_strip)
            tl.store(ROW_BEST + next_rows + row_part, tl.max(rival, 1), mask=in_strip)
            tl.store(COLUMN_BEST + column_part, tl.max(best, 0), mask=valid_column)
            tl.store(COLUMN_BEST + next_columns + column_part, tl.max(rival, 0), mask=valid_column)
        row_max, row_lse = line_lse(logits, 1)
        column_max, column_lse = line_lse(logits, 0)
        tl.store(ROW_LSE + row_part, row_lse, mask=in_strip)
        tl.store(COLUMN_LSE + column_part, column_lse, mask=valid_column)
        if KEPT is not None:
            tl.store(ROW_MAX + row_part, row_max, mask=in_strip)
            tl.store(COLUMN_MAX + column_part, column_max, mask=valid_column)
            kept = logits - 0.5 * (row_max[:, None] + column_max[None, :])
            place = rows.to(tl.int64)[:, None] * num_columns + columns[None, :]
            tl.store(KEPT + place, kept.to(KEPT.dtype.element_ty), mask=valid)


@triton.jit
def merge_kernel(
    PARTS,  # (num_parts, width)
    OUT,  # (width,)
    num_parts,
    width,
    ACCUMULATE: tl.constexpr,
    BP: tl.constexpr,
    BW: tl.constexpr,
):
    """Base-2 log-sum-exp over parts, in their order, and over what OUT holds already."""
    places = tl.program_id(0) * BW + tl.arange(0, BW)
    valid = places < width
    if ACCUMULATE:
        top = tl.load(OUT + places, mask=valid, other=0.0)
        total = tl.full((BW,), 1.0, tl.float32)
    else:
        top = tl.full((BW,), float("-inf"), tl.float32)
        total = tl.zeros((BW,), tl.float32)
    for start in range(0, num_parts, BP):
        parts = start + tl.arange(0, BP)
        there = (parts < num_parts)[:, None] & valid[None, :]
        place = parts.to(tl.int64)[:, None] * width + places[None, :]
        values = tl.load(PARTS + place, mask=there, other=float("-inf"))
        new_top = tl.where(valid, tl.maximum(top, tl.max(values, 0)), 0.0)
        terms = tl.sum(tl.exp2(values - new_top[None, :]), 0)
        total = total * tl.exp2(top - new_top) + terms
        top = new_top
    tl.store(OUT + places, top + tl.log2(total), mask=valid)


@triton.jit
def _clip_gradient(
    logits,
    norms,
    positive,
    ROW_LSE,
    COLUMN_LSE,
    WEIGHT,
    GAIN,
    G,
    SHARE,
    rows,
    columns,
    num_columns,
    valid_row,
    valid_column,
    uniform,
    LIMIT: tl.constexpr,
):
    """From logits to their part of G and their share of sum G_ij l_ij."""
    valid = valid_row[:, None] & valid_column[None, :]
    row_lse = tl.load(ROW_LSE + rows, mask=valid_row, other=0.0) * LOG2E
    column_lse = tl.load(COLUMN_LSE + columns, mask=valid_column, other=0.0) * LOG2E
    weight = tl.load(WEIGHT + rows, mask=valid_row, other=0.0)
    g = tl.exp2(logits - row_lse[:, None]) + tl.exp2(logits - column_lse[None, :]) - uniform
    g = tl.where(positive, g - weight[:, None], g)
    g = tl.where(valid, g, 0.0)
    tl.store(SHARE, tl.sum(tl.sum(g * logits, 1), 0) * LN2)
    store_gradient(G, g * (norms * tl.load(GAIN)), rows, columns, num_columns, valid, LIMIT)


@triton.jit
def grad_kernel(
    X,  # as in lse_kernel
    Y,
    SCALE,
    XNORM,
    YNORM,
    XLABELS,
    YLABELS,
    ROW_LSE,  # (num_rows,), natural logarithm
    COLUMN_LSE,  # (num_columns,)
    WEIGHT,  # (num_rows,): what to subtract at a row's positives
    GAIN,  # one float32
    G,  # (num_rows, num_columns), the features' dtype
    SHARES,  # (programs * strips of a tile,)
    num_rows,
    num_columns,
    offset,
    x_stride,
    y_stride,
    uniform,
    D: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    WIDTH: tl.constexpr,
    GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
    LIMIT: tl.constexpr,
):
    """G_ij times the inverse norms and the gain, from recomputed logits."""
    pm, pn = tile_place(num_rows, num_columns, BM, BN, GROUP)
    dots = tile_dots(
        X, Y, pm, pn, num_rows, num_columns, x_stride, y_stride, D, BM, BN, BK, PRECISION
    )
    strips = column_strips(dots, BM, BN, WIDTH)
    rows = pm * BM + tl.arange(0, BM)
    valid_row = rows < num_rows
    for i in tl.static_range(BN // WIDTH):
        columns = pn * BN + i * WIDTH + tl.arange(0, WIDTH)
        valid_column = columns < num_columns
        logits, norms = scaled_logits(
            strips[i], SCALE, XNORM, YNORM, rows, columns, valid_row, valid_column
        )
        positive = tile_positives(XLABELS, YLABELS, rows, columns, valid_row, valid_column, offset)
        share = SHARES + tl.program_id(0) * (BN // WIDTH) + i
        _clip_gradient(
            logits,
            norms,
            positive,
            ROW_LSE,
            COLUMN_LSE,
            WEIGHT,
            GAIN,
            G,
            share,
            rows,
            columns,
            num_columns,
            valid_row,
            valid_column,
            uniform,
            LIMIT,
        )


@triton.jit
def kept_grad_kernel(
    KEPT,  # as lse_kernel left it, from the first row and column of this launch on
    ROW_MAX,
    COLUMN_MAX,
    POSITIVE,  # (num_rows,): exact logits of the positives, natural
    XNORM,
    YNORM,
    ROW_LSE,
    COLUMN_LSE,
    WEIGHT,
    GAIN,
    G,
    SHARES,  # one a program
    num_rows,
    num_columns,
    offset,
    all_rows,  # of the block
    all_columns,
    uniform,
    BM: tl.constexpr,  # rows of a tile of the lse_kernel that kept the logits
    WIDTH: tl.constexpr,  # and columns of its strips
    LIMIT: tl.constexpr,
):
    """The same from kept logits."""
    num_strips = tl.cdiv(num_columns, WIDTH)
    pm, strip = tl.program_id(0) // num_strips, tl.program_id(0) % num_strips
    rows = pm * BM + tl.arange(0, BM)
    columns = strip * WIDTH + tl.arange(0, WIDTH)
    valid_row = rows < num_rows
    valid_column = columns < num_columns
    valid = valid_row[:, None] & valid_column[None, :]
    place = rows.to(tl.int64)[:, None] * all_columns + columns[None, :]
    logits = tl.load(KEPT + place, mask=valid, other=0.0).to(tl.float32)
    row_max = tl.load(ROW_MAX + strip.to(tl.int64) * all_rows + rows, mask=valid_row, other=0.0)
    column_part = pm.to(tl.int64) * all_columns + columns
    column_max = tl.load(COLUMN_MAX + column_part, mask=valid_column, other=0.0)
    logits += 0.5 * (row_max[:, None] + column_max[None, :])
    positive = tile_positives(None, None, rows, columns, valid_row, valid_column, offset)
    exact = tl.load(POSITIVE + rows, mask=valid_row, other=0.0) * LOG2E
    logits = tl.where(positive, exact[:, None], logits)
    norms = 1.0
    if XNORM is not None:
        a = tl.load(XNORM + rows, mask=valid_row, other=0.0)
        b = tl.load(YNORM + columns, mask=valid_column, other=0.0)
        norms = a[:, None] * b[None, :]
    _clip_gradient(
        logits,
        norms,
        positive,
        ROW_LSE,
        COLUMN_LSE,
        WEIGHT,
        GAIN,
        G,
        SHARES + tl.program_id(0),
        rows,
        columns,
        num_columns,
        valid_row,
        valid_column,
        uniform,
        LIMIT,
    )


@triton.jit
def sigmoid_kernel(
    X,  # as in lse_kernel
    Y,
    SCALE,
    BIAS,  # one float32
    XNORM,
    YNORM,
    XLABELS,
    YLABELS,
    GAIN,
    G,  # (num_rows, num_columns), the features' dtype; or None for the loss alone
    SUMS,  # (3, programs * strips of a tile): loss, sum of G_ij l_ij, sum of G_ij
    num_rows,
    num_columns,
    offset,
    x_stride,
    y_stride,
    sums_stride,
    D: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    WIDTH: tl.constexpr,
    GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
    LIMIT: tl.constexpr,
):
    """softplus(z_ij) and its derivative by l_ij; z is the logit plus bias, negated at positives."""
    pm, pn = tile_place(num_rows, num_columns, BM, BN, GROUP)
    dots = tile_dots(
        X, Y, pm, pn, num_rows, num_columns, x_stride, y_stride, D, BM, BN, BK, PRECISION
    )
    strips = column_strips(dots, BM, BN, WIDTH)
    rows = pm * BM + tl.arange(0, BM)
    valid_row = rows < num_rows
    bias = tl.load(BIAS) * LOG2E
    for i in tl.static_range(BN // WIDTH):
        columns = pn * BN + i * WIDTH + tl.arange(0, WIDTH)
        valid_column = columns < num_columns
        valid = valid_row[:, None] & valid_column[None, :]
        logits, norms = scaled_logits(
            strips[i], SCALE, XNORM, YNORM, rows, columns, valid_row, valid_column
        )
        positive = tile_positives(XLABELS, YLABELS, rows, columns, valid_row, valid_column, offset)
        z = tl.where(positive, -(logits + bias), logits + bias)
        tail = tl.exp2(-tl.abs(z))
        softplus = tl.where(valid, tl.maximum(z, 0.0) + log2_1p(tail), 0.0)
        sums = SUMS + tl.program_id(0) * (BN // WIDTH) + i
        tl.store(sums, tl.sum(tl.sum(softplus, 1), 0) * LN2)
        if G is not None:
            g = tl.where(z >= 0, 1.0, tail) / (1.0 + tail)
            g = tl.where(valid, tl.where(positive, -g, g), 0.0)
            tl.store(sums + sums_stride, tl.sum(tl.sum(g * logits, 1), 0) * LN2)
            tl.store(sums + 2 * sums_stride, tl.sum(tl.sum(g, 1), 0))
            h = g * (norms * tl.load(GAIN))
            store_gradient(G, h, rows, columns, num_columns, valid, LIMIT)
