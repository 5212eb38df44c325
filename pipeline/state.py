"""Where a run stands, what one step measured, and what all ranks know at a log line."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from pipeline.device_timer import DeviceTimer


@dataclass
class TrainState:
    """How far a run has come; a checkpoint stores it.

    `step` counts finished optimizer steps. `samples_seen` counts the samples of the data order that
    were trained on or, after a roll-back, skipped; it is the whole state of the data order
    (pipeline/data/order/sample_order.py), so a loader has nothing to save. `rollbacks` counts how
    often the run went back to a checkpoint.
    """

    step: int = 0
    samples_seen: int = 0
    rollbacks: int = 0

    def advance(self, global_batch_size: int) -> None:
        self.step += 1
        self.samples_seen += global_batch_size


@dataclass(slots=True)
class StepMetrics:
    """What one step measured on this rank. The tensors are still on the device: reading one waits
    for the device, so that happens at log steps only."""

    loss: Tensor
    """() Mean over the rank's rows of the global batch; its mean over ranks is the loss of the
    global batch."""
    logit_scale: Tensor
    """() Log-space, as clamped in this step's forward."""
    grad_norms: Tensor
    """(3,) norms of the averaged gradient before clipping: image tower, text tower, all parameters.
    Equal on all ranks; not finite on a skipped step, nan where a norm is not known."""
    skipped: Tensor
    """() 1.0 if the gradient was not finite on some rank, so that no rank updated; else 0.0."""
    lr: float
    top1: Tensor | None
    """(2,) Share of this rank's rows whose own partner is the nearest in the global batch, image to
    text and text to image. None between log steps and with the sigmoid loss."""
    mean_cosines: Tensor | None
    """(2,) Mean cosine of two of this rank's features, of images and of texts; NaN with one row.
    None between log steps."""
    caption_ids: Tensor
    """(n,) int64; equal for equal captions of this rank's rows."""
    towers: DeviceTimer
    """Time of this rank's own work before it waits for the others: shows which rank is the
    straggler and which ones it delays."""


@dataclass(frozen=True)
class Interval:
    """The steps since the last log line; equal on every rank."""

    first_step: int
    """Number of finished steps before this interval."""
    losses: list[float] = field(default_factory=list)
    """Loss of the global batch, one per step."""
    skipped: list[bool] = field(default_factory=list)
    """Whether the step was skipped, one per step."""
