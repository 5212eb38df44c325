"""The pairwise sigmoid loss of SigLIP over the global batch of all ranks.

There is no normaliser over rows or columns, so the gradient is made in the forward pass, of the
same tiles as the value: three matrix products in all, none of them a repetition.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from pipeline.loss.backends import choose_backend
from pipeline.loss.block import Block, BlockFunctions, BlockGradient, Tile, Wanted
from pipeline.loss.checks import InputReport, agree, agree_on_upstream
from pipeline.loss.collectives import Ranks
from pipeline.loss.local_block import feature_gradient, make_block
from pipeline.loss.sigmoid_ring import ring_lap
from pipeline.loss.text_gather import TextGather, text_side

BlockSigmoid = Callable[[Block], tuple[Tensor, BlockGradient | None]]


def sigmoid_loss(
    image_features: Tensor,
    text_features: Tensor | TextGather,
    logit_scale: Tensor,
    logit_bias: Tensor,
    *,
    group: dist.ProcessGroup | None = None,
    backend: str = "auto",
    mode: str = "gather",
    normalize: bool = False,
    pair_ids: Tensor | None = None,
    tile: int | tuple[int, int] | None = None,
    reduce_dtype: torch.dtype | None = None,
    check_inputs: bool = True,
) -> Tensor:
    """Sigmoid loss of n local images against the N = P n texts of all P ranks.

    With z_ij = exp(logit_scale) <I_i, T_j> + logit_bias, negated at positives, this rank's value is

        1/n sum_{i local} sum_j log(1 + exp(z_ij))

    whose mean over ranks is the loss of the global batch (SigLIP, https://arxiv.org/abs/2303.15343,
    equation 1). Gradients follow the same convention, as in ``clip_loss``.

    Args are those of ``clip_loss``, and:
        logit_bias: shape () or (1,); the paper starts at -10, with logit_scale at ln 10.
        mode: "gather" holds all N text features, as ``clip_loss`` does, and takes a ``TextGather``.
            "ring" holds two blocks of n: texts and their float32 gradients travel together, one lap
            of P hops, whatever ``reduce_dtype`` is. Since that lap is made in the forward pass, the
            upstream gradient must be the same on every rank (it is, under DDP and DeepSpeed; with
            ``check_inputs`` it is checked).

    Returns a 0-dim float32 tensor (float64 for float64 features). Raises ValueError for bad input,
    on every rank alike.
    """
    report = InputReport()
    ranks, text = text_side(text_features, group, report, finite=check_inputs)
    report.batch(image_features, text, logit_scale, pair_ids, finite=check_inputs)
    report.scalar("logit_bias", logit_bias, finite=check_inputs).options(tile, 0, reduce_dtype)
    report.require(mode in ("gather", "ring"), f"mode is {mode!r}; pass 'gather' or 'ring'")
    report.require(
        mode != "ring" or not isinstance(text_features, TextGather),
        "mode 'ring' gathers nothing; pass the text features themselves",
    )
    report.facts.update(mode=str(mode)[:20], normalize=bool(normalize))
    functions = choose_backend(backend, image_features, report)
    agree(report, ranks, exchange=check_inputs)

    plan = _Plan(
        backend=functions,
        ranks=ranks,
        normalize=normalize,
        tile=(tile, tile) if isinstance(tile, int) else tile,
        reduce_dtype=reduce_dtype,
        check_inputs=check_inputs,
        with_gradient=torch.is_grad_enabled(),
    )
    gather = TextGather.of(text_features, ranks) if mode == "gather" else None
    text = text if gather is None else gather.anchor
    return _SigmoidLoss.apply(image_features, text, logit_scale, logit_bias, gather, pair_ids, plan)


@dataclass(frozen=True)
class _Plan:
    backend: BlockFunctions
    ranks: Ranks
    normalize: bool
    tile: Tile | None
    reduce_dtype: torch.dtype | None
    check_inputs: bool
    with_gradient: bool

    def block_sigmoid(self, logit_bias: Tensor, needs: tuple[bool, ...]) -> BlockSigmoid:
        """The sums of one block, with its gradient where autograd will ask for one."""

        wanted = Wanted(*needs[:2]) if self.with_gradient and any(needs) else None

        def compute(block: Block) -> tuple[Tensor, BlockGradient | None]:
            bias = logit_bias.detach().reshape(()).to(block.accumulator)
            return self.backend.block_sigmoid(block, bias, wanted, self.tile)

        return compute


class _SigmoidLoss(torch.autograd.Function):
    """``text`` is the features in ring mode (``gather`` is None), their anchor in gather mode."""

    @staticmethod
    def forward(
        ctx: Any,
        image_features: Tensor,
        text: Tensor,
        logit_scale: Tensor,
        logit_bias: Tensor,
        gather: TextGather | None,
        pair_ids: Tensor | None,
        plan: _Plan,
    ) -> Tensor:
        compute = plan.block_sigmoid(logit_bias, ctx.needs_input_grad)
        with torch.autocast(image_features.device.type, enabled=False):
            if gather is None:
                block, loss, gradient = ring_lap(
                    image_features, text, logit_scale, pair_ids, plan.normalize, plan.ranks, compute
                )
            else:
                block = make_block(image_features, gather, logit_scale, pair_ids, plan.normalize)
                loss, gradient = compute(block)
        ctx.plan = plan
        ctx.text_gradient = None if gather is None else gather.gradient
        ctx.scalars = [(part.shape, part.dtype) for part in (logit_scale, logit_bias)]
        if gradient is not None:
            text_block = (None, None) if gather else (block.y, block.y_inverse_norm)
            ctx.save_for_backward(
                *(block.x, block.x_inverse_norm, *text_block, block.scale),
                *(gradient.x, gradient.y, gradient.log_scale, gradient.bias),
            )
        return loss / len(image_features)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, x_inverse_norm, y, y_inverse_norm, scale, dx, dy, log_scale, bias = ctx.saved_tensors
        plan: _Plan = ctx.plan
        if ctx.text_gradient is None and plan.check_inputs:
            agree_on_upstream(upstream, plan.ranks)
        factor = upstream.to(scale.dtype) / len(x)
        text = None
        if dy is not None and ctx.text_gradient is not None:
            ctx.text_gradient.start(dy * (factor * scale), plan.reduce_dtype)
            text = upstream.new_zeros(())
        elif dy is not None:
            text = feature_gradient(y, y_inverse_norm, dy * (factor * scale))
        image = None
        if dx is not None:
            image = feature_gradient(x, x_inverse_norm, dx * (factor * scale))
        scalars = [
            (sum_of_g * factor).reshape(shape).to(dtype)
            for sum_of_g, (shape, dtype) in zip((log_scale, bias), ctx.scalars, strict=True)
        ]
        return image, text, *scalars, None, None, None
