# mypy: disable-error-code="no-untyped-def, assignment"
"""Triton kernel of the sigmoid loss: value and G, its derivative by the logits, in one pass."""

from __future__ import annotations

import triton
import triton.language as tl

from pipeline.loss.tile_math import (
    LN2,
    LOG2E,
    inside,
    positives,
    scaled_logits,
    store_gradient,
    strip_at,
    tile_strips,
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
    LIMIT: tl.constexpr,
):
    """softplus(z_ij) and its derivative by l_ij; z is the logit plus bias, negated at positives."""
    pm, pn, strips = tile_strips(
        X, Y, num_rows, num_columns, x_stride, y_stride, depth, EVEN, BM, BN, BK, WIDTH, GROUP
    )
    bias = tl.load(BIAS) * LOG2E
    for i in tl.static_range(BN // WIDTH):
        strip = strip_at(pm * BM, pn * BN + i * WIDTH, num_rows, num_columns, BM, WIDTH)
        valid = inside(strip)
        logits, norms = scaled_logits(strips[i], strip, SCALE, XNORM, YNORM)
        positive = positives(strip, XLABELS, YLABELS, offset)
        z = tl.where(positive, -(logits + bias), logits + bias)
        tail = tl.exp2(-tl.abs(z))
        softplus = tl.where(valid, tl.maximum(z, 0.0) + _log2_1p(tail), 0.0)
        sums = SUMS + tl.program_id(0) * (BN // WIDTH) + i
        tl.store(sums, tl.sum(tl.sum(softplus, 1), 0) * LN2)
        if G is not None:
            g = tl.where(z >= 0, 1.0, tail) / (1.0 + tail)
            g = tl.where(valid, tl.where(positive, -g, g), 0.0)
            tl.store(sums + sums_stride, tl.sum(tl.sum(g * logits, 1), 0) * LN2)
            tl.store(sums + 2 * sums_stride, tl.sum(tl.sum(g, 1), 0))
            h = g * (norms * tl.load(GAIN))
            store_gradient(G, h, strip, num_columns, LIMIT)


@triton.jit
def _log2_1p(t):
    """log2(1 + t) for t in [0, 1], without rounding 1 + t: t is 5e-5 at the initial bias of -10."""
    series = t * (1.0 - t * (0.5 - t * (1.0 / 3.0 - 0.25 * t))) * LOG2E
    return tl.where(t < 0.015625, series, tl.log2(1.0 + t))
