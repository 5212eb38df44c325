"""A gradient that is not finite on one rank alone: no rank's weights, moments, counters or averages
move by a bit, and the run goes on as if the step had not been."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tests.gloo import run_gloo
from tests.pipeline.engine.probes import SMALL, differing, snapshot
from tests.pipeline.engine.training import batch_of, engine_of

POISONED = "visual.transformer.blocks.0.mlp.up.weight"
PARTS = ["train.image_micro_batch_size=2", "train.text_micro_batch_size=4"]


def _run(
    rank: int, world_size: int, overrides: list[str], steps: list[int], bad: float | None
) -> dict[str, Any]:
    """The steps named; before the last one, one whose gradient is `bad` on rank 1."""
    engine, _ = engine_of(rank, world_size, [*SMALL, "train.ema_decay=0.5", *overrides])
    *before, last = steps
    for step in before:
        engine.train_step(batch_of(step, rank, world_size), step)
    result: dict[str, Any] = {"before": snapshot(engine)}
    if bad is not None:
        parameter = dict(engine._towers.clip.named_parameters())[POISONED]
        hooks = []
        if rank == 1:
            hooks.append(parameter.register_hook(lambda g: torch.full_like(g, bad)))
        metrics = engine.train_step(batch_of(9, rank, world_size), last)
        for hook in hooks:
            hook.remove()
        result |= {
            "after": snapshot(engine),
            "skipped": float(metrics.skipped),
            "norms": metrics.grad_norms,
            "loss": float(metrics.loss),
        }
    metrics = engine.train_step(batch_of(last, rank, world_size), last)
    result |= {"end": snapshot(engine), "last skipped": float(metrics.skipped)}
    engine.close()
    return result


def _with_and_without(
    rank: int, world_size: int, jobs: list[tuple[list[str], float]]
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    steps = [0, 1, 2]
    return [
        (
            _run(rank, world_size, overrides, steps, bad),
            _run(rank, world_size, overrides, steps, None),
        )
        for overrides, bad in jobs
    ]


def check(jobs: list[tuple[list[str], float]]) -> None:
    ranks = run_gloo(_with_and_without, 2, jobs, timeout_s=280)
    for number, (overrides, bad) in enumerate(jobs):
        for rank in ranks:
            disturbed, undisturbed = rank[number]
            assert disturbed["skipped"] == 1.0 and math.isfinite(disturbed["loss"]), overrides
            assert not disturbed["norms"][2].isfinite(), overrides
            assert not differing(disturbed["before"], disturbed["after"]), overrides
            assert disturbed["last skipped"] == 0.0
            assert not differing(disturbed["end"], undisturbed["end"]), overrides
            assert differing(disturbed["end"], disturbed["after"])  # it did go on
        if "deepspeed.zero_stage=3" not in overrides and bad != bad:
            # which tower it was is told apart
            image, text, _ = ranks[0][number][0]["norms"]
            assert not image.isfinite() and text.isfinite(), overrides


@pytest.mark.slow
def test_stage_1():
    check([(["deepspeed.zero_stage=1"], math.nan), (["train.optimizer=lamb", *PARTS], math.nan)])


@pytest.mark.slow
def test_all_stages_whole_and_by_parts():
    stages = [[f"deepspeed.zero_stage={stage}"] for stage in (1, 2, 3)]
    check(
        [
            *((stage, math.inf) for stage in stages),
            *(([*stage, *PARTS], math.nan) for stage in stages),
            *(([*stage, "train.precision=bf16"], math.nan) for stage in stages),
            *(([*stage, "train.precision=pure_bf16"], math.nan) for stage in stages),
        ]
    )
