"""Where a run is, and what one of its steps tells."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class TrainState:
    """`step` counts finished optimizer steps, `samples_seen` the samples they took over all ranks.

    samples_seen is the whole state of the data order (pipeline/data/order.py), so a loader has
    nothing to save.
    """

    step: int = 0
    samples_seen: int = 0

    def advance(self, global_batch_size: int) -> None:
        self.step += 1
        self.samples_seen += global_batch_size


@dataclass(slots=True)
class StepMetrics:
    """Of this rank, still on the device: reading `loss` or `logit_scale` waits for it, so that is
    done at log steps only."""

    loss: Tensor
    """Mean over the rank's rows of the global batch; its mean over ranks is the loss of the global
    batch."""
    logit_scale: Tensor
    """Log-space, as clamped in this step's forward."""
    grad_norm: float
    """Of the averaged gradient before clipping; inf on a skipped step."""
    lr: float
    skipped_steps: int
    """So far in this process: steps without an update because the gradient was not finite."""
