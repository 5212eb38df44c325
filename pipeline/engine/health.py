"""Decides when a run must go back to its last checkpoint, and when it must end.

A step whose gradient is not finite on some rank was already skipped on all ranks. One such step is
harmless; many in a row mean that the run no longer learns. A loss far above its earlier values
means that the model has lost what it learnt. Both have the same remedy: take the weights of the
last checkpoint and the data after those already seen, so that bad data are not met again (as PaLM's
authors did by hand, arXiv 2204.02311 section 5.1).

Ranks do not communicate here: all judge the same Interval, and so agree.
"""

from __future__ import annotations

import math
import statistics
from collections import deque

from pipeline.config import HealthConfig
from pipeline.state import Interval, TrainState

NUM_MEANS = 20
"""A spike is measured against the median of the last NUM_MEANS intervals; enough of them that a
spike that builds up slowly does not lift its own measure."""
FEWEST_MEANS = 5
"""With fewer intervals nothing counts as a spike: at the start the loss falls, and its median says
little."""


class TrainingDiverged(RuntimeError):
    """The run has gone back health.max_rollbacks times and still does not learn."""


class Health:
    """Judges each log interval of a run, or of what is left of it after a roll-back."""

    def __init__(self, config: HealthConfig) -> None:
        self._config = config
        self._skipped_in_a_row = 0
        self._means: deque[float] = deque(maxlen=NUM_MEANS)

    def judge(self, interval: Interval, state: TrainState) -> str | None:
        """Return why the run must go back to its last checkpoint, or None if it need not.

        `state` is the state after the interval. Raises TrainingDiverged when the run has already
        gone back health.max_rollbacks times.
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
        """Forget the history: it belongs to discarded weights."""
        self._skipped_in_a_row = 0
        self._means.clear()

    def _too_many_skipped(self, interval: Interval) -> str | None:
        """Count across intervals: how often lines are logged changes when this is noticed, not
        whether."""
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
    """The step of the checkpoint, with the data position of now and one more roll-back.

    Save a checkpoint of it at once: before that, a restart would read the bad data again and forget
    the roll-back.
    """
    return TrainState(
        step=checkpoint.step, samples_seen=now.samples_seen, rollbacks=now.rollbacks + 1
    )
