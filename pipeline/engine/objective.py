"""The contrastive loss that the job configures, as one call."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.config import Exchange, LossConfig, LossKind
from pipeline.loss import TextGather, clip_loss, sigmoid_loss


class TextSide(NamedTuple):
    """The text features as the loss takes them, and the leaf of the graph that stands for them."""

    features: TextGather | Tensor
    leaf: Tensor

    def gradient(self, of_leaf: Tensor) -> Tensor:
        """(n, d) gradient of the text features, after that of `leaf` is known."""
        if isinstance(self.features, TextGather):
            return self.features.gradient.finish()
        return of_leaf


def mean_cosine(features: Tensor) -> Tensor:
    """() Mean cosine of two different rows of (n, d): 1 where all point in one direction, NaN for
    one row."""
    rows = len(features)
    unit = torch.nn.functional.normalize(features.detach().float(), dim=1)
    # the square of the sum holds each pair twice and each row's own square, 1, once
    return (unit.sum(dim=0).square().sum() - rows) / (rows * (rows - 1) or math.nan)


class Objective:
    """The configured loss over the features of all ranks.

    At the first call ranks compare shapes and look for NaN, which waits for the device. Later calls
    skip this: shapes do not change, and the gradient norm shows values that are not finite.
    """

    def __init__(self, config: LossConfig, group: torch.distributed.ProcessGroup) -> None:
        self._config, self._group = config, group
        self._reduce_dtype = config.reduce_dtype and getattr(torch, config.reduce_dtype.value)
        self._checked = False

    def text_side(self, text_features: Tensor) -> TextSide:
        """Start to gather (n, d) of this rank over all ranks; in a ring they travel later."""
        if self._config.exchange is Exchange.ring:
            return TextSide(text_features, text_features)
        gather = TextGather(text_features, group=self._group, check_inputs=not self._checked)
        return TextSide(gather, gather.anchor)

    def __call__(
        self,
        image_features: Tensor,
        text: TextSide,
        scalars: tuple[Tensor, ...],
        caption_ids: Tensor,
        *,
        with_metrics: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Loss () of this rank's rows and, `with_metrics`, the shares (2,) of rows whose partner is
        the nearest, image to text and text to image; None with the sigmoid loss, which never sees
        whole rows.

        `scalars` are logit_scale and, with the sigmoid loss, logit_bias.
        """
        if self._config.kind is LossKind.sigmoid:
            return self._sigmoid(image_features, text, scalars, caption_ids), None
        top1 = torch.empty(2, device=image_features.device) if with_metrics else None
        loss = clip_loss(
            image_features,
            text.features,
            *scalars,
            backend=self._config.backend.value,
            normalize=True,
            pair_ids=self._pair_ids(caption_ids),
            label_smoothing=self._config.label_smoothing,
            tile=self._config.tile,
            stash_bytes=int(self._config.stash_mib * 2**20),
            reduce_dtype=self._reduce_dtype,
            check_inputs=self._first_call(),
            top1_out=top1,
        )
        return loss, top1

    def _sigmoid(
        self, image_features: Tensor, text: TextSide, scalars: tuple[Tensor, ...], ids: Tensor
    ) -> Tensor:
        ring = self._config.exchange is Exchange.ring
        return sigmoid_loss(
            image_features,
            text.features,
            *scalars,
            group=self._group if ring else None,  # a TextGather brings its own
            backend=self._config.backend.value,
            mode=self._config.exchange.value,
            normalize=True,
            pair_ids=self._pair_ids(ids),
            tile=self._config.tile,
            reduce_dtype=self._reduce_dtype,
            check_inputs=self._first_call(),
        )

    def _pair_ids(self, caption_ids: Tensor) -> Tensor | None:
        return caption_ids if self._config.same_caption_positive else None

    def _first_call(self) -> bool:
        first, self._checked = not self._checked, True
        return first
