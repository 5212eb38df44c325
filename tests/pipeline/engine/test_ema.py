"""The average of the weights: what it is, and that an evaluation sees it and leaves no trace."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pipeline.config import Precision
from tests.gloo import run_gloo
from tests.pipeline.engine.probes import SMALL, differing, snapshot
from tests.pipeline.engine.training import STEPS, batch_of, engine_of, job, model_of, pieces, whole

DECAY = 0.7
WORDS = [*SMALL, f"train.ema_decay={DECAY}", "model.dropout=0.3"]


def _averaged(rank: int, world_size: int, jobs: list[list[str]]) -> list[dict[str, Any]]:
    found = []
    for overrides in jobs:
        engine, _ = engine_of(rank, world_size, [*WORDS, *overrides])
        expected = [part.values["weight"].double() for part in engine.shards.fragments()]
        for step in range(STEPS):
            engine.train_step(batch_of(step, rank, world_size), step)
            for average, part in zip(expected, engine.shards.fragments()):
                average.lerp_(part.values["weight"].double(), 1 - DECAY)
        errors = [
            float((part.values["ema"] - average).abs().max())
            for average, part in zip(expected, engine.shards.fragments())
        ]
        parts = pieces(engine.shards)
        before, features = snapshot(engine), []
        with engine.evaluating():
            during = snapshot(engine)
            features += [engine.encode_image(batch_of(7).images)]
            features += [engine.encode_text(batch_of(7).tokens)]
        after = snapshot(engine)
        try:
            with engine.evaluating():
                raise KeyError
        except KeyError:
            pass
        result = {
            "error": max(errors),
            "moved": max(
                float((values["ema"] - values["weight"]).abs().max()) for *_, values in parts
            ),
            "pieces": parts,
            "features": [value.float() for value in features],
            "left": differing(before, after) + differing(before, snapshot(engine)),
            "changed": differing(before, during),
            "training": engine._towers.training,
        }
        metrics = engine.train_step(batch_of(0, rank, world_size), 3)
        result["loss after"] = float(metrics.loss)
        engine.close()
        found.append(result)
    return found


def features_of(kind: str, of_job: list[dict], overrides: list[str]) -> list[torch.Tensor]:
    """Features of a model with these weights, computed in the engine's own type: how bfloat16
    rounds inside a product differs by processor, by more than the tolerance if one side is
    float32."""
    config = job(*WORDS, *overrides)
    model = model_of(config).eval()
    model.load_state_dict(whole([result["pieces"] for result in of_job], kind))
    if config.train.precision is Precision.pure_bf16:
        model.to(torch.bfloat16)
        model.visual.set_pixel_statistics(config.model, torch.device("cpu"))
    with torch.no_grad():
        batch = batch_of(7)
        features = [model.encode_image(batch.images), model.encode_text(batch.tokens)]
    return [value.float() for value in features]


def check(jobs: list[list[str]], tolerance: float) -> None:
    ranks = run_gloo(_averaged, 2, jobs, timeout_s=280)
    for number, overrides in enumerate(jobs):
        of_job = [rank[number] for rank in ranks]
        image, text = features_of("ema", of_job, overrides)
        raw, _ = features_of("weight", of_job, overrides)
        assert (raw - image).abs().max() > 3 * tolerance  # the test can tell them apart
        for result in of_job:
            assert result["error"] < 1e-6 < 1e-4 < result["moved"], overrides
            assert result["left"] == [] and result["changed"] and result["training"], overrides
            for found, expected in zip(result["features"], (image, text), strict=True):
                assert (found - expected).abs().max() < tolerance, overrides


@pytest.mark.slow
def test_stage_1():
    check([["deepspeed.zero_stage=1"]], 1e-5)


@pytest.mark.slow
def test_other_stages():
    check([["deepspeed.zero_stage=2"], ["deepspeed.zero_stage=3"]], 1e-5)
    offloaded = ["deepspeed.offload_optimizer=true"]
    check([offloaded, [*offloaded, "deepspeed.zero_stage=3"]], 1e-5)


@pytest.mark.slow
def test_half_precision():
    words = [f"deepspeed.zero_stage={stage}" for stage in (1, 3)]
    check([[word, "train.precision=pure_bf16", "train.lr=0.03"] for word in words], 0.02)


def _without(rank: int, world_size: int) -> list[str]:
    engine, _ = engine_of(rank, world_size, SMALL)
    before = snapshot(engine)
    with engine.evaluating():
        during = snapshot(engine)
    engine.close()
    return differing(before, during)


@pytest.mark.slow
def test_without_an_average_the_weights_themselves_are_evaluated():
    assert run_gloo(_without, 2) == [[], []]
