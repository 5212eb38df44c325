"""Where a run is, what one of its steps tells, and what all ranks know at a log line."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class TrainState:
    """`step` counts finished optimizer steps, `samples_seen` the samples of the data order that
    were taken or, after a roll-back, passed over.

    samples_seen is the whole state of the data order (pipeline/data/order/sample_order.py), so a
    loader has nothing to save.
    """

    step: int = 0
    samples_seen: int = 0
    rollbacks: int = 0

    def advance(self, global_batch_size: int) -> None:
        self.step += 1
        self.samples_seen += global_batch_size


class DeviceTimer:
    """Seconds that a device took for what was queued between `start` and `stop`; nothing waits
    before `seconds` is asked for."""

    def __init__(self, device: torch.device) -> None:
        self._on_cuda = device.type == "cuda"
        self._marks: list[torch.cuda.Event | float] = []

    def start(self) -> None:
        self._marks = [self._mark()]

    def stop(self) -> None:
        self._marks.append(self._mark())

    def seconds(self) -> float:
        start, stop = self._marks
        if isinstance(start, float) or isinstance(stop, float):
            return float(stop) - float(start)  # type: ignore[arg-type]
        stop.synchronize()
        return start.elapsed_time(stop) / 1e3

    def _mark(self) -> torch.cuda.Event | float:
        if not self._on_cuda:
            return time.monotonic()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


@dataclass(slots=True)
class StepMetrics:
    """Measurements of this rank, still on the device: reading a tensor waits for it, so they are
    read at log steps only."""

    loss: Tensor
    """() Mean over the rank's rows of the global batch; its mean over ranks is the loss of the
    global batch."""
    logit_scale: Tensor
    """() Log-space, as clamped in this step's forward."""
    grad_norms: Tensor
    """(3,) Norms of the averaged gradient before clipping, equal on all ranks: image tower, text
    tower, all; not finite on a skipped step, nan where it is not known."""
    skipped: Tensor
    """() 1.0 where the gradient was not finite on some rank and no rank has updated, else 0.0."""
    lr: float
    top1: Tensor | None
    """(2,) Share of this rank's rows whose own partner is the nearest of the global batch, image to
    text and text to image; measured at log steps, else None."""
    towers: DeviceTimer
    """Time of this rank's own work before it meets the others: shows which ranks are slow, and
    which only wait for them."""


@dataclass(frozen=True)
class Interval:
    """The steps since the last log line, as all ranks know them: equal on every rank."""

    first_step: int
    """Number of finished steps before the first of them."""
    losses: list[float] = field(default_factory=list)
    """Loss of the global batch, one per step."""
    skipped: list[bool] = field(default_factory=list)
