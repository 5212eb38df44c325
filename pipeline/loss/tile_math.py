# mypy: disable-error-code="no-untyped-def, assignment"
"""What the Triton kernels share: where a tile lies, its dot products, logits, positives, sums.

Logits are in base 2 (``exp2`` is one instruction); scale and inverse norms are applied in float32
to the raw dot products. Pointers may be None where a feature is off; the branch is compiled away.

A kernel's epilogue runs on one strip of columns after the other. On the whole tile it needs several
values of every element at once and spills (128 x 128 tile, 8 warps, sm_90: 254 registers for the
gradient, 128 in strips of 32, which lets two programs share a multiprocessor).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


class Strip(NamedTuple):
    """Where a strip of a tile lies in the block, and which of its rows and columns exist there."""

    top: Any  # first row
    left: Any  # first column
    rows: Any  # (BM,)
    columns: Any  # (WIDTH,)
    valid_row: Any
    valid_column: Any


@triton.jit
def strip_at(top, left, num_rows, num_columns, BM: tl.constexpr, WIDTH: tl.constexpr):
    """The strip whose first row and column are ``top`` and ``left``."""
    rows = top + tl.arange(0, BM)
    columns = left + tl.arange(0, WIDTH)
    valid_row = rows < num_rows
    valid_column = columns < num_columns
    return Strip(top, left, rows, columns, valid_row, valid_column)


@triton.jit
def inside(strip):
    """Mask of the strip's elements that lie in the block."""
    return strip.valid_row[:, None] & strip.valid_column[None, :]


@triton.jit
def tile_strips(
    X,
    Y,
    num_rows,
    num_columns,
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
    """Row and column of this program's tile, and its <x_i, y_j> in float32, in strips of columns.

    Rows and columns past the end repeat the first. ``depth``, the features' dimension, is no
    constant: one binary serves all, and the loop is not unrolled, which would cost sm_80 80
    registers at 512. EVEN says that BK divides it.
    """
    pm, pn = _tile_place(num_rows, num_columns, BM, BN, GROUP)
    rows = pm * BM + tl.arange(0, BM)
    columns = pn * BN + tl.arange(0, BN)
    rows = tl.where(rows < num_rows, rows, 0).to(tl.int64)
    columns = tl.where(columns < num_columns, columns, 0).to(tl.int64)
    k = tl.arange(0, BK)
    x = X + rows[:, None] * x_stride + k[None, :]
    y = Y + columns[None, :] * y_stride + k[:, None]
    dots = tl.zeros((BM, BN), tl.float32)
    for start in range(0, depth, BK):
        if EVEN:
            a = tl.load(x)
            b = tl.load(y)
        else:
            a = tl.load(x, mask=k[None, :] < depth - start, other=0.0)
            b = tl.load(y, mask=k[:, None] < depth - start, other=0.0)
        dots = tl.dot(a, b, dots, input_precision="ieee")
        x += BK
        y += BK
    return pm, pn, _column_strips(dots, BM, BN, WIDTH)


@triton.jit
def _tile_place(num_rows, num_columns, BM: tl.constexpr, BN: tl.constexpr, GROUP: tl.constexpr):
    """Tile coordinates of this program; groups of GROUP tile rows share columns in L2."""
    program = tl.program_id(0)
    tiles_m = tl.cdiv(num_rows, BM)
    tiles_n = tl.cdiv(num_columns, BN)
    group = program // (GROUP * tiles_n)
    height = min(tiles_m - group * GROUP, GROUP)
    within = program % (GROUP * tiles_n)
    return group * GROUP + within % height, within // height


@triton.jit
def _halves(tile, BM: tl.constexpr, BN: tl.constexpr):
    """Left and right half of a tile's columns; elements stay in the threads that hold them."""
    return tl.split(tl.permute(tl.reshape(tile, (BM, 2, BN // 2)), (0, 2, 1)))


@triton.jit
def _column_strips(tile, BM: tl.constexpr, BN: tl.constexpr, WIDTH: tl.constexpr):
    """The tile cut into BN / WIDTH (1, 2 or 4) strips of columns, from left to right."""
    if BN == WIDTH:
        strips = (tile,)
    elif BN == 2 * WIDTH:
        strips = _halves(tile, BM, BN)
    else:
        left, right = _halves(tile, BM, BN)
        first, second = _halves(left, BM, BN // 2)
        third, fourth = _halves(right, BM, BN // 2)
        strips = (first, second, third, fourth)
    return strips


@triton.jit
def strip_norms(strip, XNORM, YNORM):
    """Products of the inverse norms; 1 without normalisation."""
    if XNORM is None:
        norms = 1.0
    else:
        a = tl.load(XNORM + strip.rows, mask=strip.valid_row, other=0.0)
        b = tl.load(YNORM + strip.columns, mask=strip.valid_column, other=0.0)
        norms = a[:, None] * b[None, :]
    return norms


@triton.jit
def scaled_logits(dots, strip, SCALE, XNORM, YNORM):
    """Logits in base 2, and the products of the inverse norms."""
    scale = tl.load(SCALE) * LOG2E
    norms = strip_norms(strip, XNORM, YNORM)
    return dots * (norms * scale), norms


@triton.jit
def positives(strip, XLABELS, YLABELS, offset):
    """Mask of the positives; out-of-range rows and columns have none."""
    if XLABELS is None:
        valid = inside(strip)
        positive = valid & ((strip.rows + offset)[:, None] == strip.columns[None, :])
    else:
        x = tl.load(XLABELS + strip.rows, mask=strip.valid_row, other=-1)
        y = tl.load(YLABELS + strip.columns, mask=strip.valid_column, other=-2)
        positive = x[:, None] == y[None, :]
    return positive


@triton.jit
def line_sums(logits, AXIS: tl.constexpr):
    """Largest logit along an axis, and the sum of exp2(logit - largest); 0 where all are -inf.

    A shift shared by rows and columns would save an exponential, but a row that lies 87 below the
    top of its tile would sum to zero in float32, which scale 100 makes possible.
    """
    top = tl.max(logits, AXIS)
    shift = tl.where(top == float("-inf"), 0.0, top)
    return top, tl.sum(tl.exp2(logits - tl.expand_dims(shift, AXIS)), AXIS)


@triton.jit
def add_sums(top, total, other_top, other_total):
    """Add two sums of the form total * 2^top."""
    new_top = tl.maximum(top, other_top)
    shift = tl.where(new_top == float("-inf"), 0.0, new_top)
    return new_top, total * tl.exp2(top - shift) + other_total * tl.exp2(other_top - shift)


@triton.jit
def store_gradient(G, h, strip, num_columns, LIMIT: tl.constexpr):
    """Store part of the matrix that multiplies the features; LIMIT is its dtype's, 0 for none."""
    if LIMIT > 0:
        h = tl.minimum(tl.maximum(h, -LIMIT), LIMIT)
    place = strip.rows.to(tl.int64)[:, None] * num_columns + strip.columns[None, :]
    tl.store(G + place, h.to(G.dtype.element_ty), mask=inside(strip))
