"""Each alert speaks when it should, once, and is silent in a healthy run."""

from __future__ import annotations

import math

import pytest

from pipeline.config import TrainJob
from pipeline.metrics.alerts import InputBound, LogitScale, Stragglers, input_bound_verdict


def test_the_verdict_says_how_much_and_what_to_do():
    assert (
        input_bound_verdict(0.38, num_workers=4, cpus_per_rank=8)
        == "input-bound: 38 % of step time; raise data.num_workers from 4"
    )
    assert "more CPUs" in input_bound_verdict(0.38, num_workers=8, cpus_per_rank=8)


@pytest.mark.parametrize(
    "shares, times",
    [
        ([0.9, 0.01, 0.02], 0),  # the cold start
        ([0.5, 0.5, 0.5, 0.5], 1),
        ([0.5, 0.5, 0.0, 0.5, 0.5], 2),
        ([0.09] * 5, 0),
    ],
)
def test_input_bound_is_said_once_when_waiting_begins(shares, times):
    alert = InputBound(TrainJob())
    assert sum(alert.check(share) is not None for share in shares) == times


def straggling(*lines: list[float], ranks_per_node: int = 8) -> list[list[str]]:
    alert = Stragglers(ranks_per_node)
    return [alert.check(line) for line in lines]


def test_a_straggler_is_named_at_its_second_line_in_a_row():
    slow = [1.0] * 13 + [1.31] + [1.0] * 2
    told = straggling(slow, slow, slow)
    assert [len(texts) for texts in told] == [0, 1, 0]
    assert told[1][0].startswith("rank 13: towers take 1.31x the median of the ranks")
    assert "GPU 5 on the job's node 1" in told[1][0]


@pytest.mark.parametrize(
    "lines",
    [
        ([1.0, 1.0, 1.5], [1.0, 1.5, 1.0]),  # another one each time
        ([1.0, 1.0, 1.5], [1.0, 1.0, 1.0], [1.0, 1.0, 1.5]),  # not in a row
        ([1.0, 1.0, 1.19],) * 3,
        ([2.0, 2.0, 2.0],) * 3,
        ([0.0, 0.0, 0.0],) * 3,
        ([1.0],) * 3,
    ],
)
def test_no_straggler(lines):
    assert straggling(*lines) == [[]] * len(lines)


def test_a_straggler_that_comes_back_is_named_again():
    slow, fast = [1.0, 1.0, 2.0], [1.0, 1.0, 1.0]
    assert [len(t) for t in straggling(slow, slow, fast, slow, slow)] == [0, 1, 0, 0, 1]


def scales(*values: float, warmup_steps: int = 0) -> list[str]:
    config = TrainJob()
    config.train.warmup_steps = warmup_steps
    alert = LogitScale(config)
    told = [alert.check(step, math.log(value)) for step, value in enumerate(values, start=1)]
    return [text for text in told if text]


def test_a_healthy_scale_is_not_spoken_of():
    assert scales(14.3, 5.1, 30, 99.9) == []


def test_the_clamp_is_said_once():
    (text,) = scales(50, 100, 99, 100, 100)
    assert text.startswith("step 2: the logit scale is at its clamp of 100.0")


def test_a_low_scale_is_said_once():
    (text,) = scales(14, 4.9, 6, 3)
    assert text.startswith("step 2: the logit scale has fallen to 4.9, below 5")


def test_warm_up_may_do_what_it_wants():
    assert scales(100, 3, warmup_steps=2) == []
    assert len(scales(100, 3, 3, warmup_steps=2)) == 1


def test_a_scale_that_is_no_number_is_left_to_the_health_check():
    assert LogitScale(TrainJob()).check(10**6, math.nan) is None
