"""One lap of the text blocks around the ring of ranks, each with its gradient in float32.

At hop h rank r holds the texts of rank r - h. They are passed on before they are used, so that the
next block arrives meanwhile; their gradient follows one hop behind, collects each rank's part and
is home after P hops. Memory is a few blocks of (n, d), whatever P is.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.loss.block import Block, BlockGradient, accumulator_dtype, inverse_norms
from pipeline.loss.collectives import Ranks, gather_rows
from pipeline.loss.targets import label_positives


class _Shift:
    """Sends a tensor to the next rank and receives one of its kind from the previous rank."""

    def __init__(self, tensor: Tensor, ranks: Ranks) -> None:
        self._sent = tensor  # alive until the transfer is over
        self._received = torch.empty_like(tensor)
        group = ranks.group if ranks.group is not None else dist.group.WORLD
        assert group is not None
        following = dist.get_global_rank(group, (ranks.rank + 1) % ranks.size)
        previous = dist.get_global_rank(group, (ranks.rank - 1) % ranks.size)
        # grouped: separate sends and receives around a ring deadlock under NCCL
        self._works = dist.batch_isend_irecv(
            [
                dist.P2POp(dist.isend, self._sent, following, group),
                dist.P2POp(dist.irecv, self._received, previous, group),
            ]
        )

    def wait(self) -> Tensor:
        for work in self._works:
            work.wait()
        return self._received


def ring_lap(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    pair_ids: Tensor | None,
    normalize: bool,
    ranks: Ranks,
    compute: Callable[[Block], tuple[Tensor, BlockGradient | None]],
) -> tuple[Block, Tensor, BlockGradient | None]:
    """This rank's own block (n x n), the sum of its losses against all texts, and its gradient.

    The gradient's ``y`` (n, d) is that of this rank's own texts, summed over all ranks.
    """
    own = _own_block(image_features, text_features, logit_scale, normalize)
    ids = None if pair_ids is None else gather_rows(pair_ids, ranks)
    block = _visit(own, own.y, 0, ids, ranks)
    loss, gradient, text_gradient = None, None, None
    for hop in range(ranks.size):
        arriving = _Shift(block.y, ranks) if hop + 1 < ranks.size else None
        part, part_gradient = compute(block)
        loss = part if loss is None else loss + part
        if part_gradient is not None:
            if text_gradient is not None and part_gradient.y is not None:
                part_gradient.y += text_gradient.wait()
            if part_gradient.y is not None and ranks.size > 1:
                text_gradient = _Shift(part_gradient.y, ranks)
            gradient = _add(gradient, part_gradient)
        if arriving is not None:
            block = _visit(own, arriving.wait(), hop + 1, ids, ranks)
    assert loss is not None
    if gradient is not None and text_gradient is not None:
        gradient.y = text_gradient.wait()
    return own, loss, gradient


def _own_block(
    image_features: Tensor, text_features: Tensor, logit_scale: Tensor, normalize: bool
) -> Block:
    image, text = image_features.detach(), text_features.detach().contiguous()
    return Block(
        x=image,
        y=text,
        scale=logit_scale.detach().reshape(()).to(accumulator_dtype(image.dtype)).exp(),
        offset=0,
        x_inverse_norm=inverse_norms(image) if normalize else None,
        y_inverse_norm=inverse_norms(text) if normalize else None,
    )


def _visit(own: Block, texts: Tensor, hop: int, ids: Tensor | None, ranks: Ranks) -> Block:
    """The local images against the texts that came ``hop`` hops."""
    num_rows = len(own.x)
    x_labels = y_labels = None
    if ids is not None:
        source = (ranks.rank - hop) % ranks.size
        x_labels = label_positives(ids, ranks.rank * num_rows, num_rows).x_labels
        y_labels = label_positives(ids, source * num_rows, num_rows).x_labels
    return Block(
        x=own.x,
        y=texts,
        scale=own.scale,
        offset=0 if hop == 0 else num_rows,  # past the last column: no positive in this block
        x_inverse_norm=own.x_inverse_norm,
        y_inverse_norm=None if own.y_inverse_norm is None else inverse_norms(texts),
        x_labels=x_labels,
        y_labels=y_labels,
    )


def _add(total: BlockGradient | None, part: BlockGradient) -> BlockGradient:
    """Sum what stays on this rank; ``y`` is travelling."""
    if total is None:
        return part
    if total.x is not None and part.x is not None:
        total.x += part.x
    total.log_scale = total.log_scale + part.log_scale
    if total.bias is not None and part.bias is not None:
        total.bias = total.bias + part.bias
    return total
