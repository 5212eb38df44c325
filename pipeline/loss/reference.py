"""The losses as their papers write them: dense, one process, plain autograd.

Nothing here is fast. These functions define what the tiled and distributed implementations must
return, and the tests compare against them in float64.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def logits_matrix(
    image_features: Tensor, text_features: Tensor, logit_scale: Tensor, *, normalize: bool
) -> Tensor:
    """``exp(logit_scale) * image @ text.T``, shape (N, N); rows are images, columns are texts."""
    if normalize:
        image_features = F.normalize(image_features, dim=1)
        text_features = F.normalize(text_features, dim=1)
    return logit_scale.exp() * (image_features @ text_features.T)


def soft_targets(num_rows: int, pair_ids: Tensor | None, label_smoothing: float) -> Tensor:
    """Target distribution of every row, shape (N, N), float64.

    Without ``pair_ids`` it is the identity. With them, every column of equal id shares the weight
    of its row (UniCL, https://arxiv.org/abs/2204.03610, equations 2 and 3). Ids label rows and
    columns alike, so the matrix is symmetric and serves both directions. Smoothing mixes in the
    uniform distribution with weight ``label_smoothing``.
    """
    if pair_ids is None:
        targets = torch.eye(num_rows, dtype=torch.float64)
    else:
        same = (pair_ids[:, None] == pair_ids[None, :]).double()
        targets = same / same.sum(1, keepdim=True)
    return (1.0 - label_smoothing) * targets + label_smoothing / num_rows


def clip_loss_reference(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    *,
    normalize: bool = False,
    pair_ids: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Symmetric InfoNCE over a global batch (CLIP, https://arxiv.org/abs/2103.00020, figure 3).

    ``image_features`` and ``text_features`` are (N, d); ``logit_scale`` is the logarithm of the
    scale. Returns a scalar in the features' dtype.
    """
    logits = logits_matrix(image_features, text_features, logit_scale, normalize=normalize)
    targets = soft_targets(len(logits), pair_ids, label_smoothing).to(logits)
    image_to_text = -(targets * logits.log_softmax(dim=1)).sum(dim=1).mean()
    text_to_image = -(targets * logits.log_softmax(dim=0)).sum(dim=0).mean()
    return (image_to_text + text_to_image) / 2


def sigmoid_loss_reference(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    *,
    normalize: bool = False,
    pair_ids: Tensor | None = None,
) -> Tensor:
    """Pairwise sigmoid loss over a global batch (SigLIP, https://arxiv.org/abs/2303.15343, equation
    1).

    Every (image, text) pair is one binary problem; pairs of equal ``pair_ids`` are positives. The
    sum over pairs is divided by N, the number of rows, as in the paper.
    """
    logits = (
        logits_matrix(image_features, text_features, logit_scale, normalize=normalize) + logit_bias
    )
    if pair_ids is None:
        positive = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    else:
        positive = pair_ids[:, None] == pair_ids[None, :]
    sign = torch.where(positive, 1.0, -1.0).to(logits)
    return -F.logsigmoid(sign * logits).sum() / len(logits)


def top1_reference(logits: Tensor, pair_ids: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Top-1 accuracy (image to text, text to image): a hit is a positive strictly above every
    negative."""
    if pair_ids is None:
        pair_ids = torch.arange(len(logits), device=logits.device)
    positive = pair_ids[:, None] == pair_ids[None, :]
    best = logits.masked_fill(~positive, -torch.inf)
    rival = logits.masked_fill(positive, -torch.inf)
    hits = [(best.amax(dim) > rival.amax(dim)).double().mean() for dim in (1, 0)]
    return hits[0], hits[1]
