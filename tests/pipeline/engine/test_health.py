"""When a run goes back, when it ends, and that neither hangs on how often lines are written."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import HealthConfig
from pipeline.engine.health import (
    FEWEST_MEANS,
    NUM_MEANS,
    Health,
    TrainingDiverged,
    state_after_rollback,
)
from pipeline.state import Interval, TrainState

NAN = math.nan


def interval(losses: list[float], skipped: list[bool] | None = None) -> Interval:
    if skipped is None:
        skipped = [not math.isfinite(loss) for loss in losses]
    return Interval(first_step=0, losses=losses, skipped=skipped)


def judged(health: Health, losses: list[float], skipped: list[bool] | None = None) -> str | None:
    return health.judge(interval(losses, skipped), TrainState(step=10))


def test_skipped_steps_are_counted_over_intervals() -> None:
    health = Health(HealthConfig(max_skipped_in_a_row=5))
    assert judged(health, [1.0, NAN, NAN]) is None
    assert judged(health, [NAN, NAN]) is None
    told = judged(health, [NAN, 1.0])
    assert told is not None and told.startswith("5 steps in a row") and "= 5" in told


def test_a_finite_step_starts_the_count_anew() -> None:
    health = Health(HealthConfig(max_skipped_in_a_row=3))
    for _ in range(10):
        assert judged(health, [NAN, 1.0, NAN]) is None


def test_a_gradient_that_is_not_finite_counts_beside_a_finite_loss() -> None:
    health = Health(HealthConfig(max_skipped_in_a_row=2))
    assert judged(health, [1.0, 1.0], [True, True]) is not None


@given(
    st.lists(st.booleans(), min_size=1, max_size=40),
    st.integers(1, 8),
    st.lists(st.integers(1, 9), min_size=1),
)
def test_going_back_does_not_depend_on_where_lines_are(
    skipped: list[bool], limit: int, cuts: list[int]
) -> None:
    runs = "".join("x" if bad else " " for bad in skipped).split()
    expected = max((len(run) for run in runs), default=0) >= limit
    health = Health(HealthConfig(max_skipped_in_a_row=limit))
    told, start = False, 0
    while start < len(skipped) and not told:
        size = cuts[start % len(cuts)]
        part = skipped[start : start + size]
        told = judged(health, [1.0] * len(part), part) is not None
        start += size
    assert told == expected


def test_a_spike_is_measured_against_the_median_of_the_lines_before() -> None:
    health = Health(HealthConfig(loss_spike=1.5))
    for mean in (4.0, 3.0, 2.0, 2.0, 100.0):  # too few lines yet: 100 passes, and lifts no median
        assert judged(health, [mean - 0.5, mean + 0.5]) is None
    assert judged(health, [4.4, 4.6]) is None  # 4.5 = 1.5 x 3
    told = judged(health, [5.3, 5.4])  # median of 2, 2, 3, 4, 4.5, 100 is 3.5: x 1.5 = 5.25
    assert told is not None and "5.35" in told and "1.5 times the 3.5 of the 6 lines" in told


def test_lines_long_ago_do_not_count() -> None:
    health = Health(HealthConfig(loss_spike=2.0))
    for mean in [9.0] * 30 + [1.0] * (NUM_MEANS // 2 + 1):
        assert judged(health, [mean]) is None
    assert judged(health, [9.0]) is not None


def test_without_the_option_no_loss_is_a_spike() -> None:
    health = Health(HealthConfig())
    assert all(judged(health, [mean]) is None for mean in [1.0] * 10 + [1e6])


def test_losses_of_skipped_steps_are_no_part_of_the_mean() -> None:
    health = Health(HealthConfig(loss_spike=2.0))
    for _ in range(10):
        assert judged(health, [1.0, NAN, math.inf]) is None
    assert judged(health, [NAN]) is None
    assert judged(health, [2.1, NAN]) is not None


@given(st.lists(st.floats(0.01, 100.0), max_size=60), st.floats(1.01, 10.0))
def test_a_loss_that_falls_is_never_a_spike(means: list[float], factor: float) -> None:
    health = Health(HealthConfig(loss_spike=factor))
    assert all(judged(health, [mean]) is None for mean in sorted(means, reverse=True))


def test_a_roll_back_clears_what_was_seen() -> None:
    health = Health(HealthConfig(loss_spike=2.0, max_skipped_in_a_row=3))
    for _ in range(FEWEST_MEANS):
        assert judged(health, [1.0, NAN, NAN]) is None
    health.rolled_back()
    assert judged(health, [9.0]) is None  # no median yet
    health.rolled_back()
    assert judged(health, [NAN, NAN]) is None
    health.rolled_back()
    assert judged(health, [NAN, NAN]) is None


def test_the_run_ends_when_it_has_gone_back_often_enough() -> None:
    health = Health(HealthConfig(max_skipped_in_a_row=2, max_rollbacks=3))
    bad = interval([NAN, NAN])
    assert health.judge(bad, TrainState(step=7, rollbacks=2)) is not None
    health.rolled_back()
    with pytest.raises(TrainingDiverged) as ended:
        health.judge(bad, TrainState(step=7, rollbacks=3))
    for part in ("step 7", "2 steps in a row", "3 times", "train.lr", "train.warmup_steps"):
        assert part in str(ended.value)
    assert "run_dir/skipped" in str(ended.value)


def test_a_healthy_run_goes_on_after_its_last_roll_back() -> None:
    health = Health(HealthConfig(max_skipped_in_a_row=2, max_rollbacks=0))
    assert health.judge(interval([1.0, NAN, 1.0]), TrainState(rollbacks=0)) is None
    with pytest.raises(TrainingDiverged):
        health.judge(interval([NAN, NAN]), TrainState(rollbacks=0))


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(1, 2**20), st.integers(0, 9))
def test_after_a_roll_back_the_data_go_on_where_they_were(
    step: int, more: int, global_batch_size: int, rollbacks: int
) -> None:
    checkpoint = TrainState(step, step * global_batch_size, rollbacks)
    now = TrainState(step + more, (step + more) * global_batch_size, rollbacks)
    after = state_after_rollback(checkpoint, now)
    assert after == TrainState(step, now.samples_seen, rollbacks + 1)
    assert (checkpoint.step, now.step) == (step, step + more)
