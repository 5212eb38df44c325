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
    add_sums,
    column_strips,
    line_sums,
    log2_1p,
    scaled_logits,
    store_gradient,
    tile_dots,
    tile_place,
    tile_positives,
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
    PRECISION: tl.constexpr,
):
    """Sums of exponentials over the rows and the columns of every tile."""
    pm, pn = tile_place(num_rows, num_columns, BM, BN, GROUP)
    dots = tile_dots(
        X, Y, pm, pn, num_rows, num_columns, x_stride, y_stride, depth, EVEN, BM, BN, BK, PRECISION
    )
    strips = column_strips(dots, BM, BN, WIDTH)
    rows = pm * BM + tl.arange(0, BM)
    valid_row = rows < num_rows
    row_part = pn.to(tl.int64) * num_rows + rows
    first = pm * BM + offset  # column of the first row's positive
    row_top = tl.full((BM,), float("-inf"), tl.float32)
    row_total = tl.zeros((BM,), tl.float32)
    row_positive = tl.zeros((BM,), tl.float32)
    row_best = tl.full((BM,), float("-inf"), tl.float32)
    row_rival = tl.full((BM,), float("-inf"), tl.float32)
    for i in tl.static_range(BN // WIDTH):
        strip = pn * (BN // WIDTH) + i
        columns = strip * WIDTH + tl.arange(0, WIDTH)
        valid_column = columns < num_columns
        valid = valid_row[:, None] & valid_column[None, :]
        column_part = pm.to(tl.int64) * num_columns + columns
        logits, _ = scaled_logits(
            strips[i], SCALE, XNORM, YNORM, rows, columns, valid_row, valid_column
        )
        logits = tl.where(valid, logits, float("-inf"))
        if XLABELS is not None:
            positive = tile_positives(
                XLABELS, YLABELS, rows, columns, valid_row, valid_column, offset
            )
            row_positive += tl.sum(tl.where(positive, logits, 0.0), 1)
        elif (first < strip * WIDTH + WIDTH) & (first + BM > strip * WIDTH):
            # the diagonal crosses the strip, as it does few; the sum costs two barriers
            positive = tile_positives(
                XLABELS, YLABELS, rows, columns, valid_row, valid_column, offset
            )
            strip_positive = tl.sum(tl.where(positive, logits, 0.0), 1)
            target = rows + offset - strip * WIDTH
            here = (target >= 0) & (target < WIDTH) & (rows + offset < num_columns)
            tl.store(POSITIVE + rows, strip_positive, mask=here & valid_row)
        if ROW_BEST is not None:
            positive = tile_positives(
                XLABELS, YLABELS, rows, columns, valid_row, valid_column, offset
            )
            best = tl.where(positive, logits, float("-inf"))
            rival = tl.where(positive, float("-inf"), logits)
            row_best = tl.maximum(row_best, tl.max(best, 1))
            row_rival = tl.maximum(row_rival, tl.max(rival, 1))
            second = tl.cdiv(num_rows, BM).to(tl.int64) * num_columns
            tl.store(COLUMN_BEST + column_part, tl.max(best, 0), mask=valid_column)
            tl.store(COLUMN_BEST + second + column_part, tl.max(rival, 0), mask=valid_column)
        strip_top, strip_total = line_sums(logits, 1)
        column_top, column_total = line_sums(logits, 0)
        tl.store(COLUMN_TOP + column_part, column_top, mask=valid_column)
        tl.store(COLUMN_TOTAL + column_part, column_total, mask=valid_column)
        if KEPT is not None:
            # a strip past the last column, in the last tile, has no line in STRIP_TOP
            there = rows < tl.where(strip * WIDTH < num_columns, num_rows, 0)
            tl.store(STRIP_TOP + strip.to(tl.int64) * num_rows + rows, strip_top, mask=there)
            kept = logits - 0.5 * (strip_top[:, None] + column_top[None, :])
            place = rows.to(tl.int64)[:, None] * num_columns + columns[None, :]
            tl.store(KEPT + place, kept.to(KEPT.dtype.element_ty), mask=valid)
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


@triton.jit
def _clip_gradient(
    logits,
    norms,
    positive,
    ROW_TOP,
    ROW_TOTAL,
    COLUMN_TOP,
    COLUMN_TOTAL,
    WEIGHT,
    GAIN,
    G,
    SHARE,
    rows,
    columns,
    num_columns,
    valid_row,
    valid_column,
    target,
    uniform,
    LIMIT: tl.constexpr,
):
    """From logits to their part of G and their share of sum G_ij l_ij."""
    valid = valid_row[:, None] & valid_column[None, :]
    row_top = tl.load(ROW_TOP + rows, mask=valid_row, other=0.0)
    row_share = 1.0 / tl.load(ROW_TOTAL + rows, mask=valid_row, other=1.0)
    column_top = tl.load(COLUMN_TOP + columns, mask=valid_column, other=0.0)
    column_share = 1.0 / tl.load(COLUMN_TOTAL + columns, mask=valid_column, other=1.0)
    g = tl.exp2(logits - row_top[:, None]) * row_share[:, None] - uniform
    g += tl.exp2(logits - column_top[None, :]) * column_share[None, :]
    if WEIGHT is None:
        g = tl.where(positive, g - target, g)
    else:
        weight = tl.load(WEIGHT + rows, mask=valid_row, other=0.0)
        g = tl.where(positive, g - target * weight[:, None], g)
    g = tl.where(valid, g, 0.0)
    tl.store(SHARE, tl.sum(tl.sum(g * logits, 1), 0) * LN2)
    store_gradient(G, g * (norms * tl.load(GAIN)), rows, columns, num_columns, valid, LIMIT)


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
    PRECISION: tl.constexpr,
    LIMIT: tl.constexpr,
):
    """G_ij times the inverse norms and the gain, from recomputed logits."""
    pm, pn = tile_place(num_rows, num_columns, BM, BN, GROUP)
    dots = tile_dots(
        X, Y, pm, pn, num_rows, num_columns, x_stride, y_stride, depth, EVEN, BM, BN, BK, PRECISION
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
            ROW_TOP,
            ROW_TOTAL,
            COLUMN_TOP,
            COLUMN_TOTAL,
            WEIGHT,
            GAIN,
            G,
            share,
            rows,
            columns,
            num_columns,
            valid_row,
            valid_column,
            target,
            uniform,
            LIMIT,
        )


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
    pm, strip = tl.program_id(0) // num_strips, tl.program_id(0) % num_strips
    rows = pm * BM + tl.arange(0, BM)
    columns = strip * WIDTH + tl.arange(0, WIDTH)
    valid_row = rows < num_rows
    valid_column = columns < num_columns
    valid = valid_row[:, None] & valid_column[None, :]
    place = rows.to(tl.int64)[:, None] * all_columns + columns[None, :]
    logits = tl.load(KEPT + place, mask=valid, other=0.0).to(tl.float32)
    strip_top = tl.load(STRIP_TOP + strip.to(tl.int64) * all_rows + rows, mask=valid_row, other=0.0)
    column_part = pm.to(tl.int64) * all_columns + columns
    tile_top = tl.load(TILE_TOP + column_part, mask=valid_column, other=0.0)
    logits += 0.5 * (strip_top[:, None] + tile_top[None, :])
    positive = tile_positives(None, None, rows, columns, valid_row, valid_column, offset)
    exact = tl.load(POSITIVE + rows, mask=valid_row, other=0.0)
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
        ROW_TOP,
        ROW_TOTAL,
        COLUMN_TOP,
        COLUMN_TOTAL,
        WEIGHT,
        GAIN,
        G,
        SHARES + tl.program_id(0),
        rows,
        columns,
        num_columns,
        valid_row,
        valid_column,
        target,
        uniform,
        LIMIT,
    )


@triton.jit
def sigmoid_kernel(
    X,  # as in sums_kernel
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
    depth,
    sums_stride,
    EVEN: tl.constexpr,
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
        X, Y, pm, pn, num_rows, num_columns, x_stride, y_stride, depth, EVEN, BM, BN, BK, PRECISION
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
