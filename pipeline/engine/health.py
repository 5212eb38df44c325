"""When a run must go back to its last checkpoint, and when it must end.

A step whose gradient is not finite on some rank has been skipped on all of them before this looks:
one is harmless, a row of them is a run that no longer learns. A loss far above what it was is one
that has lost what it learnt. Both are answered alike: the weights of the last checkpoint, and the
data after those that were seen, so that bad data are not met again (as PaLM's authors did by hand,
arXiv 2204.02311 section 5.1).

No rank talks to another here: all judge the same Interval, and so agree.
"""

from __future__ import annotations

import math
import statistics
from collections import deque

from pipeline.config import HealthConfig
from pipeline.state import Interval, TrainState

NUM_MEANS = 20
"""Intervals whose median a spike is measured against; more than a few, so that a spike that builds
up does not lift its own measure."""
FEWEST_MEANS = 5
"""Below these nothing is called a spike: a median of the first lines is one of a falling loss."""


class TrainingDiverged(RuntimeError):
    """The run has gone back as often as it may and still does not learn."""


class Health:
    """Judges each log interval of a run, or of what is left of it after a roll-back."""

    def __init__(self, config: HealthConfig) -> None:
        self._config = config
        self._skipped_in_a_row = 0
        self._means: deque[float] = deque(maxlen=NUM_MEANS)

    def judge(self, interval: Interval, state: TrainState) -> str | None:
        """Why the run must go back to its last checkpoint, or None.

        `state` is that after the interval. TrainingDiverged when it has been back
        health.max_rollbacks times.
        """
        reason = self._too_many_skipped(interval) or self._spike(interval)
        if reason is not None and state.rollbacks >= self._config.max_rollbacks:
            raise TrainingDiverged(
                f"step {state.step}: {reason}; the run has gone back to a checkpoint "
                f"{state.rollbacks} times (health.max_rollbacks = {self._config.max_rollbacks}). "
                f"Start another with a lower train.lr or more train.warmup_steps; the samples of "
                f"skipped steps are named in run_dir/skipped"
            )
        return reason

    def rolled_back(self) -> None:
        """What was seen is of weights that are no more."""
        self._skipped_in_a_row = 0
        self._means.clear()

    def _too_many_skipped(self, interval: Interval) -> str | None:
        """Counts over the borders of intervals: what is judged does not depend on how often lines
        are written, only when."""
        longest = 0
        for loss, skipped in zip(interval.losses, interval.skipped):
            bad = skipped or not math.isfinite(loss)
            self._skipped_in_a_row = self._skipped_in_a_row + 1 if bad else 0
            longest = max(longest, self._skipped_in_a_row)
        if longest < self._config.max_skipped_in_a_row:
            return None
        return (
            f"{longest} steps in a row had a loss or gradient that was not finite "
            f"(health.max_skipped_in_a_row = {self._config.max_skipped_in_a_row})"
        )

    def _spike(self, interval: Interval) -> str | None:
        finite = [loss for loss in interval.losses if math.isfinite(loss)]
        if self._config.loss_spike is None or not finite:
            return None
        mean = statistics.fmean(finite)
        if len(self._means) >= FEWEST_MEANS:
            median = statistics.median(self._means)
            if mean > self._config.loss_spike * median:
                return (
                    f"the mean loss of {len(finite)} steps is {mean:.4g}, more than "
                    f"{self._config.loss_spike:g} times the {median:.4g} of the "
                    f"{len(self._means)} lines before (health.loss_spike)"
                )
        self._means.append(mean)
        return None


def state_after_rollback(checkpoint: TrainState, now: TrainState) -> TrainState:
    """The weights and the step of the checkpoint, the data after what has been seen by now.

    Save it at once: until then a restart would read the bad data again and forget the roll-back.
    """
    return TrainState(
        step=checkpoint.step, samples_seen=now.samples_seen, rollbacks=now.rollbacks + 1
    )
