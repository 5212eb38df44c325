"""From this rank's inputs to its block of logits, and from its gradient to that of the features."""

from __future__ import annotations

from torch import Tensor

from pipeline.loss.block import Block, accumulator_dtype, inverse_norms, project_normalisation
from pipeline.loss.collectives import gather_rows
from pipeline.loss.targets import label_positives
from pipeline.loss.text_gather import TextGather


def make_block(
    image_features: Tensor,
    gather: TextGather,
    logit_scale: Tensor,
    pair_ids: Tensor | None,
    normalize: bool,
) -> Block:
    """This rank's n rows against all N columns, once the text features are here."""
    num_rows, offset = len(image_features), gather.ranks.rank * len(image_features)
    dtype = accumulator_dtype(image_features.dtype)
    ids = None if pair_ids is None else gather_rows(pair_ids, gather.ranks)
    positives = None if ids is None else label_positives(ids, offset, num_rows)
    if normalize:
        gather.gradient.project()
    text = gather.consume()
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


def feature_gradient(features: Tensor, inverse_norm: Tensor | None, gradient: Tensor) -> Tensor:
    """Gradient by raw features, (n, d) in their dtype, from that of a block times all its factors.

    ``gradient`` may be overwritten.
    """
    if inverse_norm is not None:
        gradient = project_normalisation(gradient, features, inverse_norm)
    return gradient.to(features.dtype)
