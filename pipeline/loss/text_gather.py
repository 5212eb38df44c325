"""Text features of all ranks, gathered while the image tower runs.

    gather = TextGather(text_tower(tokens))          # returns at once
    image_features = image_tower(images)             # the gather travels meanwhile
    loss = clip_loss(image_features, gather, logit_scale)

Backward: the loss starts the reduce-scatter of the text gradient and returns. Autograd runs the
ready node that was created last, so the image tower's backward, created after the gather, runs
before the node here that waits for the text gradient.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from pipeline.loss.block import inverse_norms, project_normalisation
from pipeline.loss.checks import InputReport, agree
from pipeline.loss.collectives import Ranks, ranks_of, start_gather, start_scatter


class TextGradient:
    """Where the loss leaves the gradient of the local text features (n, d) for autograd to find.

    It does not go through autograd itself, because it is a buffer that a collective is still
    filling, and autograd may cast, accumulate or hook what it passes.
    """

    def __init__(self, local: Tensor, ranks: Ranks) -> None:
        self.local = local
        self.ranks = ranks
        self._inverse_norm: Tensor | None = None
        self._gradient: Tensor | None = None
        self._work: dist.Work | None = None

    def project(self) -> None:
        """Have the gradient projected: the loss normalised the features."""
        self._inverse_norm = inverse_norms(self.local)

    def start(self, gradient: Tensor, dtype: torch.dtype | None) -> None:
        """Start summing every rank's (N, d) part over the ranks, sent in ``dtype``."""
        if self._work is not None:  # of an earlier backward that stopped short of the text features
            self._work.wait()
        self._gradient, self._work = start_scatter(gradient, self.ranks, dtype)

    def finish(self) -> Tensor:
        """Wait for the gradient, (n, d) in the features' dtype."""
        if self._work is not None:
            self._work.wait()
            self._work = None
        gradient, self._gradient = self._gradient, None
        if gradient is None:
            raise RuntimeError("the text features were back-propagated into before the loss was")
        if self._inverse_norm is not None:
            gradient = gradient.to(self._inverse_norm.dtype)
            gradient = project_normalisation(gradient, self.local, self._inverse_norm)
        return gradient.to(self.local.dtype)


class _Anchor(torch.autograd.Function):
    """Stands for the text features in the graph; its value and its gradient are never read."""

    @staticmethod
    def forward(ctx: Any, text_features: Tensor, gradient: TextGradient) -> Tensor:
        ctx.gradient = gradient
        return text_features.new_zeros(())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, None]:
        return ctx.gradient.finish(), None


class TextGather:
    """The gather of ``text_features`` (n, d) over ``group``, under way from construction on.

    It serves one loss call. Every rank of the group must construct it at the same place among its
    collectives. Raises ValueError, on every rank alike, for features that no loss would accept.
    """

    def __init__(
        self,
        text_features: Tensor,
        *,
        group: dist.ProcessGroup | None = None,
        check_inputs: bool = True,
    ) -> None:
        ranks = ranks_of(group)
        report = InputReport().features("text_features", text_features, finite=check_inputs)
        agree(report, ranks, exchange=check_inputs)
        self._start(text_features, ranks)

    @classmethod
    def of(cls, text_features: Tensor | TextGather, ranks: Ranks) -> TextGather:
        """The gather that was passed, or one of features that the caller has agreed on."""
        if isinstance(text_features, TextGather):
            return text_features
        gather = cls.__new__(cls)
        gather._start(text_features, ranks)
        return gather

    def _start(self, text_features: Tensor, ranks: Ranks) -> None:
        self.ranks = ranks
        self.local = text_features.detach()
        self.consumed = False
        self.gradient = TextGradient(self.local, ranks)
        self.anchor: Tensor = _Anchor.apply(text_features, self.gradient)
        self._all, self._work = start_gather(self.local, ranks)

    def consume(self) -> Tensor:
        """Wait for and return the (N, d) features, once."""
        self.consumed = True
        if self._work is not None:
            self._work.wait()
            self._work = None
        features, self._all = self._all, self.local
        return features


def text_side(
    text_features: Tensor | TextGather,
    group: dist.ProcessGroup | None,
    report: InputReport,
    *,
    finite: bool,
) -> tuple[Ranks, Tensor]:
    """The ranks that a loss call spans and its local text features, checked here or before."""
    if not isinstance(text_features, TextGather):
        report.features("text_features", text_features, finite=finite)
        return ranks_of(group), text_features
    ranks = text_features.ranks
    report.require(
        not text_features.consumed,
        "this TextGather has served a loss already; make one for each loss call",
    )
    report.require(
        group is None or group == ranks.group,
        "the TextGather was started over another group; pass the group to it alone",
    )
    return ranks, text_features.local
