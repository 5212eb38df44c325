"""The block functions on Triton kernels.

Forward: one launch for some rows x all columns writes sums over each tile, which a second, small
kernel merges in a fixed order. Backward: G in 16 bits for one tile of the block at a time,
then two matrix products accumulate it into float32 gradients. No n x N tensor, no atomics.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from pipeline.loss.block import (
    Block,
    BlockGradient,
    BlockSums,
    SavedSums,
    Tile,
    Wanted,
    tile_ranges,
)
from pipeline.loss.triton_launch import Launcher, Part, kept_dtype

G_TILE: Tile = (8192, 8192)  # 128 MiB in 16 bits: long enough for the matrix products to fill a GPU
FLOAT16_GAIN = 2.0**14  # |G| <= 2, so 2^15: G's tail of 1/N stays out of float16's denormals


def kept_logit_bytes(dtype: torch.dtype) -> int:
    return kept_dtype(dtype).itemsize


def block_sums(
    block: Block, *, tile: Tile | None, want_best: bool = False, keep_logits: bool = False
) -> BlockSums:
    return Launcher(block).sums(want_best, keep_logits)


def block_grad(
    block: Block, sums: SavedSums, wanted: Wanted, tile: Tile | None, label_smoothing: float = 0.0
) -> BlockGradient:
    launcher = Launcher(block)
    gradient = _FeatureGradient(launcher, wanted, tile)
    targets = (2.0 * (1.0 - label_smoothing), 2.0 * label_smoothing / len(block.y))
    shares = []
    for part in gradient.parts():
        shares.append(launcher.grad(part, sums, gradient.gain, targets))
        gradient.add(part)
    return gradient.finish(torch.cat(shares).sum())


def block_sigmoid(
    block: Block, bias: Tensor, wanted: Wanted | None, tile: Tile | None
) -> tuple[Tensor, BlockGradient | None]:
    launcher = Launcher(block)
    gradient = _FeatureGradient(launcher, wanted, tile)
    sums = []
    for part in gradient.parts():
        sums.append(launcher.sigmoid(part, bias, gradient.gain))
        gradient.add(part)
    loss, by_scale, by_bias = torch.cat(sums, dim=1).sum(1)
    if wanted is None:
        return loss, None
    result = gradient.finish(by_scale)
    result.bias = by_bias
    return loss, result


class _FeatureGradient:
    """The buffer for a tile of G, and the float32 sums of G @ y and G.T @ x over tiles.

    There is no buffer where nothing is wanted.
    """

    def __init__(self, launcher: Launcher, wanted: Wanted | None, tile: Tile | None) -> None:
        self.x, self.y = launcher.x, launcher.y
        shape = launcher.shape
        sides = [
            min(math.ceil(limit / unit) * unit, math.ceil(size / unit) * unit)
            for limit, unit, size in zip(
                tile or G_TILE, (shape.rows, shape.strip), (len(self.x), len(self.y)), strict=True
            )
        ]
        self.tile = (sides[0], sides[1])
        self.gain = _gain(launcher.block)
        self._buffer, self.dx, self.dy = None, None, None
        if wanted is not None:
            self._buffer = self.x.new_empty(sides[0] * sides[1])
            self.dx = torch.zeros_like(self.x, dtype=torch.float32) if wanted.x else None
            self.dy = torch.zeros_like(self.y, dtype=torch.float32) if wanted.y else None

    def parts(self) -> Iterator[Part]:
        """Yield the parts of the block, each with the buffer cut to fit it; the next part
        overwrites its G."""
        for rows, columns in tile_ranges((len(self.x), len(self.y)), self.tile):
            g = None
            if self._buffer is not None:
                height, width = rows.stop - rows.start, columns.stop - columns.start
                g = self._buffer[: height * width].view(height, width)
            yield Part(rows, columns, g)

    def add(self, part: Part) -> None:
        if self.dx is not None and part.g is not None:
            _accumulate(self.dx[part.rows], part.g, self.y[part.columns])
        if self.dy is not None and part.g is not None:
            _accumulate(self.dy[part.columns], part.g.T, self.x[part.rows])

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
        if norms is not None:
            # a row of no length has 1e12: its product with G is clamped, and with the row is 0
            gain /= torch.where(norms < 1e11, norms, 0.0).amax().clamp_min(1e-30)
    return gain
