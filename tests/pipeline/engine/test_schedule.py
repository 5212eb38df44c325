from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.engine.schedule import lr_factor


def test_warmup_is_linear_and_starts_above_zero() -> None:
    assert [lr_factor(step, steps=100, warmup_steps=4) for step in range(4)] == [0.25, 0.5, 0.75, 1]


def test_cosine_runs_from_the_peak_to_nearly_zero() -> None:
    assert lr_factor(10, steps=110, warmup_steps=10) == 1.0
    assert lr_factor(60, steps=110, warmup_steps=10) == pytest.approx(0.5)
    assert lr_factor(109, steps=110, warmup_steps=10) == pytest.approx(
        0.5 * (1 + math.cos(math.pi * 0.99))
    )


@given(st.integers(1, 1000), st.integers(0, 999), st.integers(0, 2000))
def test_always_a_share_of_the_peak(steps: int, warmup_steps: int, step: int) -> None:
    assert 0.0 <= lr_factor(step, steps=steps, warmup_steps=min(warmup_steps, steps - 1)) <= 1.0
