"""Learning rate as a pure function of the step."""

from __future__ import annotations

import math


def lr_factor(step: int, *, steps: int, warmup_steps: int) -> float:
    """Share of the peak learning rate for the update number `step` (0-based): linear warm-up, then
    cosine to zero.

    The first update has 1/warmup_steps of the peak, so that it is never an update by nothing; the
    last one is not quite zero.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
