"""Learning rate as a pure function of the step: there is no state to save, and neither skipped
steps nor another world size can shift it."""

from __future__ import annotations

import math

from pipeline.config import Schedule, TrainConfig


def lr_factor(step: int, train: TrainConfig) -> float:
    """Factor on train.lr, 0 to 1, for update number `step` (0-based).

    Linear warm-up over the first warmup_steps; the first update has 1/warmup_steps of the peak, so
    that no update has a rate of 0. Then, with s = (steps - step) / (steps - warmup_steps) left to
    go:
        cosine  (1 - cos(pi s)) / 2
        linear  s
        wsd     1, and (steps - step) / cooldown_steps over the last cooldown_steps
                (warm-up, stable, decay: arXiv 2404.06395, 2405.18392)
    Each reaches 0 at `steps`, one after the last update.
    """
    if step < train.warmup_steps:
        return (step + 1) / train.warmup_steps
    left = max(0, train.steps - step)
    if train.schedule is Schedule.wsd:
        return min(1.0, left / train.cooldown_steps)
    share_left = left / max(1, train.steps - train.warmup_steps)
    if train.schedule is Schedule.linear:
        return share_left
    # (1 - cos x) / 2, without rounding to 0 in the last steps of a long run
    return math.sin(0.5 * math.pi * share_left) ** 2
