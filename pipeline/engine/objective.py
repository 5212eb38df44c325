"""The contrastive loss that the job configures, as one call."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.config import LossConfig, LossKind
from pipeline.loss import TextGather, clip_loss, sigmoid_loss


class Objective:
    """The configured loss over the features of all ranks.

    At the first call ranks compare shapes and look for NaN, which waits for the device. Later calls
    skip this: shapes do not change, and the gradient norm shows values that are not finite.
    """

    def __init__(self, config: LossConfig, group: torch.distributed.ProcessGroup) -> None:
        self._config, self._group = config, group
        self._checked = False

    def gather(self, text_features: Tensor) -> TextGather:
        """Start to gather this rank's features (n, d) over all ranks."""
        return TextGather(text_features, group=self._group, check_inputs=not self._checked)

    def __call__(
        self,
        image_features: Tensor,
        gather: TextGather,
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
        pair_ids = caption_ids if self._config.same_caption_positive else None
        check_inputs, self._checked = not self._checked, True
        if self._config.kind is LossKind.sigmoid:
            loss = sigmoid_loss(
                image_features,
                gather,
                *scalars,
                normalize=True,
                pair_ids=pair_ids,
                check_inputs=check_inputs,
            )
            return loss, None
        if with_metrics:
            loss, *top1 = clip_loss(
                image_features,
                gather,
                *scalars,
                normalize=True,
                pair_ids=pair_ids,
                check_inputs=check_inputs,
                return_metrics=True,
            )
            return loss, torch.stack(top1)
        loss = clip_loss(
            image_features,
            gather,
            *scalars,
            normalize=True,
            pair_ids=pair_ids,
            check_inputs=check_inputs,
        )
        return loss, None
