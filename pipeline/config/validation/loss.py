"""Rules of the loss that join several fields."""

from __future__ import annotations

import math

from pipeline.config.choices import Exchange, LossKind
from pipeline.config.loss import LossConfig
from pipeline.config.schema import TrainJob

LARGEST_INITIAL_SCALE = math.log(1000)
LARGEST_SCALE = 10.0
"""Logarithms; a larger value is a scale that was given as it is."""
SMALLEST_INITIAL_SCALE = 0.2
"""For a new run; a smaller value is a temperature."""


def validate_loss(job: TrainJob, *, begins: bool = True) -> list[str]:
    """`begins`: whether the run is a new one."""
    loss = job.loss
    least = SMALLEST_INITIAL_SCALE if begins else 0.0
    problems = _logit_scale(loss, least)
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


def _logit_scale(loss: LossConfig, least: float) -> list[str]:
    initial, largest = loss.init_logit_scale, loss.max_logit_scale
    if not 0 < largest <= LARGEST_SCALE:
        return [
            f"loss.max_logit_scale = {largest}: is a natural logarithm; give more than 0, at most "
            f"{LARGEST_SCALE:g} (a scale of 22,026){_as_logarithm(largest, LARGEST_SCALE)}",
            *_initial_scale(initial, least, LARGEST_INITIAL_SCALE, "a scale of 1,000"),
        ]
    if largest < LARGEST_INITIAL_SCALE:
        return _initial_scale(initial, least, largest, "loss.max_logit_scale")
    return _initial_scale(initial, least, LARGEST_INITIAL_SCALE, "a scale of 1,000")


def _initial_scale(initial: float, least: float, most: float, what: str) -> list[str]:
    if 0 < initial <= most and initial >= min(least, most):
        return []
    return [
        f"loss.init_logit_scale = {initial}: is a natural logarithm; give {least:g} to {most:.4g} "
        f"({what}){_as_logarithm(initial, most)}"
    ]


def _as_logarithm(value: float, most: float) -> str:
    """The fix for a scale that was given as it is, or for a temperature."""
    if 1 < value < math.inf and math.log(value) <= most:
        return f"; for a scale of {value:g} give ln({value:g}) = {math.log(value):.4f}"
    if 0 < value < 1 and math.log(1 / value) <= most:
        return f"; for a temperature of {value:g} give ln(1/{value:g}) = {math.log(1 / value):.4f}"
    return "; CLIP starts at ln(1/0.07) = 2.6593 and ends at ln(100) = 4.6052"
