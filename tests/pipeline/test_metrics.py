"""What a run says of itself while it waits for data."""

from __future__ import annotations

import pytest

from pipeline.config import TrainJob
from pipeline.metrics import MetricsProcessor, input_bound_verdict


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
def test_it_is_said_once_when_waiting_begins(shares, times, capsys):
    metrics = MetricsProcessor.__new__(MetricsProcessor)  # without a process group and files
    metrics._config, metrics._lines_input_bound = TrainJob(), 0
    for share in shares:
        metrics._tell_if_input_bound(share)
    assert capsys.readouterr().err.count("input-bound") == times
