"""The three schedules: within bounds, without jumps, monotone, equal to their plain formula."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import Schedule, TrainConfig
from pipeline.engine.schedule import lr_factor


@st.composite
def trainings(draw: st.DrawFn) -> TrainConfig:
    """Any that validation lets pass."""
    steps = draw(st.integers(1, 400))
    warmup_steps = draw(st.integers(0, steps - 1))
    schedule = draw(st.sampled_from(Schedule))
    cooldown_steps = 0
    if schedule is Schedule.wsd:
        cooldown_steps = draw(st.integers(1, steps - warmup_steps))
    return TrainConfig(
        steps=steps, warmup_steps=warmup_steps, schedule=schedule, cooldown_steps=cooldown_steps
    )


def plain_formula(step: int, train: TrainConfig) -> float:
    if step < train.warmup_steps:
        return (step + 1) / train.warmup_steps
    progress = (step - train.warmup_steps) / (train.steps - train.warmup_steps)
    if train.schedule is Schedule.cosine:
        return (1 + math.cos(math.pi * progress)) / 2
    if train.schedule is Schedule.linear:
        return 1 - progress
    cooled = step - (train.steps - train.cooldown_steps)
    return 1.0 if cooled <= 0 else 1 - cooled / train.cooldown_steps


@given(trainings())
def test_equals_the_plain_formula_at_every_step(train: TrainConfig) -> None:
    for step in range(train.steps):
        assert lr_factor(step, train) == pytest.approx(plain_formula(step, train), abs=1e-12)


@given(trainings())
def test_is_a_share_that_rises_to_the_peak_and_falls_to_more_than_zero(train: TrainConfig) -> None:
    factors = [lr_factor(step, train) for step in range(train.steps)]
    assert all(0 < factor <= 1 for factor in factors)
    peak = max(0, train.warmup_steps - 1)
    assert factors[peak] == 1.0
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)


@given(trainings())
def test_has_no_jump(train: TrainConfig) -> None:
    phases = [train.warmup_steps or math.inf, train.cooldown_steps or math.inf]
    if train.schedule is not Schedule.wsd:
        phases[1] = train.steps - train.warmup_steps
    steepest = math.pi / 2 / min(phases)  # of a cosine of that length
    factors = [lr_factor(step, train) for step in range(train.steps + 1)]
    for before, after in zip(factors, factors[1:]):
        assert abs(after - before) <= steepest + 1e-12


@given(trainings(), st.integers(0, 1000))
def test_is_zero_after_the_last_update(train: TrainConfig, later: int) -> None:
    assert lr_factor(train.steps + later, train) == 0.0


def test_the_last_update_of_a_long_cosine_is_not_by_nothing() -> None:
    assert lr_factor(10**9 - 1, TrainConfig(steps=10**9, warmup_steps=0)) > 0


def test_warmup_starts_at_its_share_and_ends_at_the_peak() -> None:
    train = TrainConfig(steps=100, warmup_steps=4)
    assert [lr_factor(step, train) for step in range(5)] == [0.25, 0.5, 0.75, 1, 1]
