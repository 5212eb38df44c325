"""Each reason why a run does not learn is said once, with what to do; a healthy run hears none."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.config import LossKind, TrainJob
from pipeline.engine.objective import mean_cosine
from pipeline.metrics import MetricsProcessor
from pipeline.metrics.diagnosis import (
    LINES_AT_CHANCE,
    CollapsedFeatures,
    EqualCaptions,
    NoGradient,
    RestingLoss,
    few_steps_per_epoch,
)
from pipeline.metrics.interval import _share_of_equal
from pipeline.state import TrainState
from tests.pipeline.metrics.steps import job, step_metrics, take, world

CHANCE = math.log(128)


def config(warmup_steps: int = 0, kind: LossKind = LossKind.clip) -> TrainJob:
    made = TrainJob()
    made.train.global_batch_size = 128
    made.train.warmup_steps = warmup_steps
    made.loss.kind = kind
    return made


def said_of_losses(losses: list[float], **given_config) -> list[str]:
    check = RestingLoss(config(**given_config))
    texts = [check.check(step, loss) for step, loss in enumerate(losses, start=1)]
    return [text for text in texts if text]


def test_a_loss_at_chance_is_said_once():
    (text,) = said_of_losses([CHANCE * 1.005] * 40)
    assert text.startswith(f"step {LINES_AT_CHANCE}: the loss rests at 4.88, which is ln(128)")
    assert "train.lr" in text and "captions" in text


@pytest.mark.parametrize(
    "losses, given_config",
    [
        (np.linspace(CHANCE * 1.05, 0.9, 60).tolist(), {}),  # learns
        ([CHANCE] * 9 + [CHANCE * 0.98] * 30, {}),  # begins to
        ([CHANCE] * 30, {"warmup_steps": 30}),
        ([CHANCE] * 30, {"kind": LossKind.sigmoid}),  # its loss has another scale
        ([math.nan] * 30, {}),
    ],
)
def test_a_loss_that_does_not_rest(losses, given_config):
    assert said_of_losses(losses, **given_config) == []


def test_collapsed_features_are_said_once_for_each_tower():
    check = CollapsedFeatures(config())
    lines = [[0.4, 0.3], [0.999, 0.3], [0.998, 0.995], [0.999, 0.999], [0.999, 0.999]]
    texts = [text for step, line in enumerate(lines, start=1) for text in check.check(step, line)]
    assert [text.split(" features")[0] for text in texts] == [
        "step 3: the image",
        "step 4: the text",
    ]
    assert "pictures differ" in texts[0] and "captions differ" in texts[1]


@pytest.mark.parametrize(
    "lines", [[[0.98, 0.98]] * 5, [[0.999, 0.2], [0.5, 0.2]] * 3, [[]] * 3, [[math.nan] * 2] * 3]
)
def test_features_that_have_not_collapsed(lines):
    check = CollapsedFeatures(config())
    assert [check.check(step, line) for step, line in enumerate(lines)] == [[]] * len(lines)


def test_random_weights_may_be_close_during_warm_up():
    check = CollapsedFeatures(config(warmup_steps=50))
    assert [check.check(step, [0.999, 0.999]) for step in range(1, 51)] == [[]] * 50


@given(
    st.lists(st.lists(st.floats(-9, 9, width=32), min_size=3, max_size=3), min_size=2, max_size=9)
)
def test_the_mean_cosine_is_that_of_all_pairs(rows):
    features = torch.tensor(rows)
    unit = torch.nn.functional.normalize(features.double(), dim=1)
    if (unit.norm(dim=1) < 0.5).any():  # a row of zeros has no direction
        return
    cosines = unit @ unit.T
    off_diagonal = cosines[~torch.eye(len(rows), dtype=torch.bool)]
    assert mean_cosine(features).item() == pytest.approx(off_diagonal.mean().item(), abs=1e-5)


def test_one_row_has_no_mean_cosine():
    assert mean_cosine(torch.ones(1, 4)).isnan()


def test_equal_captions_are_said_once():
    check = EqualCaptions()
    assert check.check(1, 0.49) is None
    text = check.check(2, 0.62)
    assert text is not None and text.startswith("step 2: 62 % of the batch's captions are there")
    assert check.check(3, 0.9) is None
    assert EqualCaptions().check(1, math.nan) is None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ids=st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 3), min_size=1, max_size=40))
def test_the_share_of_equal_captions_counts_rows(alone, ids):
    share = _share_of_equal(torch.tensor(ids), ranks=1)
    assert share.item() == pytest.approx(sum(ids.count(i) > 1 for i in ids) / len(ids))


def test_a_tower_without_gradient_is_said_once():
    check = NoGradient()
    (text,) = check.check(7, [0.0, 2.0, 2.0])
    assert text.startswith("step 7: the image tower gets no gradient")
    assert check.check(8, [0.0, 2.0, 2.0]) == []
    (text,) = check.check(9, [0.0, 1e-9, 2.0])
    assert "the text tower" in text


@pytest.mark.parametrize(
    "norms",
    [
        [1e-3, 2.0, 2.0],
        [math.nan, math.nan, 2.0],  # stage 3: not known
        [math.nan, math.inf, math.inf],  # a skipped step
        [0.0, math.inf, math.inf],
        [1.0, 1.0, math.nan],
    ],
)
def test_towers_that_have_a_gradient_or_are_not_known(norms):
    assert NoGradient().check(1, norms) == []


def test_few_steps_in_an_epoch():
    text = few_steps_per_epoch(2000, 512)
    assert text is not None and text.startswith("an epoch has only 3.9 steps: 2000 samples")
    assert "train.global_batch_size=100" in text
    assert few_steps_per_epoch(2000, 100) is None
    assert few_steps_per_epoch(10**9, 65536) is None


@pytest.mark.usefixtures("alone")
def test_the_console_says_it_once_during_a_run(tmp_path, capsys):
    metrics = MetricsProcessor(job(tmp_path), world(), num_samples=12)
    assert "an epoch has only 1.5 steps" in capsys.readouterr().err
    state = TrainState()
    metrics.start(state)
    sick = {"mean_cosines": [0.999, 0.4], "caption_ids": [1, 1, 1, 2, 2, 3, 4, 5]}
    for _ in range(LINES_AT_CHANCE + 5):
        take(metrics, state, step_metrics(math.log(8), grad_norms=[1.0, 0.0, 1.0], **sick))
        metrics.log(state)
    said = capsys.readouterr().err
    for words in (
        "which is ln(8)",
        "the image features have collapsed",
        "62 % of the batch's captions",
        "the text tower gets no gradient",
    ):
        assert said.count(words) == 1, words


@pytest.mark.usefixtures("alone")
def test_a_healthy_run_hears_nothing(tmp_path, capsys):
    metrics, state = MetricsProcessor(job(tmp_path), world(), num_samples=10_000), TrainState()
    metrics.start(state)
    for step in range(30):
        take(metrics, state, step_metrics(2.0 - step / 20, mean_cosines=[0.6, 0.5]))
        metrics.log(state)
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if not line.startswith("input-bound")] == []
