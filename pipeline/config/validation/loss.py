"""Rules of the loss that join several fields."""

from __future__ import annotations

from pipeline.config.choices import Exchange, LossKind
from pipeline.config.schema import TrainJob


def validate_loss(job: TrainJob) -> list[str]:
    loss, problems = job.loss, []
    if loss.label_smoothing and loss.kind is not LossKind.clip:
        problems.append(
            f"loss.label_smoothing = {loss.label_smoothing}: the sigmoid loss has no distribution "
            "to smooth; give 0, or loss.kind=clip"
        )
    if loss.exchange is Exchange.ring and loss.kind is not LossKind.sigmoid:
        problems.append(
            "loss.exchange = ring: loss.kind=clip needs all columns of a row at once; give gather, "
            "or loss.kind=sigmoid"
        )
    if loss.exchange is Exchange.ring and loss.reduce_dtype is not None:
        problems.append(
            f"loss.reduce_dtype = {loss.reduce_dtype.value}: with loss.exchange=ring gradients "
            "travel in float32; give null, or loss.exchange=gather"
        )
    return problems
