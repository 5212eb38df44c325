"""One checkpoint for all ranks, whatever each of them would have read; when a training
evaluates."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

import pipeline.evaluate
from pipeline.commands import EvaluateSettings
from pipeline.config import TrainJob
from pipeline.distributed.world import World
from pipeline.engine.checkpoint import CheckpointError, Weights
from pipeline.eval import write_results
from pipeline.evaluate import Evaluation, load_model
from tests.gloo import ChildError, run_gloo
from tests.pipeline.data.eval_sets import write_classification
from tests.pipeline.model.model_configs import small_clip, small_config


def weights_of(seed: int, step: int) -> Weights:
    values = {name: value.detach() for name, value in small_clip(seed=seed).named_parameters()}
    shapes = {name: tuple(value.shape) for name, value in values.items()}
    return Weights(step, is_average=False, has_average=True, shapes=shapes, values=values)


def loaded(rank: int, world_size: int, wrong_model: bool) -> tuple[int, str, int]:
    """Step, digest of the weights and number of values returned, on a rank that would read another
    checkpoint than the others."""
    pipeline.evaluate.read_weights = lambda *_: weights_of(seed=rank, step=10 + rank)
    config = TrainJob(run_dir="runs/x", model=small_config())
    if wrong_model:
        config.model.embed_dim = 32
    world = World(rank, rank, world_size, torch.device("cpu"))
    model, weights = load_model(config, EvaluateSettings(), world)
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().numpy().tobytes())
    return weights.step, digest.hexdigest(), len(weights.values)


def test_all_ranks_score_the_checkpoint_of_rank_0():
    expected = hashlib.sha256()
    for parameter in small_clip(seed=0).parameters():
        expected.update(parameter.detach().numpy().tobytes())
    first, second, third = run_gloo(loaded, 3, False)
    assert {step for step, _, _ in (first, second, third)} == {10}
    assert {digest for _, digest, _ in (first, second, third)} == {expected.hexdigest()}
    assert first[2] > 0 and second[2] == third[2] == 0


def test_a_config_of_another_model_is_told_by_one_rank():
    with pytest.raises(ChildError, match="step 10 of runs/x is of another model"):
        run_gloo(loaded, 2, True)


@pytest.fixture
def evaluation(tmp_path: Path) -> Evaluation:
    """Of a run of 20 steps that evaluates every 6."""
    write_classification(tmp_path / "birds", [b"no picture is read"], [0], ["owl"])
    write_classification(tmp_path / "cars", [b"no picture is read"], [0], ["owl"])
    config = TrainJob(run_dir=str(tmp_path / "run"), model=small_config())
    config.train.steps = 20
    config.eval.every_steps = 6
    config.eval.datasets = [str(tmp_path / "birds"), str(tmp_path / "cars")]
    return Evaluation(config, World(0, 0, 1, torch.device("cpu")))


def test_due_at_the_last_step_and_every_so_many(evaluation):
    assert [step for step in range(25) if evaluation.due(step)] == [6, 12, 18, 20, 24]
    evaluation._config.eval.every_steps = None
    assert [step for step in range(25) if evaluation.due(step)] == [20]


def test_owed_until_every_set_has_scores_of_the_step(evaluation, tmp_path, capsys):
    scored = {"kind": "classification", "num_samples": 1, "num_classes": 1, "top1": 1.0}
    assert evaluation.owed(12) and not evaluation.owed(13) and not evaluation.owed(0)
    write_results(tmp_path / "run", 12, {"birds": scored})
    assert evaluation.owed(12)
    write_results(tmp_path / "run", 12, {"cars": scored, "other": scored})
    assert not evaluation.owed(12) and evaluation.owed(6)
    evaluation.go_back_to(11)
    assert evaluation.owed(12)
    assert "scores of steps 12 are" in capsys.readouterr().err
    evaluation.go_back_to(11)
    assert capsys.readouterr().err == ""


def test_a_run_without_sets_owes_nothing(tmp_path):
    config = TrainJob(run_dir=str(tmp_path), model=small_config())
    evaluation = Evaluation(config, World(0, 0, 1, torch.device("cpu")))
    assert not evaluation.due(config.train.steps) and not evaluation.owed(config.train.steps)
    assert evaluation.run(None, None, 1) == {} and list(tmp_path.iterdir()) == []


def test_read_errors_are_checkpoint_errors(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        pipeline.evaluate.read_weights(tmp_path)
