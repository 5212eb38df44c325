"""The contrastive loss of CLIP over the global batch of all ranks.

With l_ij = exp(logit_scale) <I_i, T_j>, r_i the log-sum-exp of row i over all columns, c_j that of
column j over the rows of all ranks and t_ij the targets, the value of a rank with n local pairs is

    1/(2n) sum_{i local} (r_i + c_i - 2 sum_j t_ij l_ij)

whose mean over ranks is the loss of the global batch (CLIP, https://arxiv.org/abs/2103.00020).

Targets: t_ij = (1 - e) [id_i = id_j] / m_i + e / N, with m_i the number of columns of the same id
and e the label smoothing (UniCL, https://arxiv.org/abs/2204.03610, equations 2 and 3); without
``pair_ids`` the id is the position.

More formulas and the costs: README.md beside this file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from pipeline.loss.backends import choose_backend
from pipeline.loss.block import (
    BestLogits,
    Block,
    BlockFunctions,
    BlockSums,
    LineSums,
    SavedSums,
    Tile,
    Wanted,
)
from pipeline.loss.checks import InputReport, agree
from pipeline.loss.collectives import Ranks, combine_lines, combine_max
from pipeline.loss.local_block import feature_gradient, make_block
from pipeline.loss.text_gather import TextGather, text_side

LOG2E = math.log2(math.e)
LN2 = math.log(2.0)
STASH_BYTES = 64 * 2**20  # 1,024 local x 32,768 global logits in 16 bits, 4,096 x 4,096 in 32


@dataclass(frozen=True)
class _Options:
    backend: BlockFunctions
    normalize: bool
    label_smoothing: float
    tile: Tile | None
    stash_bytes: int
    reduce_dtype: torch.dtype | None
    want_top1: bool

    def keeps(self, block: Block) -> bool:
        """Whether the logits are kept for backward: within the budget, and without labels.

        With labels any logit may be a positive, which 16 bits would round too coarsely.
        """
        size = len(block.x) * len(block.y) * self.backend.kept_logit_bytes(block.x.dtype)
        return size <= self.stash_bytes and block.x_labels is None


def clip_loss(
    image_features: Tensor,
    text_features: Tensor | TextGather,
    logit_scale: Tensor,
    *,
    group: dist.ProcessGroup | None = None,
    backend: str = "auto",
    normalize: bool = False,
    pair_ids: Tensor | None = None,
    label_smoothing: float = 0.0,
    tile: int | tuple[int, int] | None = None,
    stash_bytes: int = STASH_BYTES,
    reduce_dtype: torch.dtype | None = None,
    check_inputs: bool = True,
    top1_out: Tensor | None = None,
) -> Tensor:
    """Symmetric InfoNCE of n local pairs against the N = P n pairs of all P ranks.

    The formula stands at the top of this file. The mean over ranks is the loss of the global batch,
    and so are gradients that are averaged over ranks, as DDP and DeepSpeed do.

    Args:
        image_features: (n, d) of this rank; float16, bfloat16, float32 or float64.
        text_features: (n, d), same dtype, or the ``TextGather`` that was started with them.
        logit_scale: logarithm of the scale, shape () or (1,).
        group: ranks that share the batch; None is all of them, or this process alone without
            torch.distributed.
        backend: "triton" (CUDA), "torch" (anything), or "auto".
        normalize: divide features by their norms here; their raw values then enter the matrix
            product unrounded.
        pair_ids: (n,) int64; pairs of equal id, such as a hash of the caption, are positives of
            each other.
        label_smoothing: weight in [0, 1) of the uniform distribution in the targets.
        tile: rows and columns of a tile of logits; None is what suits the backend.
        stash_bytes: keep the logits for backward where they take no more than this; it saves one
            matrix product of four. Triton keeps 16 bits, which cost up to about 1e-3 relative error
            of the scale's gradient at scale 100. 0 always recomputes them, without that error.
        reduce_dtype: dtype of the text gradient on the wire; None is the accumulator's, float32.
        check_inputs: see that values are finite and that ranks agree, by one small gather and one
            device synchronisation. Without it, ranks that disagree hang until the group's timeout.
        top1_out: (2,) float32, filled with in-batch retrieval, image to text and text to image: the
            share of local images (texts) whose best positive among all N texts (images) is strictly
            above every negative. It takes no second pass over the logits. A collapsed model, all
            logits equal, scores 0. Ranks pass it alike.

    Returns a 0-dim float32 tensor (float64 for float64 features). Raises ValueError for bad input,
    on every rank alike.
    """
    report = InputReport()
    ranks, text = text_side(text_features, group, report, finite=check_inputs)
    report.batch(image_features, text, logit_scale, pair_ids, finite=check_inputs)
    report.label_smoothing(label_smoothing).options(tile, stash_bytes, reduce_dtype)
    report.top1_out(top1_out).facts["normalize"] = bool(normalize)
    functions = choose_backend(backend, image_features, report)
    agree(report, ranks, exchange=check_inputs)

    gather = TextGather.of(text_features, ranks)
    learns = any(x.requires_grad for x in (image_features, gather.anchor, logit_scale))
    options = _Options(
        backend=functions,
        normalize=normalize,
        label_smoothing=label_smoothing,
        tile=(tile, tile) if isinstance(tile, int) else tile,
        stash_bytes=stash_bytes if learns and torch.is_grad_enabled() else 0,
        reduce_dtype=reduce_dtype,
        want_top1=top1_out is not None,
    )
    loss, *hits = _ClipLoss.apply(
        image_features, gather.anchor, logit_scale, gather, pair_ids, options
    )
    if top1_out is not None:
        top1_out.copy_(torch.stack(hits))
    return loss


class _ClipLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        image_features: Tensor,
        anchor: Tensor,
        logit_scale: Tensor,
        gather: TextGather,
        pair_ids: Tensor | None,
        options: _Options,
    ) -> tuple[Tensor, ...]:
        with torch.autocast(image_features.device.type, enabled=False):
            block = make_block(image_features, gather, logit_scale, pair_ids, options.normalize)
            sums = options.backend.block_sums(
                block,
                tile=options.tile,
                want_best=options.want_top1,
                keep_logits=options.keeps(block),
            )
            column = combine_lines(sums.column, gather.ranks)
            loss = _value(block, sums, column, options.label_smoothing)
            hits = _top1(block, sums.best, gather.ranks) if sums.best is not None else ()
        ctx.text, ctx.options, ctx.offset = gather.gradient, options, block.offset
        ctx.scale_shape, ctx.scale_dtype = logit_scale.shape, logit_scale.dtype
        ctx.num_block_tensors = len(block.tensors())
        lines = (sums.row.top, sums.row.total, column.top, column.total)
        ctx.save_for_backward(*block.tensors(), *lines, *sums.kept)
        ctx.mark_non_differentiable(*hits)
        return (loss, *hits)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        saved, split = ctx.saved_tensors, ctx.num_block_tensors
        block = Block.restore(saved[:split], ctx.offset)
        row_top, row_total, column_top, column_total, *kept = saved[split:]
        row, column = LineSums(row_top, row_total), LineSums(column_top, column_total)
        sums, wanted = SavedSums(row, column, tuple(kept)), Wanted(*ctx.needs_input_grad[:2])
        with torch.autocast(block.x.device.type, enabled=False):
            gradient = ctx.options.backend.block_grad(
                block, sums, wanted, ctx.options.tile, ctx.options.label_smoothing
            )
            factor = upstream.to(block.accumulator) / (2 * len(block.x))
            scale_gradient = (gradient.log_scale * factor).reshape(ctx.scale_shape)
            factor = factor * block.scale
            if gradient.y is not None:  # first, so that it travels while the rest runs
                ctx.text.start(gradient.y.mul_(factor), ctx.options.reduce_dtype)
            image_gradient = None
            if gradient.x is not None:
                image_gradient = feature_gradient(
                    block.x, block.x_inverse_norm, gradient.x.mul_(factor)
                )
        anchor_gradient = None if gradient.y is None else upstream.new_zeros(())
        scale_gradient = scale_gradient.to(ctx.scale_dtype)
        return image_gradient, anchor_gradient, scale_gradient, None, None, None


def _value(block: Block, sums: BlockSums, column: LineSums, label_smoothing: float) -> Tensor:
    target = sums.positive
    if label_smoothing:
        # sum_j l_ij = s <x_i, sum_j y_j>: the uniform part of the targets costs O(N d), no second
        # look at the logits
        mean = _sum_of_rows(block.y, block.y_inverse_norm, block.accumulator) / len(block.y)
        uniform = block.scale * LOG2E * (block.x.to(block.accumulator) @ mean)
        if block.x_inverse_norm is not None:
            uniform *= block.x_inverse_norm
        target = (1.0 - label_smoothing) * target + label_smoothing * uniform
    mine = slice(block.offset, block.offset + len(block.x))
    image_to_text = (sums.row.top - target) + sums.row.total.log2()
    text_to_image = (column.top[mine] - target) + column.total[mine].log2()
    return (image_to_text + text_to_image).mean() * (LN2 / 2)


def _sum_of_rows(features: Tensor, inverse_norm: Tensor | None, dtype: torch.dtype) -> Tensor:
    return (
        features.sum(0, dtype=dtype) if inverse_norm is None else inverse_norm @ features.to(dtype)
    )


def _top1(block: Block, best: BestLogits, ranks: Ranks) -> tuple[Tensor, Tensor]:
    mine = slice(block.offset, block.offset + len(block.x))
    columns = combine_max(torch.stack([best.column_positive, best.column_negative]), ranks)[:, mine]
    image_to_text = (best.row_positive > best.row_negative).float().mean()
    return image_to_text, (columns[0] > columns[1]).float().mean()
