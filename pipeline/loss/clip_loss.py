"""The contrastive loss of CLIP over the global batch of all ranks. Formulas and costs: README.md
beside this file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, overload

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from pipeline.loss import tiled
from pipeline.loss.block import (
    BestLogits,
    Block,
    BlockSums,
    accumulator_dtype,
    inverse_norms,
    project_normalisation,
)
from pipeline.loss.checks import InputReport, agree
from pipeline.loss.collectives import Ranks, combine_lse, combine_max, gather_rows, ranks_of
from pipeline.loss.targets import label_positives
from pipeline.loss.text_gather import TextGather


class ClipLossMetrics(NamedTuple):
    """The loss and, without a second pass over the logits, in-batch retrieval of the local rows and
    columns.

    Both accuracies are 0-dim float32 tensors without gradient: the fraction of local images (texts)
    whose best positive among all N texts (images) is strictly above every negative. A collapsed
    model, all logits equal, scores 0.
    """

    loss: Tensor
    image_to_text_top1: Tensor
    text_to_image_top1: Tensor


@dataclass(frozen=True)
class _Options:
    normalize: bool
    label_smoothing: float
    tile: tuple[int, int]
    reduce_dtype: torch.dtype | None
    want_metrics: bool


@overload
def clip_loss(
    image_features: Tensor,
    text_features: Tensor | TextGather,
    logit_scale: Tensor,
    *,
    group: dist.ProcessGroup | None = ...,
    backend: str = ...,
    normalize: bool = ...,
    pair_ids: Tensor | None = ...,
    label_smoothing: float = ...,
    tile: int | tuple[int, int] | None = ...,
    reduce_dtype: torch.dtype | None = ...,
    check_inputs: bool = ...,
    return_metrics: Literal[False] = ...,
) -> Tensor: ...


@overload
def clip_loss(
    image_features: Tensor,
    text_features: Tensor | TextGather,
    logit_scale: Tensor,
    *,
    group: dist.ProcessGroup | None = ...,
    backend: str = ...,
    normalize: bool = ...,
    pair_ids: Tensor | None = ...,
    label_smoothing: float = ...,
    tile: int | tuple[int, int] | None = ...,
    reduce_dtype: torch.dtype | None = ...,
    check_inputs: bool = ...,
    return_metrics: Literal[True],
) -> ClipLossMetrics: ...


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
    reduce_dtype: torch.dtype | None = None,
    check_inputs: bool = True,
    return_metrics: bool = False,
) -> Tensor | ClipLossMetrics:
    """Symmetric InfoNCE of n local pairs against the N = P n pairs of all P ranks.

    With l_ij = exp(logit_scale) <I_i, T_j>, r_i the log-sum-exp of row i over all columns, c_j that
    of column j over the rows of all ranks and t_ij the targets, this rank's value is

        1/(2n) sum_{i local} (r_i + c_i - 2 sum_j t_ij l_ij)

    whose mean over ranks is the loss of the global batch (CLIP, https://arxiv.org/abs/2103.00020).
    Gradients follow the same convention: averaged over ranks, as DDP and DeepSpeed do, they are
    those of the global loss.

    Targets: t_ij = (1 - e) [id_i = id_j] / m_i + e / N, with m_i the number of columns of the same
    id and e the label smoothing (UniCL, https://arxiv.org/abs/2204.03610, equations 2 and 3);
    without ``pair_ids`` the id is the position.

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
        reduce_dtype: dtype of the text gradient on the wire; None is the accumulator's, float32.
        check_inputs: see that values are finite and that ranks agree, by one small gather and one
            device synchronisation. Without it, ranks that disagree hang until the group's timeout.
        return_metrics: return ``ClipLossMetrics``.

    Returns a 0-dim float32 tensor (float64 for float64 features), or ``ClipLossMetrics``. Raises
    ValueError for bad input, on every rank alike.
    """
    gather = text_features if isinstance(text_features, TextGather) else None
    ranks = gather.ranks if gather is not None else ranks_of(group)
    text = gather.local if gather is not None else text_features
    report = InputReport().features("image_features", image_features, finite=check_inputs)
    if gather is None:
        report.features("text_features", text, finite=check_inputs)
    report.pair(image_features, text).scalar("logit_scale", logit_scale, finite=check_inputs)
    report.ids(pair_ids, image_features)
    report.require(
        0.0 <= label_smoothing < 1.0,
        f"label_smoothing is {label_smoothing}; it must be at least 0 and below 1",
    )
    report.facts.update(
        normalize=normalize, label_smoothing=label_smoothing, return_metrics=return_metrics
    )
    report.require(backend in ("auto", "torch"), f"backend is {backend!r}; pass 'auto' or 'torch'")
    agree(report, ranks, exchange=check_inputs)

    if gather is None:
        assert isinstance(text_features, Tensor)
        gather = TextGather.checked(text_features, ranks)
    sides = (tile, tile) if isinstance(tile, int) else tile or (1024, 2048)
    options = _Options(normalize, label_smoothing, sides, reduce_dtype, return_metrics)
    loss, *hits = _ClipLoss.apply(
        image_features, gather.anchor, logit_scale, gather, pair_ids, options
    )
    return ClipLossMetrics(loss, *hits) if return_metrics else loss


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
            ids = None if pair_ids is None else gather_rows(pair_ids, gather.ranks)
            block = make_block(image_features, gather, logit_scale, ids, options.normalize)
            sums = tiled.block_lse(block, tile=options.tile, want_best=options.want_metrics)
            column_lse = combine_lse(sums.column_lse, gather.ranks)
            loss = _value(block, sums, column_lse, options.label_smoothing)
            hits = _top1(block, sums.best, gather.ranks) if sums.best is not None else ()
        ctx.gather, ctx.options, ctx.offset = gather, options, block.offset
        ctx.scale_shape, ctx.scale_dtype = logit_scale.shape, logit_scale.dtype
        ctx.save_for_backward(*block.tensors(), sums.row_lse, column_lse)
        ctx.mark_non_differentiable(*hits)
        return (loss, *hits)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, row_lse, column_lse = ctx.saved_tensors
        block = Block.restore(tensors, ctx.offset)
        with torch.autocast(block.x.device.type, enabled=False):
            gradient = tiled.block_grad(
                block,
                row_lse,
                column_lse,
                tile=ctx.options.tile,
                label_smoothing=ctx.options.label_smoothing,
                need_x=ctx.needs_input_grad[0],
                need_y=ctx.needs_input_grad[1],
            )
            factor = upstream / (2 * len(block.x))
            if gradient.y is not None:  # first, so that it travels while the rest runs
                ctx.gather.start_gradient(
                    gradient.y.mul_(factor * block.scale), ctx.options.reduce_dtype
                )
            if gradient.x is not None:
                gradient.x.mul_(factor * block.scale)
                if block.x_inverse_norm is not None:
                    project_normalisation(gradient.x, block.x, block.x_inverse_norm)
            image_gradient = None if gradient.x is None else gradient.x.to(block.x.dtype)
            anchor_gradient = upstream.new_zeros(()) if gradient.y is not None else None
            scale_gradient = (
                (gradient.log_scale * factor).reshape(ctx.scale_shape).to(ctx.scale_dtype)
            )
        return image_gradient, anchor_gradient, scale_gradient, None, None, None


def make_block(
    image_features: Tensor,
    gather: TextGather,
    logit_scale: Tensor,
    ids: Tensor | None,
    normalize: bool,
) -> Block:
    """This rank's block, once the text features (and the ids of all columns, if any) are here."""
    text = gather.consume()
    if normalize:
        gather.normalise()
    offset = gather.ranks.rank * len(image_features)
    positives = None if ids is None else label_positives(ids, offset, len(image_features))
    dtype = accumulator_dtype(image_features.dtype)
    return Block(
        x=image_features.detach(),
        y=text,
        scale=logit_scale.detach().reshape(()).to(dtype).exp(),
        offset=offset,
        x_inverse_norm=inverse_norms(image_features.detach()) if normalize else None,
        y_inverse_norm=inverse_norms(text) if normalize else None,
        x_labels=None if positives is None else positives.x_labels,
        y_labels=None if positives is None else positives.y_labels,
        positive_weight=None if positives is None else positives.counts.to(dtype).reciprocal(),
    )


def _value(block: Block, sums: BlockSums, column_lse: Tensor, label_smoothing: float) -> Tensor:
    rows = len(block.x)
    target = sums.positive
    if label_smoothing:
        # sum_j l_ij = s <x_i, sum_j y_j>: the uniform part of the targets costs O(N d), no second
        # look at the logits
        mean = _sum_of_rows(block.y, block.y_inverse_norm, block.accumulator) / len(block.y)
        uniform = block.scale * (block.x.to(block.accumulator) @ mean)
        if block.x_inverse_norm is not None:
            uniform *= block.x_inverse_norm
        target = (1.0 - label_smoothing) * target + label_smoothing * uniform
    mine = slice(block.offset, block.offset + rows)
    return ((sums.row_lse - target) + (column_lse[mine] - target)).mean() / 2


def _sum_of_rows(features: Tensor, inverse_norm: Tensor | None, dtype: torch.dtype) -> Tensor:
    return (
        features.sum(0, dtype=dtype) if inverse_norm is None else inverse_norm @ features.to(dtype)
    )


def _top1(block: Block, best: BestLogits, ranks: Ranks) -> tuple[Tensor, Tensor]:
    mine = slice(block.offset, block.offset + len(block.x))
    columns = combine_max(torch.stack([best.column_positive, best.column_negative]), ranks)[:, mine]
    image_to_text = (best.row_positive > best.row_negative).float().mean()
    return image_to_text, (columns[0] > columns[1]).float().mean()
