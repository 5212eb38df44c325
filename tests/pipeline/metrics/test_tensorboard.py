"""The event file is read back, also that of a resumed run."""

from __future__ import annotations

import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.config import ConfigError
from pipeline.metrics import MetricsProcessor
from pipeline.state import TrainState
from tests.pipeline.metrics.steps import job, step_metrics, take, world

pytestmark = pytest.mark.usefixtures("alone")


def run_steps(run_dir, state: TrainState, until: int) -> None:
    metrics = MetricsProcessor(job(run_dir, tensorboard=True), world())
    metrics.start(state)
    while state.step < until:
        take(metrics, state, step_metrics(float("nan") if state.step == 4 else 10.0 - state.step))
        metrics.log(state)
    metrics.log_eval(state, {"toys": {"top1": 0.25}})
    metrics.close()


def scalars(run_dir, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(run_dir / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_events_of_a_resumed_run(tmp_path):
    run_steps(tmp_path, TrainState(), 3)
    assert scalars(tmp_path, "train/loss") == [(1, 10.0), (2, 9.0), (3, 8.0)]
    run_steps(tmp_path, TrainState(1, 8), 6)
    # steps 2 and 3 once; 5 was not finite and has no point
    assert scalars(tmp_path, "train/loss") == [(1, 10), (2, 9), (3, 8), (4, 7), (6, 5)]
    assert scalars(tmp_path, "train/samples_seen")[-1] == (6, 48.0)
    assert scalars(tmp_path, "eval/toys/top1") == [(6, 0.25)]


def test_a_roll_back_goes_on_in_the_same_folder(tmp_path):
    metrics, state = MetricsProcessor(job(tmp_path, tensorboard=True), world()), TrainState()
    metrics.start(state)
    for _ in range(3):
        take(metrics, state, step_metrics(5.0))
        metrics.log(state)
    state = TrainState(1, 24, rollbacks=1)
    metrics.start(state)
    take(metrics, state, step_metrics(4.0))
    metrics.log(state)
    metrics.close()
    assert scalars(tmp_path, "train/loss") == [(1, 5.0), (2, 4.0)]


def test_without_the_package_it_is_refused_and_nothing_is_written(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # as if it were not installed
    run_dir = tmp_path / "run"
    with pytest.raises(ConfigError, match=r"pip install 'clip-pretrain\[tensorboard\]'"):
        MetricsProcessor(job(run_dir, tensorboard=True), world())
    assert not run_dir.exists()
